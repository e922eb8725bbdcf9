from dataclasses import replace

import torch

from smoothsal_lib.datasets.patches import Patches, pictures, together


def some(count: int, first: int) -> Patches:
    images = torch.arange(first, first + count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    labels = torch.arange(count) % 2
    names = [f"a{i // 2}/{i}" for i in range(first, first + count)]
    return Patches(images, labels, labels + first, {"gland": images[:, 0] > 1}, names, 0.5)


def test_sets_of_patches_come_together_in_their_order():
    one, two = some(3, 0), some(2, 3)
    both = together([one, two])
    assert len(both) == 5 and both.mpp == 0.5 and list(both.names) == [*one.names, *two.names]
    assert both.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert both.labels.tolist() == [0, 1, 0, 0, 1] and both.patients.tolist() == [0, 1, 0, 3, 4]
    torch.testing.assert_close(both.masks["gland"], torch.cat([one.masks["gland"], two.masks["gland"]]))


def test_pictures_are_numbered_as_they_come():
    assert pictures(some(5, 0)).tolist() == [0, 0, 1, 1, 2]
    assert pictures(replace(some(3, 0), names=["b/1", "a/1", "b/2"])).tolist() == [0, 1, 0]
