"""How far is generated tissue from real tissue, and does its colour give the tumour away?

python -m smoothsal_lib.experiments.tissue_statistics --data FOLDER --out data/results

Whole pictures of GlaS, benign and malignant, beside generated ones, without tumour and with: their colours, the amounts
of both dyes, and the nuclei that one and the same segmentation finds in all of them. The generator also knows its
nuclei exactly: their sizes by kind stand beside what the segmentation made of them. Then a logistic regression is asked
for the label of generated patches it has not seen, from their colour alone: 0.5 is chance. Mean and spread of the
colours are kept alike in the generator; how the colours are distributed beyond that is not, and the record says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from skimage.measure import regionprops_table
from torch import Tensor
from tqdm.auto import tqdm

from smoothsal_lib.datasets import glas, tissue
from smoothsal_lib.datasets.patches import Patches
from smoothsal_lib.datasets.stains import separate
from smoothsal_lib.datasets.tissue import KINDS, MPP, TUMOUR, Field
from smoothsal_lib.experiments.command import options, save
from smoothsal_lib.experiments.estimate import estimate
from smoothsal_lib.metrics.detection import auc, auc_interval
from smoothsal_lib.nuclei import segment_nuclei
from smoothsal_lib.training.colours import STATISTICS, colour_scores, colour_statistics

SIZE = (453, 589)  # of a generated picture, as that of most pictures of GlaS: 0.1 square millimetres
SHARE = 0.5  # of a picture with tumour that is tumour, as in the malignant pictures of GlaS
FITTED_SEED, ASKED_SEED = 0, 1  # of the patches: other seeds are other patients
BINS = 16  # of the histogram of each colour
MEASURED = ("red", "green", "blue", "hematoxylin", "eosin")
Numbers = dict[str, float]


def picture_statistics(image: Tensor, mpp: float) -> Numbers:
    """What is compared of one picture, but for its nuclei.

    Args:
        image: (3, H, W) uint8.
        mpp: micrometres a pixel.

    Returns:
        Mean and standard deviation over the pixels of red, green and blue, in grey levels of 255, and of hematoxylin
        and eosin, in units of optical density; then :func:`nuclei_statistics` of the nuclei that are found.
    """
    values = torch.cat([image.double(), separate(image)[:2].double()]).flatten(1)
    found = {f"{name}_mean": float(one.mean()) for name, one in zip(MEASURED, values, strict=True)}
    found |= {f"{name}_sd": float(one.std(correction=0)) for name, one in zip(MEASURED, values, strict=True)}
    return found | nuclei_statistics(segment_nuclei(image, mpp), mpp)


def nuclei_statistics(labels: Tensor, mpp: float) -> Numbers:
    """Size, shape and number of nuclei.

    Args:
        labels: (H, W) integers, 0 for none.
        mpp: micrometres a pixel.

    Returns:
        Mean and standard deviation of the area in pixels, the mean in square micrometres, the mean eccentricity (that
        of an ellipse with the same second moments, 0 for a circle, towards 1 for a line), and the number on a square
        millimetre. Without nuclei, only the number, 0.
    """
    table = regionprops_table(labels.numpy(), properties=("area", "eccentricity"))
    area, eccentricity = (torch.from_numpy(table[name]).double() for name in ("area", "eccentricity"))
    found = {"nuclei_per_mm2": len(area) / (labels.numel() * (mpp / 1000) ** 2)}
    if len(area):
        found |= {"nucleus_area_px": float(area.mean()), "nucleus_area_sd_px": float(area.std(correction=0))}
        found |= {"nucleus_area_um2": float(area.mean()) * mpp**2, "nucleus_eccentricity": float(eccentricity.mean())}
    return found


def exact_statistics(field: Field, kind: int) -> Numbers:
    """:func:`nuclei_statistics` of the nuclei of one kind, of which the generator knows the outlines."""
    own = torch.cat([torch.tensor([False]), field.kinds == kind])[field.nuclei.long()]
    return nuclei_statistics(torch.where(own, field.nuclei, 0), MPP)


def rows(source: str, what: str, pictures: Sequence[Numbers], groups: Iterable[int]) -> Iterator[dict[str, object]]:
    """One row for each measure: its mean over pictures with an error, and its standard deviation between them.

    Args:
        source: ``"glas"``, ``"generated"``, or ``"generated, exact"``.
        what: the kind of pictures, or of nuclei.
        pictures: what was measured of each. Those that lack a measure do not count for it.
        groups: whose tissue each picture shows.
    """
    patients = torch.tensor(list(groups))
    for measure in dict.fromkeys(name for one in pictures for name in one):
        has = torch.tensor([measure in one for one in pictures])
        values = torch.tensor([one[measure] for one in pictures if measure in one], dtype=torch.float64)
        between = float(f"{values.std(correction=0).item():.6g}")
        row = {"source": source, "what": what, "measure": measure, "n": len(values)}
        yield row | estimate(values, groups=patients[has]) | {"between": between}


def mean_colour(images: Tensor) -> Tensor:
    """(N, 3): mean red, green and blue."""
    return colour_statistics(images)[:, :3]


def mean_and_spread(images: Tensor) -> Tensor:
    """(N, 6): mean red, green and blue, and their standard deviations."""
    count = len(STATISTICS)
    return colour_statistics(images)[:, [0, 1, 2, count, count + 1, count + 2]]


def histogram(images: Tensor) -> Tensor:
    """(N, 3 :data:`BINS`): the share of a patch in each of as many equal ranges of red, of green and of blue."""
    bins = (images.long() * BINS // 256).flatten(2)
    return torch.stack([(bins == i).double().mean(2) for i in range(BINS)], 2).flatten(1)


FEATURES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean colour": mean_colour,
    "mean and spread of colour": mean_and_spread,
    "with both dyes": colour_statistics,
    "histogram of colour": histogram,
}


def colour_leak(fitted: Patches, asked: Patches, features: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """How well colour alone tells the label of patches of other patients: logistic regression, chance is 0.5.

    Args:
        fitted: patches to learn from.
        asked: others to be told.
        features: what it is shown of images (N, 3, H, W) uint8: (N, F).

    Returns:
        The AUC on ``asked``, and the bounds of its 95 % interval over patients.
    """
    scores = colour_scores(fitted, asked, features)
    bounds = auc_interval(scores, asked.labels, asked.patients)
    found = zip(("mean", "low", "high"), (auc(scores, asked.labels), *bounds), strict=True)
    return {name: float(f"{value:.6g}") for name, value in found}


def main(argv: list[str] | None = None) -> None:
    """The command line; ``--help`` lists the options."""
    counts = {
        "pictures": (60, "generate so many pictures, half of them with tumour"),
        "patches": (2000, "look for a leak of colour in so many patches, and in as many others"),
    }
    arguments = options("tissue_statistics", __doc__, argv, **counts)
    found: list[dict[str, object]] = []
    real: dict[str, list[tuple[int, Numbers]]] = {"benign": [], "malignant": []}
    everyone = sorted({grade.patient for grade in glas.load_grades(arguments.data)})
    for picture in glas.images(arguments.data, patients=everyone, nuclei=False):
        kind = "malignant" if int(picture.labels[0]) else "benign"
        real[kind].append((int(picture.patients[0]), picture_statistics(picture.images[0], glas.MPP)))
    for kind, pictures in real.items():
        found += rows("glas", kind, [numbers for _, numbers in pictures], [patient for patient, _ in pictures])
    drawn: dict[str, list[Numbers]] = {"no tumour": [], "tumour": []}
    exact: dict[str, list[Numbers]] = {kind: [] for kind in KINDS}
    for seed in tqdm(range(arguments.pictures), desc="generate", unit="img", leave=False, mininterval=2):
        field = tissue.field(SIZE, seed, tumour=SHARE * (seed % 2))
        drawn["tumour" if seed % 2 else "no tumour"].append(picture_statistics(field.image, MPP))
        for number, kind in enumerate(KINDS):
            if number != TUMOUR or seed % 2:
                exact[kind].append(exact_statistics(field, number))
    for source, groups in (("generated", drawn), ("generated, exact", exact)):
        for kind, numbers in groups.items():
            found += rows(source, kind, numbers, range(len(numbers)))
    fitted, asked = (tissue.patches(arguments.patches, seed=seed) for seed in (FITTED_SEED, ASKED_SEED))
    for what, features in FEATURES.items():
        leak = colour_leak(fitted, asked, features)
        found.append({"source": "generated", "what": what, "measure": "auc", "n": len(asked), **leak})
    facts = {
        "model": "none",
        "data": "GlaS, all pictures; generated tissue",
        "patches": len(fitted) + len(asked),
        "size": SIZE,
        "share_of_tumour": SHARE,
    }
    save(arguments, sum(len(pictures) for pictures in real.values()) + arguments.pictures, found, **facts)
    for row in found:
        print(f"{row['source']:17} {row['what']:26} {row['measure']:21} {row['mean']:9.4g} ± {row.get('error', 0):.2g}")


if __name__ == "__main__":
    main()
