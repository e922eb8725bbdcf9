"""Pictures with two objects: two images of tiny-imagenet-100 side by side, each with its class and its box."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from smoothsal_lib.datasets import tiny_imagenet


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pictures with two objects. Made by :func:`compose`.

    Attributes:
        images: (P, 3, H, 2 W) uint8.
        classes: (P, 2) int64, of the object on the left and of that on the right; never the same.
        boxes: (P, 2, 4) float, where these objects are: x_min, y_min, x_max, y_max in pixels of the whole picture, all
            inclusive. The two never share a pixel.
    """

    images: Tensor
    classes: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, chosen: slice | Tensor) -> Pairs:
        """Some of the pictures, by a slice, by their indices, or by (P,) booleans."""
        return Pairs(self.images[chosen], self.classes[chosen], self.boxes[chosen])


def neighbours(labels: Tensor, seed: int = 0) -> Tensor:
    """Which images to put side by side: pairs of different classes, in random order.

    The images are dealt in rounds, one of every class that has any left. Those of a round stand in a ring, in random
    order, and each is paired with the next. It thereby stands once on the left and once on the right, with different
    partners (unless only two are in the round), and after every whole round left and right are balanced: image by
    image, hence class by class. A pair and the next share an image. Images alone in their round are left over.

    Args:
        labels: (N,) the images' classes.
        seed: of the order. The global random state is not touched.

    Returns:
        (P, 2) int64, the image on the left and that on the right. P = N where all classes have equally many images.

    Raises:
        ValueError: for labels of another shape, or of fewer than two classes.
    """
    if labels.ndim != 1 or len(labels.unique()) < 2:
        raise ValueError(
            f"expected labels (N,) of two classes or more, got {labels.unique().tolist()} in {labels.ndim}d"
        )
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    rounds: list[list[int]] = []
    dealt: dict[int, int] = {}
    for image, label in zip(order.tolist(), labels[order].tolist(), strict=True):
        turn = dealt[label] = dealt.get(label, -1) + 1
        if turn == len(rounds):
            rounds.append([])
        rounds[turn].append(image)
    rings = [torch.tensor(ring) for ring in rounds if len(ring) > 1]
    return torch.cat([torch.stack([ring, ring.roll(-1)], 1) for ring in rings])


def compose(images: Tensor, labels: Tensor, boxes: Tensor, sides: Tensor) -> Pairs:
    """Put images side by side.

    Args:
        images: uint8 (N, 3, H, W).
        labels: (N,) their classes.
        boxes: (N, 4) where their objects are: x_min, y_min, x_max, y_max in pixels, inclusive.
        sides: (P, 2) the images on the left and on the right, as :func:`neighbours` gives them.

    Raises:
        ValueError: for two images of one class, or a label or a box too few or too many.
    """
    if not len(images) == len(labels) == len(boxes):
        raise ValueError(
            f"expected a label and a box for each image, got {len(labels)} labels and {len(boxes)} boxes for "
            f"{len(images)} images"
        )
    left, right = sides.unbind(1)
    same = (labels[left] == labels[right]).nonzero().flatten().tolist()
    if same:
        label = int(labels[left[same[0]]])
        raise ValueError(f"pair {same[0]} has two objects of class {label}: expected two classes")
    moved = boxes[right] + boxes.new_tensor([images.shape[3], 0, images.shape[3], 0])
    return Pairs(
        images=torch.cat([images[left], images[right]], 3),
        classes=torch.stack([labels[left], labels[right]], 1),
        boxes=torch.stack([boxes[left], moved], 1),
    )


def load_pairs(root: str | Path | None = None, limit: int | None = None, seed: int = 0) -> Pairs:
    """The validation images of tiny-imagenet-100 as pictures of 64 x 128 pixels with two objects each.

    Args:
        root: see :func:`smoothsal_lib.datasets.tiny_imagenet.find_folder`.
        limit: the first so many of the 5,000; every hundred of them is a round of :func:`neighbours`. ``None`` for all.
        seed: of the pairing.

    Raises:
        ValueError: for a limit below 1, or an image without a box.
        FileNotFoundError: when the data, or its ``boxes.csv``, is not there.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit = {limit} is not a number of pairs: give 1 or more, or None for all")
    images, labels = tiny_imagenet.load_split("val", root)
    boxes = tiny_imagenet.load_boxes("val", root)
    return compose(images, labels, boxes, neighbours(labels, seed)[:limit])


def ranks(logits: Tensor, classes: Tensor) -> Tensor:
    """The places of the two objects' classes among all that the network takes the picture for.

    Whether a map tells two objects apart can only be asked where the network sees both: ``(ranks(...) <= k).all(1)``
    chooses those pictures on which both are among the best k.

    Args:
        logits: (P, classes) of the network.
        classes: (P, 2) as in :class:`Pairs`.

    Returns:
        (P, 2) int64: 1 for the class with the highest logit, 2 for the next, and so on; of equal logits, the better.

    Raises:
        ValueError: for shapes that do not fit, or a class that has no logit.
    """
    if logits.ndim != 2 or classes.shape != (len(logits), 2):
        raise ValueError(
            f"expected logits (P, classes) and classes (P, 2), got {tuple(logits.shape)} and {tuple(classes.shape)}"
        )
    unknown = classes[(classes < 0) | (classes >= logits.shape[1])].tolist()
    if unknown:
        raise ValueError(
            f"class {unknown[0]} has no logit: there are {logits.shape[1]}, beginning with that of class 0"
        )
    own = logits.gather(1, classes)
    return 1 + (logits[:, None] > own[:, :, None]).sum(2)
