"""What a repair costs on images in memory."""

import torch

from smoothsal_lib.models import load_model, normalize
from smoothsal_lib.training.fidelity import all_logits, measure


def test_logits_are_those_of_one_pass():
    model = load_model()
    images = torch.randint(0, 256, (5, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        expected = model(normalize(images.float() / 255))
    torch.testing.assert_close(all_logits(model, images, None, batch=2), expected, rtol=1e-4, atol=1e-4)


def test_measures():
    model = load_model()
    images = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8)
    labels = all_logits(model, images, None).argmax(1)
    labels[:2] = (labels[:2] + 1) % 100  # four of six are right
    rows = measure(model, images, labels, {"none": None, "backward": "backward", "forward": "forward"})
    for exact in ("none", "backward"):  # these leave the forward pass alone
        assert rows[exact] == {"top1": 4 / 6, "agreement": 1, "prediction_difference": 0}
    assert rows["forward"]["prediction_difference"] > 0
