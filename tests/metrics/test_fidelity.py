"""Fidelity measures against cases computed by hand."""

import pytest
import torch

from smoothsal_lib.metrics.fidelity import accuracy, agreement, predicted, prediction_difference

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


def test_prediction_difference_for_the_label_alone():
    original = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]).log()
    repaired = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.2, 0.7]]).log()
    torch.testing.assert_close(prediction_difference(original, repaired), torch.tensor([0.6, 0.2]))
    label = prediction_difference(original, repaired, torch.tensor([0, 1]))
    torch.testing.assert_close(label, torch.tensor([0.3, 0.1]))


def test_prediction_difference_of_a_detector():
    # One output: softmax over it is 1 whatever it is, so only the sigmoid can tell the two networks apart.
    original, repaired = torch.tensor([[0.0], [0.0]]), torch.tensor([[0.0], [torch.tensor(3.0).log()]])
    with pytest.raises(ValueError, match="^the softmax of a single output is always 1: use activation='sigmoid'$"):
        prediction_difference(original, repaired)
    torch.testing.assert_close(
        prediction_difference(original, repaired, activation="sigmoid"), torch.tensor([0.0, 0.25])
    )


def test_a_detector_says_yes_above_zero():
    logits, others = torch.tensor([[2.0], [-1.0], [0.0], [0.5]]), torch.tensor([[0.1], [1.0], [-3.0], [-0.5]])
    assert predicted(logits).tolist() == [1, 0, 0, 1]
    assert accuracy(logits, torch.tensor([1, 1, 0, 0])).tolist() == [True, False, True, False]
    assert agreement(logits, others).tolist() == [True, False, True, False]


def test_prediction_difference_of_a_detector_is_that_of_either_label():
    original, repaired = torch.tensor([[0.0], [0.0]]), torch.tensor([[0.0], [torch.tensor(3.0).log()]])
    found = prediction_difference(original, repaired, torch.tensor([0, 1]), activation="sigmoid")
    torch.testing.assert_close(found, torch.tensor([0.0, 0.25]))


def test_unknown_activation_and_labels_of_another_shape():
    with pytest.raises(ValueError, match=r"^unknown activation 'tanh': choose 'softmax' or 'sigmoid'$"):
        prediction_difference(ORIGINAL, REPAIRED, activation="tanh")
    with pytest.raises(ValueError, match=r"^expected 3 labels of shape \(N,\), got \(2,\)$"):
        prediction_difference(ORIGINAL, REPAIRED, torch.tensor([0, 1]))


@pytest.mark.parametrize("other", [torch.zeros(2, 2), torch.zeros(3, 3), torch.zeros(3)])
def test_shapes_that_do_not_fit(other):
    for measure in (agreement, prediction_difference):
        with pytest.raises(ValueError, match=r"\(3, 2\)"):
            measure(ORIGINAL, other)
    with pytest.raises(ValueError, match="labels"):
        accuracy(ORIGINAL, torch.zeros(2, dtype=torch.long))
