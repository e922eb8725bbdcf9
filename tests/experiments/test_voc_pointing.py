"""The pointing game from the command line, on a small PASCAL VOC of our own making and a random network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from voc_tree import PICTURES, annotation, plant

import smoothsal_lib as sal
from smoothsal_lib.datasets.voc import CLASSES, Voc
from smoothsal_lib.experiments import voc_pointing
from smoothsal_lib.experiments.voc_pointing import CENTRE, CHANCE, Found, Way, layer_like, play, rows, without_network
from smoothsal_lib.extract import on_picture
from smoothsal_lib.layers import HiddenLayer


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return plant(tmp_path / "data")


class Colours(nn.Module):
    """Each class looks at one place: that of its number, in a row of 20 on the upper border."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 20, 1, bias=False)
        nn.init.ones_(self.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[:, :, 0, :20].diagonal(dim1=1, dim2=2)


def test_every_class_is_explained_and_scored_on_its_own_boxes(root: Path):
    """000007 has dogs (class 11) from (9, 19), one from (4, 4) to (7, 7), and a person (14) in the upper half."""
    found = play(Colours(), Voc(root), ["gradient"], ["input"], ["none"], ["max_abs"])
    assert [CLASSES[label] for label in found.labels] == ["dog", "person", "cat", "aeroplane"]
    assert found.difficult == [True, False, False, True]  # the cat is small, but alone
    way = Way("gradient", "none", "input", "max_abs")
    # Class c points at (c, 0): the dog's nearest box is (4, 4) to (7, 7), the cat's far off, the aeroplane's at (1, 2).
    assert torch.cat(found.values[way, "pointing_game"]).tolist() == [1, 1, 0, 1]
    assert torch.cat(found.values[way, "energy_in_box"]).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("y_min", "row", "hits"), [(15, 13, [1, 1]), (16, 14, [1, 1]), (17, 15, [1, 0]), (18, 16, [0, 0])]
)
def test_the_tolerance_is_15_pixels_at_224_or_of_the_original(root: Path, y_min: int, row: int, hits: list[int]):
    """The dog below (11, 0), where the map points; 15 pixels of the original, which has 240, are 14 at 224."""
    path = root / "VOCdevkit" / "VOC2007" / "Annotations" / "000007.xml"
    path.write_text(annotation("000007", (300, 240), [("dog", 1, y_min, 40, 60, 0)]))
    assert Voc(root)[0].objects[0].boxes[0, 1] == row
    found = play(Colours(), Voc(root, limit=1), ["gradient"], ["input"], ["none"], ["max_abs"])
    way = Way("gradient", "none", "input", "max_abs")
    assert [found.values[way, name][0].item() for name in ("pointing_game", "pointing_game_original")] == hits


def test_the_centre_and_chance_need_no_network():
    maps = without_network((5, 8), 2)
    centre = maps[Way(CENTRE)]
    assert centre.shape == maps[Way(CHANCE)].shape == (2, 5, 8)
    assert (centre[1] == centre[1].max()).nonzero().tolist() == [[2, 3], [2, 4]]
    assert maps[Way(CHANCE)].unique().tolist() == [1]


def test_a_layer_that_is_not_listed_stands_where_those_of_its_size_do():
    listed = {"layer4.2": HiddenLayer("layer4.2", (6, 1, 2), (32, 32), (2.0, 2.0))}
    one = torch.tensor([[[0.0, 1.0]]])
    found = on_picture(one, (40, 64), layer_like(one, listed))
    assert found.shape == (1, 40, 64)
    assert found[0, 7, [2, 18, 34, 60]].tolist() == [0, 0.5, 1, 1]
    other = torch.zeros(1, 2, 2)
    assert on_picture(other, (40, 64), layer_like(other, listed)).shape == (1, 40, 64)
    same = torch.randn(1, 40, 64)
    assert on_picture(same, (40, 64), layer_like(same, listed)) is same


def test_the_mean_is_over_classes():
    way = Way("gradient", "none", "input", "mean")
    values = [torch.tensor([1.0, 0]), torch.tensor([1.0, 1, 0.5])]
    found = Found([3, 3, 3, 3, 7], [False, True, False, False, False], {(way, "pointing_game"): values})
    table = {(row["subset"], row["class"]): row for row in rows(found)}
    assert set(table) == {
        ("all", "mean"),
        ("all", "boat"),
        ("all", "cat"),
        ("difficult", "mean"),
        ("difficult", "boat"),
    }
    boat, mean = table["all", "boat"], table["all", "mean"]
    assert (boat["mean"], boat["n"], boat["error"]) == (0.75, 4, 0.25)
    assert (mean["mean"], mean["n"], mean["classes"], mean["error"]) == (0.625, 5, 2, 0.125)
    assert table["difficult", "mean"]["mean"] == 0 and table["difficult", "mean"]["n"] == 1
    assert mean["method"] == "gradient" and mean["reduce"] == "mean"


def test_record(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    torch.save(resnet50(num_classes=20).state_dict(), tmp_path / "random.pth")
    places = ["--data", str(root), "--out", str(tmp_path), "--device", "cpu", "--weights", str(tmp_path / "random.pth")]
    chosen = ["--method", "gradient", "--layers", "layer4.2", "layer3", "--fix", "none", "backward"]
    voc_pointing.main([*places, *chosen])
    record = json.loads((tmp_path / "voc_pointing_resnet50.json").read_text())
    assert {"versions", "device", "date", "weights"} <= set(record)
    assert record["command"] == (
        "python -m smoothsal_lib.experiments.voc_pointing --model resnet50 --weights random.pth --positions mean "
        "--method gradient --layers layer4.2 layer3 --fix none backward --reduce mean max_abs"
    )
    assert (record["model"], record["data"]) == ("resnet50 of PASCAL VOC", "PASCAL VOC 2007, test")
    assert (record["images"], record["pairs"]) == (len(PICTURES), {"all": 4, "difficult": 2})
    keys = ("method", "fix", "layer", "reduce", "subset", "measure", "class")
    table = {tuple(row[key] for key in keys): row for row in record["rows"]}
    ways = 1 * 2 * 2 * 2 * 3 + 3 + 2  # fixes, layers, reductions and measures; chance; the centre, without energy
    assert len(table) == len(record["rows"]) == ways * ((1 + 4) + (1 + 2))  # a mean, and each class of both subsets
    for key, row in table.items():
        classes = [table[(*key[:-1], name)] for name in CLASSES if (*key[:-1], name) in table]
        if key[-1] == "mean":
            assert row["mean"] == pytest.approx(sum(one["mean"] for one in classes) / len(classes), abs=1e-5)
            assert row["n"] == sum(one["n"] for one in classes) and row["classes"] == len(classes)
    # The cat is explained by hand; its picture is the only one with the class. Behind layer4 nothing depends on it.
    model = resnet50(num_classes=20).eval()
    model.load_state_dict(torch.load(tmp_path / "random.pth"))
    picture = Voc(root)[1]
    x = sal.models.normalize(picture.image[None])
    for fix in ("none", "backward"):
        one = sal.explain(model, x, 7, "layer3", "gradient", None if fix == "none" else fix)["layer3"].abs().amax(1)
        overlay = sal.extract.resize_map(one, (280, 224), sal.hidden_layers(model, x)["layer3.5"])
        expected = sal.metrics.localisation.energy_in_box(overlay, picture.objects[0].boxes)
        row = table["gradient", fix, "layer3", "max_abs", "all", "energy_in_box", "cat"]
        assert row["mean"] == pytest.approx(expected.item(), rel=1e-4)
    chance = table[CHANCE, None, None, None, "all", "energy_in_box", "cat"]
    assert chance["mean"] == pytest.approx(37 * 47 / (280 * 224), rel=1e-4)
    printed = capsys.readouterr().out
    assert "gradient backward layer3 max_abs" in printed and "±" in printed


def test_bad_names_are_one_line(root: Path):
    for arguments, message in (
        ((["grad"], ["input"], ["none"], ["mean"]), "^unknown method 'grad'"),
        ((["gradient"], ["all"], ["none"], ["mean"]), "^no layer 'all' in this Colours"),
        ((["gradient"], ["input"], ["backwards"], ["mean"]), "^unknown fix 'backwards'"),
        ((["gradient"], ["input"], ["none"], ["most"]), "^unknown reduction 'most'"),
    ):
        with pytest.raises(ValueError, match=message):
            play(Colours(), Voc(root), *arguments)
