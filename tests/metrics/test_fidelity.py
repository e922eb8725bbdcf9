"""Fidelity measures against cases computed by hand."""

import pytest
import torch

from smoothsal_lib.metrics.fidelity import accuracy, agreement, prediction_difference

ORIGINAL = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
REPAIRED = torch.tensor([[0.0, 2.0], [0.0, 1.0], [1.0, 0.0]])


def test_accuracy():
    assert accuracy(ORIGINAL, torch.tensor([0, 0, 1])).tolist() == [True, False, True]


def test_agreement():
    assert agreement(ORIGINAL, REPAIRED).tolist() == [False, True, False]


def test_prediction_difference():
    probabilities = torch.tensor([0.25, 0.75]).log()[None]
    swapped = probabilities.flip(1)
    assert prediction_difference(probabilities, swapped).item() == pytest.approx(1.0)
    assert prediction_difference(probabilities, probabilities).item() == 0
    certain = torch.tensor([[50.0, -50.0]])
    assert prediction_difference(certain, certain.flip(1)).item() == pytest.approx(2.0)


@pytest.mark.parametrize("other", [torch.zeros(2, 2), torch.zeros(3, 3), torch.zeros(3)])
def test_shapes_that_do_not_fit(other):
    for measure in (agreement, prediction_difference):
        with pytest.raises(ValueError, match=r"\(3, 2\)"):
            measure(ORIGINAL, other)
    with pytest.raises(ValueError, match="labels"):
        accuracy(ORIGINAL, torch.zeros(2, dtype=torch.long))
