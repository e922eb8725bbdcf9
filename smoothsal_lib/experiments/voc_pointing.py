"""The pointing game on PASCAL VOC 2007: does a map of a class point at the objects of that class?

python -m smoothsal_lib.experiments.voc_pointing --data FOLDER --model resnet50 --weights FILE --method grad_cam

As in Zhang et al. 2016, arXiv 1608.00507, and "There and Back Again", Rebuffi et al. 2020, arXiv 2004.02866: every
class in a picture of the test set is explained, and the maximum of the map should lie on an object of the class or at
most 15 pixels beside it. What is reported is the mean of the classes' hit rates, on all pairs of picture and class and
on the difficult ones. Beside the maps stand two that need no network: the centre of the picture, and chance.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from smoothsal_lib.datasets.voc import CLASSES, DESCRIPTION, Picture, Voc
from smoothsal_lib.evaluate import fingerprint
from smoothsal_lib.experiments.command import save
from smoothsal_lib.experiments.estimate import estimate
from smoothsal_lib.explain import explain
from smoothsal_lib.extract import REDUCTIONS, on_picture, saliency_map
from smoothsal_lib.layers import HiddenLayer, hidden_layers
from smoothsal_lib.metrics.localisation import TOLERANCE, accuracy_by_class, energy_in_box, pointing_game
from smoothsal_lib.models import POSITIONS, VOC_FILES, load_voc_model, normalize

NONE = "none"
CENTRE, CHANCE = "centre", "chance"
LAYERS = {"resnet50": ["layer4.2"], "vgg16": ["features.29"]}  # the last maps, where Grad-CAM is played
PIXELS = 15  # of tolerance, counted in pictures as they were before they were resized
SUBSETS = ("all", "difficult")


@dataclass(frozen=True)
class Way:
    """One way to a map; ``None`` where it takes no network."""

    method: str
    fix: str | None = None
    layer: str | None = None
    reduce: str | None = None


@dataclass
class Found:
    """What was measured, one entry for each pair of a picture and a class in it."""

    labels: list[int] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    values: dict[tuple[Way, str], list[Tensor]] = field(default_factory=dict)


def play(
    model: nn.Module,
    pictures: Voc,
    methods: Sequence[str],
    layers: Sequence[str],
    fixes: Sequence[str],
    reductions: Sequence[str],
    settings: Mapping[str, Any] | None = None,
) -> Found:
    """Explain every class of every picture, and see where the maps point.

    A class whose objects are all marked as difficult by the annotators is not asked for (:attr:`Objects.counts`).

    Args:
        model: a network with logits (N, 20), in the precision and on the device it is to run.
        pictures: the test set.
        methods: names for :func:`smoothsal_lib.explain`.
        layers: names of layers. Not ``"all"``: which layers have maps depends on the picture's size.
        fixes: names of fixes, ``"none"`` among them.
        reductions: names for :func:`smoothsal_lib.saliency_map`.
        settings: further arguments of :func:`smoothsal_lib.explain`.

    Raises:
        TypeError, ValueError, NotImplementedError: for what :func:`smoothsal_lib.explain` refuses, and for
            reductions that do not exist.
    """
    parameter = next(model.parameters())
    found, listed = Found(), {}
    for picture in tqdm(pictures, desc="pointing game", unit="img", total=len(pictures), mininterval=2):
        asked = [objects for objects in picture.objects if objects.counts]
        if not asked:
            continue
        found.labels += [objects.label for objects in asked]
        found.difficult += [picture.is_difficult(objects) for objects in asked]
        boxes = pad_sequence([objects.boxes for objects in asked], batch_first=True, padding_value=math.nan)
        x = normalize(picture.image.to(parameter)[None])
        size = (x.shape[2], x.shape[3])
        if size not in listed:
            listed[size] = hidden_layers(model, x)
        for way, maps in without_network(size, len(asked)).items():
            _score(found, way, maps, boxes, picture)
        target = torch.tensor([objects.label for objects in asked], device=x.device)
        for method in dict.fromkeys(methods):
            for fix in dict.fromkeys(fixes):
                # One picture as many times as it has classes: pictures of other sizes could not be in the same batch.
                several = x.repeat(len(asked), 1, 1, 1)
                repair = None if fix == NONE else fix
                attributions = explain(model, several, target, layers, method, repair, **(settings or {}))
                for layer, attribution in attributions.items():
                    for reduce in dict.fromkeys(reductions):
                        maps = saliency_map(attribution, reduce)
                        maps = on_picture(maps, size, layer_like(maps, listed[size]))
                        _score(found, Way(method, fix, layer, reduce), maps.cpu(), boxes, picture)
    return found


def without_network(size: tuple[int, int], count: int) -> dict[Way, Tensor]:
    """Maps (count, H, W) that say nothing about the picture: its centre, and the same value everywhere."""
    rows, columns = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in size)
    distance = rows[:, None].square() + columns.square()
    maps = {Way(CENTRE): -distance, Way(CHANCE): torch.ones(size, dtype=torch.float64)}
    return {way: one.expand(count, *size) for way, one in maps.items()}


def layer_like(maps: Tensor, listed: Mapping[str, HiddenLayer]) -> HiddenLayer | None:
    """A hidden layer with maps of this size, where those of one that is not listed, such as a stage, stand as well."""
    return next((one for one in listed.values() if one.shape[1:] == maps.shape[1:]), None)


def _score(found: Found, way: Way, maps: Tensor, boxes: Tensor, picture: Picture) -> None:
    shorter, shorter_before = min(maps.shape[1:]), min(picture.size)
    measured = {
        "pointing_game": pointing_game(maps, boxes, TOLERANCE * shorter),
        "pointing_game_original": pointing_game(maps, boxes, PIXELS * shorter / shorter_before),
        "energy_in_box": energy_in_box(maps, boxes),
    }
    for measure, values in measured.items():
        if way.method != CENTRE or measure != "energy_in_box":  # a place has no energy
            found.values.setdefault((way, measure), []).append(values.double())


def rows(found: Found) -> Iterator[dict[str, object]]:
    """The rows of the record: for every way, subset and measure the mean over the classes, then each class.

    The mean's error is that of the classes' hit rates, sqrt(Σ error²) / classes. Classes without a pair are left out.
    """
    labels = torch.tensor(found.labels)
    chosen = {"all": torch.ones(len(labels), dtype=torch.bool), "difficult": torch.tensor(found.difficult)}
    for (way, measure), parts in found.values.items():
        values = torch.cat(parts)
        for subset in SUBSETS:
            where = chosen[subset]
            if not bool(where.any()):
                continue
            head = {**vars(way), "subset": subset, "measure": measure}
            each = {
                label: estimate(values[where & (labels == label)]) | {"n": int((where & (labels == label)).sum())}
                for label in labels[where].unique().tolist()
            }
            mean = accuracy_by_class(values[where], labels[where], len(CLASSES)).nanmean().item()
            error = math.sqrt(sum(one["error"] ** 2 for one in each.values())) / len(each)
            total = {"mean": float(f"{mean:.6g}"), "error": float(f"{error:.6g}"), "n": int(where.sum())}
            yield head | {"class": "mean", "classes": len(each)} | total
            for label, one in each.items():
                yield head | {"class": CLASSES[label]} | one


def parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    made.add_argument("--data", type=Path, help="folder with VOCdevkit/VOC2007 (default: $SMOOTHSAL_DATA)")
    made.add_argument("--download", action="store_true", help="fetch the test set (430 MB) where it is not there")
    made.add_argument("--model", choices=list(VOC_FILES), default="resnet50", help="(default: %(default)s)")
    published = " or ".join(VOC_FILES.values())
    made.add_argument("--weights", type=Path, required=True, help=f"{published}, or a state of torchvision's network")
    made.add_argument("--positions", choices=POSITIONS, default=POSITIONS[0], help="see load_voc_model")
    made.add_argument("--method", nargs="+", default=["gradient"], help="for explain (default: gradient)")
    made.add_argument("--layers", nargs="+", help=f"names, or input (default: {LAYERS})")
    made.add_argument("--fix", nargs="+", default=[NONE], help="none, backward, ... (default: none)")
    made.add_argument("--reduce", nargs="+", default=["mean", "max_abs"], choices=list(REDUCTIONS), metavar="REDUCE",
                      help=f"out of {', '.join(REDUCTIONS)} (default: mean max_abs)")  # fmt: skip
    made.add_argument("--sampling", help="for explain: smoothgrad, ... (default: one look at the picture)")
    made.add_argument("--meta", type=float, help="for explain: a learning rate (default: the network as it is)")
    made.add_argument("--limit", type=int, help="play with so many pictures (default: all)")
    made.add_argument("--out", type=Path, default=Path("data/results"), help="where voc_pointing_MODEL.json goes")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return made


def command(arguments: argparse.Namespace) -> str:
    """What made a record, without what is true on one machine only."""
    words = ["smoothsal_lib.experiments.voc_pointing"]
    for option, value in vars(arguments).items():
        if value is not None and option not in ("data", "download", "out", "device"):
            values = value if isinstance(value, list) else [value]
            words += [f"--{option}", *(one.name if isinstance(one, Path) else str(one) for one in values)]
    return " ".join(words)


def main(argv: list[str] | None = None) -> None:
    """The command line; ``--help`` lists the options."""
    arguments = parser().parse_args(argv)
    arguments.layers = arguments.layers or LAYERS[arguments.model]
    arguments.command, arguments.name = command(arguments), f"voc_pointing_{arguments.model}"
    model = load_voc_model(arguments.model, arguments.weights, arguments.positions).to(arguments.device)
    pictures = Voc(arguments.data, arguments.limit, download=arguments.download)
    settings = {name: getattr(arguments, name) for name in ("sampling", "meta") if getattr(arguments, name) is not None}
    found = play(model, pictures, arguments.method, arguments.layers, arguments.fix, arguments.reduce, settings)
    facts = {
        "model": f"{arguments.model} of PASCAL VOC",
        "data": DESCRIPTION,
        "weights": fingerprint(model),
        "pairs": {"all": len(found.labels), "difficult": sum(found.difficult)},
        "tolerance": {
            "pointing_game": "15 pixels where the shorter side has 224",
            "pointing_game_original": f"{PIXELS} pixels of the picture before it was resized",
        },
    }
    table = list(rows(found))
    save(arguments, len(pictures), table, **facts)
    for row in table:
        if row["class"] == "mean":
            way = " ".join(str(row[key]) for key in ("method", "fix", "layer", "reduce") if row[key] is not None)
            print(f"{way:40} {row['subset']:9} {row['measure']:22} {row['mean']:.4f} ± {row['error']:.4f}")


if __name__ == "__main__":
    main()
