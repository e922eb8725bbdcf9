"""The area under the ROC against counted pairs, and its interval against what a few patients can know."""

import itertools

import pytest
import torch

from smoothsal_lib.metrics.detection import auc, auc_interval


def counted(scores, labels):
    """The definition, pair by pair."""
    hits = [s for s, label in zip(scores, labels, strict=True) if label]
    misses = [s for s, label in zip(scores, labels, strict=True) if not label]
    won = sum((h > m) + (h == m) / 2 for h, m in itertools.product(hits, misses))
    return won / (len(hits) * len(misses))


def cases(count=60, people=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 20, (count,), generator=generator).double()  # many are equal
    labels = torch.rand(count, generator=generator) < scores / 30 + 0.1
    return scores, labels, torch.randint(0, people, (count,), generator=generator)


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.75),  # three of four pairs
        ([1.0, 2.0, 3.0, 4.0], [0, 0, 1, 1], 1.0),
        ([1.0, 2.0, 3.0, 4.0], [1, 1, 0, 0], 0.0),
        ([5.0, 5.0, 5.0], [0, 1, 0], 0.5),
        ([1.0, 1.0, 2.0], [0, 1, 1], 0.75),  # half a pair and a whole one, of two
    ],
)
def test_auc_by_hand(scores, labels, expected):
    assert auc(torch.tensor(scores), torch.tensor(labels)) == expected
    assert auc(torch.tensor(scores), torch.tensor(labels).bool()) == expected


@pytest.mark.parametrize("seed", range(4))
def test_auc_counts_pairs(seed):
    scores, labels, _ = cases(seed=seed)
    assert auc(scores, labels) == pytest.approx(counted(scores.tolist(), labels.tolist()), abs=1e-12)


def test_only_the_order_of_the_scores_counts():
    scores, labels, _ = cases()
    found = auc(scores, labels)
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(1))
    assert auc(scores[order], labels[order]) == pytest.approx(found, abs=1e-12)
    assert auc(scores.exp() - 7, labels) == pytest.approx(found, abs=1e-12)
    assert auc(-scores, labels) == pytest.approx(1 - found, abs=1e-12)
    assert auc(scores, ~labels) == pytest.approx(1 - found, abs=1e-12)
    assert auc(scores.float(), labels.long()) == pytest.approx(found, abs=1e-12)


def test_infinite_scores_are_scores():
    infinity = float("inf")
    assert auc(torch.tensor([-infinity, 0.0, infinity, infinity]), torch.tensor([0, 1, 0, 1])) == 0.625


def test_the_interval_is_that_of_drawn_patients():
    """Three patients have 27 draws, few enough to count them all."""
    scores = torch.tensor([1.0, 4.0, 2.0, 5.0, 3.0, 0.5, 4.5, 6.0])
    labels = torch.tensor([0, 1, 0, 1, 1, 0, 0, 0])
    patients = torch.tensor([10, 10, 20, 20, -5, -5, 20, 20])
    everything = []
    for drawn in itertools.product((10, 20, -5), repeat=3):
        chosen = torch.cat([(patients == patient).nonzero()[:, 0] for patient in drawn])
        everything.append(counted(scores[chosen].tolist(), labels[chosen].tolist()))
    values = torch.tensor(everything, dtype=torch.float64)
    low, high = auc_interval(scores, labels, patients, level=0.5, resamples=20_000)
    assert low == pytest.approx(values.quantile(0.25, interpolation="nearest").item(), abs=1e-12)
    assert high == pytest.approx(values.quantile(0.75, interpolation="nearest").item(), abs=1e-12)


def test_patients_may_be_any_numbers():
    scores, labels, patients = cases()
    assert auc_interval(scores, labels, patients / 10) == auc_interval(scores, labels, patients)


def test_draws_of_one_class_are_drawn_again():
    """Of two patients with a class each, only the draw of both counts, and it has the AUC of all."""
    scores, labels, patients = (
        torch.tensor([1.0, 3.0, 2.0, 4.0]),
        torch.tensor([0, 0, 1, 1]),
        torch.tensor([0, 0, 1, 1]),
    )
    assert auc_interval(scores, labels, patients) == (0.75, 0.75)


def test_the_interval_holds_the_auc_and_grows_with_the_level():
    scores, labels, patients = cases(count=400, people=20)
    found = auc(scores, labels)
    narrow, wide = (auc_interval(scores, labels, patients, level=level) for level in (0.5, 0.95))
    assert wide[0] < narrow[0] < found < narrow[1] < wide[1]
    assert auc_interval(scores, labels, patients) == wide  # the same seed
    assert auc_interval(scores, labels, patients, seed=1) != wide


def test_patients_are_drawn_and_not_patches():
    """Ten copies of every case tell nothing new; ten patients instead of one each would."""
    scores, labels, patients = cases(count=100, people=10)
    copied = [values.repeat(10) for values in (scores, labels, patients)]
    assert auc_interval(*copied) == pytest.approx(auc_interval(scores, labels, patients), abs=1e-12)
    scores, labels, patients = copied
    apart = torch.arange(len(scores))
    widths = [high - low for low, high in (auc_interval(scores, labels, who) for who in (patients, apart))]
    assert widths[1] < widths[0] / 1.5


def test_the_interval_of_a_difference():
    scores, labels, patients = cases(count=300, people=15)
    assert auc_interval(scores, labels, patients, before=scores * 2 + 1) == (0, 0)
    low, high = auc_interval(labels.double(), labels, patients, before=scores)
    assert 0 < low < 1 - auc(scores, labels) < high
    assert auc_interval(scores, labels, patients, before=labels.double()) == pytest.approx((-high, -low))


def test_global_random_state_is_left_alone():
    scores, labels, patients = cases()
    state = torch.get_rng_state()
    auc_interval(scores, labels, patients, resamples=10)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 0, 0], r"^expected labels of both classes, got 0 positives among 3$"),
        ([1, 1, 1], r"^expected labels of both classes, got 3 positives among 3$"),
        ([0, 1, 2], r"^expected labels 0 and 1, got 2$"),
        ([0, 1], r"^expected scores, labels and patients of one shape \(N,\), got \(3,\), \(2,\), "),
        ([[0], [1], [0]], r"^expected scores, labels and patients of one shape \(N,\), got \(3,\), \(3, 1\), "),
    ],
)
def test_labels_that_do_not_fit(labels, message):
    scores, labels = torch.tensor([0.1, 0.2, 0.3]), torch.tensor(labels)
    for measure in (auc, lambda *args: auc_interval(*args, torch.arange(len(labels)))):
        with pytest.raises(ValueError, match=message):
            measure(scores, labels)


def test_other_bad_input():
    scores, labels, patients = torch.tensor([0.1, float("nan")]), torch.tensor([0, 1]), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"^score 1 is not a number$"):
        auc(scores, labels)
    scores = torch.tensor([0.1, 0.2])
    with pytest.raises(ValueError, match=r"^level = 95 is out of range: give a share between 0 and 1, such as 0.95$"):
        auc_interval(scores, labels, patients, level=95)
    with pytest.raises(ValueError, match=r"^resamples = 0 is no number of draws"):
        auc_interval(scores, labels, patients, resamples=0)
    with pytest.raises(ValueError, match=r"of one shape \(N,\)"):
        auc_interval(scores, labels, patients, before=torch.zeros(3))
