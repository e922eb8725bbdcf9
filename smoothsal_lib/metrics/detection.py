"""How well a score tells tumour from no tumour, and how sure a few patients make one of it."""

from __future__ import annotations

import torch
from torch import Tensor


def auc(scores: Tensor, labels: Tensor) -> float:
    """Area under the receiver operating characteristic, exactly.

    It is the share of the pairs of a positive and a negative in which the positive has the higher score; equal scores
    count one half (Mann & Whitney 1947; Hanley & McNeil 1982). 0.5 is a coin, 1 perfect, 0 perfectly wrong.

    Args:
        scores: (N,) numbers, in any unit: only their order counts.
        labels: (N,) booleans, or 0 and 1.

    Raises:
        ValueError: for other shapes or labels, a score that is not a number, or labels of one class alone.
    """
    nobody = torch.zeros_like(labels, dtype=torch.int64)
    wins, positives, negatives = _wins(*_checked(scores, labels, nobody))
    return (wins.sum() / (positives.sum() * negatives.sum())).item()


def auc_interval(
    scores: Tensor,
    labels: Tensor,
    patients: Tensor,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    before: Tensor | None = None,
) -> tuple[float, float]:
    """Between which bounds the AUC would lie, had other patients of the same kind been looked at.

    The percentile bootstrap (Efron & Tibshirani 1993, chapter 13) over *patients*: P of the P patients are drawn with
    replacement, each with all their patches, since the patches of one patient are no independent cases. A draw without
    both classes has no AUC, and is drawn again. With a dozen patients the interval is rough, and rather too narrow. A
    single patient gives an interval without width, which means nothing.

    Args:
        scores: (N,) numbers.
        labels: (N,) booleans, or 0 and 1.
        patients: (N,) numbers: who each score belongs to.
        level: the share of the draws between the bounds.
        resamples: how often patients are drawn.
        seed: of the draws. The global random state is not touched.
        before: (N,) other scores of the same cases: then the bounds are those of the difference of the AUCs, that of
            ``scores`` minus that of ``before``, patients being drawn once for both.

    Returns:
        The lower and the upper bound.

    Raises:
        ValueError: as :func:`auc`, and for a level or a number of resamples out of range.
    """
    if not 0 < level < 1:
        raise ValueError(f"level = {level:g} is out of range: give a share between 0 and 1, such as 0.95")
    if resamples < 1:
        raise ValueError(f"resamples = {resamples} is no number of draws: give 1 or more, such as 2000")
    wins, positives, negatives = _wins(*_checked(scores, labels, patients))
    if before is not None:
        wins = wins - _wins(*_checked(before, labels, patients))[0]
    draws = _draws(positives, negatives, resamples, seed)
    pairs = (draws @ positives) * (draws @ negatives)
    found = ((draws @ wins) * draws).sum(1) / pairs
    low, high = found.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=found.dtype)).tolist()
    return low, high


def _checked(scores: Tensor, labels: Tensor, patients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same on the CPU; scores in float64, labels as booleans."""
    if scores.ndim != 1 or scores.shape != labels.shape or scores.shape != patients.shape:
        shapes = ", ".join(str(tuple(values.shape)) for values in (scores, labels, patients))
        raise ValueError(f"expected scores, labels and patients of one shape (N,), got {shapes}")
    strange = labels[(labels != 0) & (labels != 1)]
    if len(strange):
        raise ValueError(f"expected labels 0 and 1, got {strange[0].item()}")
    if scores.isnan().any():
        raise ValueError(f"score {int(scores.isnan().nonzero()[0])} is not a number")
    positives = int((labels != 0).sum())
    if positives in (0, len(labels)):
        raise ValueError(f"expected labels of both classes, got {positives} positives among {len(labels)}")
    return scores.detach().cpu().double(), labels.cpu() != 0, patients.cpu()


def _wins(scores: Tensor, labels: Tensor, patients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For every two patients (P, P) the pairs won by the positives of the first against the negatives of the second.

    With them positives and negatives (P,) of each patient. An AUC of patients counted c times each is then
    ``c @ wins @ c / ((c @ positives) (c @ negatives))``, so that a thousand draws need no sorting.
    """
    _, owner = patients.unique(return_inverse=True)
    people = int(owner.max()) + 1
    hits, owner_of_hit = scores[labels], owner[labels]
    wins = torch.zeros(people, people, dtype=torch.float64)
    for other in owner[~labels].unique().tolist():
        misses = scores[~labels & (owner == other)].sort().values
        below = torch.searchsorted(misses, hits) + torch.searchsorted(misses, hits, right=True)
        wins[:, other].index_add_(0, owner_of_hit, below.double() / 2)
    positives = torch.bincount(owner_of_hit, minlength=people).double()
    negatives = torch.bincount(owner[~labels], minlength=people).double()
    return wins, positives, negatives


def _draws(positives: Tensor, negatives: Tensor, resamples: int, seed: int) -> Tensor:
    """(resamples, P) how often each patient is drawn, both classes being among the drawn."""
    generator = torch.Generator().manual_seed(seed)
    people = len(positives)
    kept: list[Tensor] = []
    while sum(map(len, kept)) < resamples:  # one draw in three or more has both classes
        drawn = torch.randint(people, (resamples, people), generator=generator)
        counts = torch.zeros(resamples, people, dtype=torch.float64)
        counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
        kept.append(counts[(counts @ positives > 0) & (counts @ negatives > 0)])
    return torch.cat(kept)[:resamples]
