"""Does a repair put saliency on nuclei, or just blur it? Maps of the tumour detectors against masks of the tissue.

python -m smoothsal_lib.experiments.structures --data FOLDER --out data/results

Per layer, fix and method: the share of a map's positive values on each structure, whether its maximum lies on tumour
and on tumour nuclei, and its average precision as a detector of their pixels; beside what chance scores, the area.

A blur needs no network. So every map of a repaired network is compared with the map of the unrepaired one, blurred by
the Gaussian that makes it as smooth: patch by patch, the one whose total variation comes nearest. What the repaired map
scores above it is what the repair adds beyond smoothness. Two more maps say how much a number is worth: random values,
and the amount of hematoxylin, the dye that colours nuclei. In GlaS the masks of nuclei were themselves derived from
that dye, so that its map finds them by construction; generated tissue has exact masks.

All this is measured on patches with tumour that the detector calls tumour, the part "hits". The other parts compare
these with the detector's errors, and with what it rightly calls normal: what the saliency of each group lies on, and
what the values lie on that speak against tumour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor

from smoothsal_lib.datasets.patches import Patches
from smoothsal_lib.experiments.command import options, save
from smoothsal_lib.experiments.detectors import (
    BATCH,
    GROUPS,
    HEMATOXYLIN,
    NONE,
    RANDOM,
    SCORED,
    SOURCES,
    TARGET,
    Detector,
    attributed,
    detectors,
    evenly,
    hematoxylin,
    in_pieces,
)
from smoothsal_lib.experiments.discriminativity import prepared
from smoothsal_lib.experiments.estimate import estimate
from smoothsal_lib.extract import on_picture, saliency_map
from smoothsal_lib.filters import low_pass
from smoothsal_lib.layers import INPUT, HiddenLayer, hidden_layers
from smoothsal_lib.ledger import Ledger
from smoothsal_lib.metrics import checkerboard_energy, total_variation
from smoothsal_lib.metrics.sanity import random_maps
from smoothsal_lib.metrics.structures import area_shares, average_precision, pointing_at, structure_shares
from smoothsal_lib.training.detector import TEST_SEED

TRUE_POSITIVE = GROUPS[0]
POINTED_AT = ("tumour", "tumour_nuclei")
READINGS = (  # methods, and how their channels are reduced
    ("gradient", "mean"),
    ("gradient", "positive_norm"),
    ("gradient_x_activation", "mean"),
    ("deeplift", "mean"),
    ("deeplift_from_glass", "mean"),
    ("guided_backprop", "mean"),
    ("grad_cam", "mean"),
    ("layer_cam", "mean"),
    ("normgrad", "mean"),
)
SIGNED = ("deeplift_from_glass", "mean")  # whose negative values speak against tumour
OF_GROUPS = (("gradient", "positive_norm"), SIGNED, ("grad_cam", "mean"))
FIXES_OF_GROUPS = (NONE, "backward")  # of the detector's errors, and what else is not a hit
CUTOFFS = tuple(2 ** (-k / 4) for k in range(21))  # of the blurs, from 1 down to 1/32 cycles per pixel of the layer
AREA, AMONG = "area", "tumour_among_nuclei"
MEASURED_BY_AREA = ("share", "share_against", "pointing", "average_precision", AMONG)  # what a constant map scores


@dataclass(frozen=True)
class Quantity:
    """What is measured of every patch.

    Attributes:
        measure: its name.
        structure: of what; ``None`` for measures of the map alone.
        layer: where the map comes from; ``None`` for what no map has a part in.
        fix: how the network is repaired.
        method: how the map was made.
        reduce: how its channels were reduced.
        blurred: whether it is the unrepaired map, made as smooth as that of ``fix``.
    """

    measure: str
    structure: str | None = None
    layer: str | None = None
    fix: str = NONE
    method: str | None = None
    reduce: str | None = None
    blurred: bool = False


Values = dict[Quantity, Tensor]  # one number a patch


class Blurs:
    """A map, and the same blurred more and more.

    Args:
        maps: (N, h, w).
    """

    def __init__(self, maps: Tensor) -> None:
        self.maps = torch.stack([maps, *(low_pass(maps, cutoff) for cutoff in CUTOFFS)])  # (K, N, h, w)
        self.roughness = torch.stack([total_variation(some[:, None]) for some in self.maps])

    def as_smooth_as(self, maps: Tensor) -> Tensor:
        """For each of N other maps (N, h, w) that of the K whose total variation is nearest to its own: (N, h, w)."""
        nearest = (self.roughness - total_variation(maps[:, None])).abs().argmin(0)
        return self.maps[nearest, torch.arange(len(nearest), device=nearest.device)]


def scores(
    maps: Tensor, masks: Mapping[str, Tensor], layer: HiddenLayer | None
) -> dict[tuple[str, str | None], Tensor]:
    """All measures of maps, ``{(measure, structure): (N,)}``.

    Args:
        maps: (N, h, w), as large as the layer.
        masks: ``{structure: (N, H, W) bool}``.
        layer: where the maps' units stand; ``None`` for maps of the picture itself.
    """
    overlay = _overlay(maps, masks, layer)
    found: dict[tuple[str, str | None], Tensor] = {("total_variation", None): total_variation(maps[:, None])}
    if min(maps.shape[1:]) >= 4:  # it is not defined for maps of fewer than two cells a side
        found["checkerboard_energy", None] = checkerboard_energy(maps[:, None])
    energy = structure_shares(overlay, masks)
    found |= {("share", name): share for name, share in energy.items()}
    found[AMONG, None] = among_nuclei(energy, masks)
    for name in POINTED_AT:
        found["pointing", name] = pointing_at(overlay, masks[name])
        found["average_precision", name] = average_precision(overlay, masks[name])
    return found


def shares(
    maps: Tensor, masks: Mapping[str, Tensor], layer: HiddenLayer | None, signed: bool
) -> dict[tuple[str, str | None], Tensor]:
    """What maps lie on and, of signed ones, what their negative values lie on; the rest is as for :func:`scores`."""
    overlay = _overlay(maps, masks, layer)
    parts = {"share": overlay} | ({"share_against": -overlay} if signed else {})
    return {
        (measure, name): share
        for measure, part in parts.items()
        for name, share in structure_shares(part, masks).items()
    }


def _overlay(maps: Tensor, masks: Mapping[str, Tensor], layer: HiddenLayer | None) -> Tensor:
    height, width = next(iter(masks.values())).shape[1:]
    return on_picture(maps, (height, width), layer)


def among_nuclei(energy: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
    """(N,) of what lies on nuclei the share on tumour nuclei; NaN where a patch has one kind only, or nothing is there.

    A map that shows nuclei, whichever they are, has only the area's share here.
    """
    tumour, normal = (
        masks[name].flatten(1).any(1).to(energy[name].device) for name in ("tumour_nuclei", "normal_nuclei")
    )
    share = energy["tumour_nuclei"] / (energy["tumour_nuclei"] + energy["normal_nuclei"])  # 0 / 0 where nothing lies
    return torch.where(tumour & normal, share, torch.nan)


def areas(masks: Mapping[str, Tensor]) -> Values:
    """What a constant map scores."""
    found = area_shares(masks)
    named = {Quantity(AREA, name): share for name, share in found.items()}
    return named | {Quantity(AREA, AMONG): among_nuclei(found, masks)}


def of_hits(detector: Detector, some: Patches, start: int) -> Values:
    """Everything, of patches that are rightly called tumour; and of each map, the unrepaired one made as smooth."""
    model, masks = detector.model, some.masks
    x = prepared(some.images, model)
    places = hidden_layers(model, x)
    layers = (INPUT, *places)
    found = areas(masks)
    controls = {RANDOM: random_maps(x[:, 0], start), HEMATOXYLIN: hematoxylin(some.images).to(x)}
    for method, maps in controls.items():
        found |= _named(scores(maps, masks, None), Quantity("", None, INPUT, NONE, method))
    for method in dict.fromkeys(method for method, _ in READINGS):
        attributions = {
            fix: attributed(model, x, TARGET, layers, method, repair) for fix, repair in detector.fixes.items()
        }
        for layer in layers:
            for reduce in (reduce for name, reduce in READINGS if name == method):
                blurs = Blurs(saliency_map(attributions[NONE][layer], reduce))
                for fix, attribution in attributions.items():
                    key = Quantity("", None, layer, fix, method, reduce)
                    maps = saliency_map(attribution[layer], reduce)
                    found |= _named(scores(maps, masks, places.get(layer)), key)
                    if fix != NONE:
                        smooth = blurs.as_smooth_as(maps)
                        found |= _named(scores(smooth, masks, places.get(layer)), replace(key, blurred=True))
    return found


def of_group(detector: Detector, some: Patches, start: int) -> Values:
    """What saliency lies on, and what speaks against tumour lies on, of fewer maps: to compare groups of patches."""
    model, masks = detector.model, some.masks
    x = prepared(some.images, model)
    places = hidden_layers(model, x)
    found = areas(masks)
    for fix in FIXES_OF_GROUPS:
        for method, reduce in OF_GROUPS:
            for layer, attribution in attributed(model, x, TARGET, SCORED, method, detector.fixes[fix]).items():
                maps, signed = saliency_map(attribution, reduce), (method, reduce) == SIGNED
                key = Quantity("", None, layer, fix, method, reduce)
                found |= _named(shares(maps, masks, places.get(layer), signed), key)
    return found


def _named(found: Mapping[tuple[str, str | None], Tensor], key: Quantity) -> Values:
    return {replace(key, measure=measure, structure=name): numbers.cpu() for (measure, name), numbers in found.items()}


def rows(values: Mapping[Quantity, Tensor], clusters: Tensor) -> Iterator[dict[str, object]]:
    """The rows of the record: each map compared with chance, with the unrepaired one, and with that made as smooth.

    Patches in which a measure is not defined are left out of its row; ``n`` says how many are left. What is nowhere in
    these patches has no row.

    Args:
        values: (N,) each.
        clusters: (N,) which patches belong together.
    """
    for one, numbers in values.items():
        area = values.get(Quantity(AREA, AMONG if one.measure == AMONG else one.structure))
        defined = ~numbers.isnan()
        if one.blurred or not bool(defined.any()) or (one.measure == "share" and area is not None and not area.any()):
            continue
        dyed = Quantity(one.measure, one.structure, INPUT, NONE, HEMATOXYLIN)
        rivals = {
            "change": values[replace(one, fix=NONE)] if one.fix != NONE else None,
            "from_blurred": values.get(replace(one, blurred=True)),
            "from_chance": area if one.measure in MEASURED_BY_AREA else None,
            "from_hematoxylin": values.get(dyed) if one.measure in ("average_precision", AMONG) else None,
        }
        axes: dict[str, object] = {name: axis for name, axis in asdict(one).items() if axis is not None}
        del axes["blurred"]
        found = estimate(numbers[defined], groups=clusters[defined])
        for title, rival in rivals.items():
            if rival is None or not bool((both := defined & ~rival.isnan()).any()):
                continue
            difference = estimate(numbers[both], rival[both], clusters[both])
            found |= {title: difference["change"], f"{title}_error": difference["change_error"]}
        yield axes | {"n": int(defined.sum())} | found


def measure(detector: Detector, ledger: Ledger, counts: Mapping[str, int]) -> Iterator[dict[str, object]]:
    """All rows of one detector.

    Args:
        detector: whose.
        ledger: where partial results go.
        counts: on how many patches: everything on ``limit``, and the little that groups are compared by on ``groups``
            of each.
    """
    parts: dict[str, tuple[str, Callable[[Patches, int], Values]]] = {
        "hits": (TRUE_POSITIVE, partial(of_hits, detector)),
        **{group: (group, partial(of_group, detector)) for group in GROUPS},
    }
    for part, (group, run) in parts.items():
        count = counts["limit" if part == "hits" else "groups"]
        chosen = evenly(detector.groups[group].nonzero()[:, 0], count)
        key = f"{detector.source.network}/{part}"
        values = in_pieces(detector.patches[chosen], ledger, key, Quantity, run)
        for row in rows(values, detector.clusters[chosen]):
            yield {"network": detector.source.network, "part": part} | row


def main(argv: list[str] | None = None) -> None:
    """The command line; ``--help`` lists the options."""
    counts = {
        "patches": (800, "take so many of each source"),
        "limit": (150, "measure everything on so many tumour patches that are called so"),
        "groups": (100, "compare the saliency of so many of each group, right and wrong, tumour and none"),
    }
    arguments = options("structures", __doc__, argv, **counts)
    given = {name: getattr(arguments, name) for name in counts}
    found: list[dict[str, object]] = []
    facts, ledgers = {}, []
    for detector in detectors(arguments.data, arguments.patches, arguments.device):
        name = detector.source.network
        settings = given | {"batch": BATCH, "seed": TEST_SEED, "weights": detector.weights}
        ledgers.append(Ledger(arguments.out / f"{arguments.name}.{name}.partial.jsonl", settings))
        found += measure(detector, ledgers[-1], given)
        facts[name] = detector.facts
    save(
        arguments,
        sum(int(one["patches"]) for one in facts.values()),
        found,
        model=", ".join(facts),
        data="; ".join(source.data for source in SOURCES),
        detectors=facts,
    )
    for ledger in ledgers:
        ledger.remove()
    for row in found:
        if row["measure"] == "average_precision" and row["structure"] == "tumour_nuclei" and "from_blurred" in row:
            case = f"{row['network']:14} {row['method']:21} {row['reduce']:13} {row['fix']:10} {row['layer']:9}"
            beyond = f"{row['from_blurred']:+.3f} ± {row['from_blurred_error']:.3f}"
            print(f"{case} {row['mean']:.3f}, above the blur by {beyond}")


if __name__ == "__main__":
    main()
