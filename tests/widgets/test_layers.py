"""What the layer explorer shows is what explain, the measures and the network say, at every place of its sliders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from browser import choose, pixels, set_slider, table
from networks import build
from torch import nn

import smoothsal_lib as sal
from smoothsal_lib import widgets
from smoothsal_lib.fixes import smoothed
from smoothsal_lib.widgets import explorer
from smoothsal_lib.widgets.pictures import Detail, Shades, lut

FIXES = (None, "backward", "forward")
METHODS = ("gradient", "normgrad")


@pytest.fixture(scope="module")
def model():
    return sal.load_model("tiny_resnet")


@pytest.fixture(scope="module")
def cat():
    return sal.load_photo("chelsea", size=64)


@pytest.fixture(scope="module")
def found(model, cat):
    return widgets.layer_explorer(model, *cat, methods=METHODS, fixes=FIXES)


def label(name, attribution) -> str:
    return f"{name} · {attribution.shape[2]} × {attribution.shape[3]}"


def test_axes_are_the_layers_fixes_methods_and_displays(model, cat, found):
    layers = sal.explain(model, cat[0])
    axes = {axis["name"]: axis["labels"] for axis in found.data["axes"]}
    assert axes["layer"] == [label(name, a) for name, a in layers.items()]
    assert axes["fix"] == ["none", "backward", "forward"]
    assert axes["method"] == ["gradient", "normgrad"]
    assert axes["display"] == ["signed", "magnitude"]
    assert found.data["axes"][0]["slider"]


def test_maps_and_numbers_are_those_of_the_library_wherever_the_reader_goes(model, cat, found, visit, tmp_path):
    x, _ = cat
    target = int(model(x).argmax())
    path = tmp_path / "layers.html"
    found.save(path)
    with visit() as visited:
        page = visited.open(path)
        seen = []
        for place, (fix, method, display) in enumerate(
            [(None, "gradient", "magnitude"), ("backward", "gradient", "signed"), ("forward", "normgrad", "magnitude")]
        ):
            maps = {f: sal.explain(model, x, target, method=method, fix=f) for f in FIXES}
            name = list(maps[None])[2 + place]
            set_slider(page, "layer", 2 + place)
            choose(page, "fix", fix or "none")
            choose(page, "method", method)
            choose(page, "display", display)
            reduce = {"signed": "mean", "magnitude": "abs_mean"}[display]
            shown = {f: sal.saliency_map(one[name], reduce)[0].numpy() for f, one in maps.items()}
            limit = max(np.percentile(np.abs(values), 99.5) for values in shown.values())
            levels = Shades(shown[fix], float(limit), display).levels(Detail())
            picture = pixels(page.locator(".sal-view canvas").first)
            np.testing.assert_array_equal(picture, lut(display)[levels])
            rows = table(page)
            assert [row[0] for row in rows[1:]] == ["none", "backward", "forward"]
            for row, f in zip(rows[1:], FIXES, strict=True):
                assert row[1] == f"{float(sal.total_variation(maps[f][name])):.2f}"
                assert float(row[2]) == pytest.approx(float(sal.checkerboard_energy(maps[f][name])), abs=5.1e-4)
                with smoothed(model, f), torch.no_grad():
                    assert row[3] == f"{float(model(x).softmax(1)[0, target]):.2f}"
            assert page.locator("tr[aria-current]").inner_text().startswith(fix or "none")
            seen.append(picture.tobytes())
        assert len(set(seen)) == 3


def test_the_grid_vanishes_when_the_reader_chooses_a_repair(found, visit, tmp_path):
    path = tmp_path / "layers.html"
    found.save(path)
    with visit() as visited:
        page = visited.open(path)
        before, after = (float(row[2]) for row in table(page)[1:3])
        assert before > 0.1 > 0.01 > after  # it begins where the grid is strongest
        first = pixels(page.locator(".sal-view canvas").first)
        choose(page, "fix", "backward")
        assert not np.array_equal(first, pixels(page.locator(".sal-view canvas").first))


def test_a_spectrum_is_completed_by_its_other_half(model, cat, found, visit, tmp_path):
    path = tmp_path / "layers.html"
    found.save(path)
    with visit() as visited:
        page = visited.open(path)
        set_slider(page, "layer", 0)
        picture = pixels(page.locator(".sal-view canvas").nth(2))
    spectrum = sal.power_spectrum(next(iter(sal.explain(model, cat[0], method="gradient", fix=None).values()))[0])
    whole = sal.plot._relative(spectrum)
    assert picture.shape[:2] == whole.shape
    decades = np.log10(np.clip(whole, 0.01, 100)) + 2
    levels = Shades(decades, 4.0, "spectrum").levels(Detail())
    difference = picture[..., :3].astype(int) - lut("spectrum")[levels][..., :3]
    assert np.abs(difference).max() <= 6  # two floating-point ways to the same frequency


def test_units_lie_where_they_stand_on_the_photograph(model, cat):
    found = widgets.layer_explorer(model, *cat, methods=["gradient"], fixes=[None])
    overlays = found.data["panels"][1]["pictures"][::2]
    for (name, layer), overlay in zip(sal.hidden_layers(model, cat[0]).items(), overlays, strict=True):
        left, top, width, height = overlay[4]
        first = (layer.offset[1] + 0.5, layer.offset[0] + 0.5)  # the middle of the pixel under unit (0, 0)
        unit = (width / overlay[0] * 0.64, height / overlay[1] * 0.64)
        assert unit == pytest.approx(layer.stride, abs=1e-3), name
        assert (left * 0.64 + unit[0] / 2, top * 0.64 + unit[1] / 2) == pytest.approx(first, abs=1e-3), name


@pytest.mark.parametrize("name", ["in_place_vgg", "grouped", "functional"])
def test_networks_of_all_kinds_are_walked_through_and_left_as_they_were(name):
    model = build(name).float()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    training = [module.training for module in model.modules()]
    x = torch.randn(1, 3, 16, 16)
    found = widgets.layer_explorer(model, x, np.zeros((16, 16, 3), np.uint8), methods=["gradient"], fixes=[None])
    assert "class " in found.data["panels"][0]["alt"]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == training


def test_a_network_without_a_stride_is_walked_through_as_it_is(cat):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    found = widgets.layer_explorer(model, *cat, methods=["gradient"])
    assert found.data["axes"][1]["labels"] == ["none"]
    with pytest.raises(ValueError, match="no strided convolution"):
        widgets.layer_explorer(model, *cat, methods=["gradient"], fixes=["backward"])
    with pytest.raises(ValueError, match=r"^layers \['3'\]: none has a map of at least 2 x 2 units to show$"):
        widgets.layer_explorer(model, *cat, methods=["gradient"], layers=["3"])


def test_a_detector_with_a_single_logit_gives_its_probability():
    model = sal.load_model("tissue_resnet")
    x = torch.randn(1, 3, 64, 64)
    found = widgets.layer_explorer(model, x, np.zeros((64, 64, 3), np.uint8), methods=["gradient"], fixes=[None])
    assert found.data["table"]["cells"][0][2] == f"{model(x).sigmoid().item():.2f}"


def test_a_surrogate_has_a_label_of_its_own(model, cat):
    fixes = {"as it is": None, "a surrogate": sal.load_surrogate("tiny_resnet")}
    found = widgets.layer_explorer(model, *cat, methods=["gradient"], fixes=fixes)
    assert found.data["axes"][1]["labels"] == list(fixes)


def test_the_input_can_be_one_of_the_layers(model, cat):
    found = widgets.layer_explorer(model, *cat, methods=["gradient"], fixes=[None], layers=["input", "layer1.1"])
    assert found.data["axes"][0]["labels"] == ["input · 64 × 64", "layer1.1 · 32 × 32"]
    assert found.data["panels"][1]["pictures"][0][4] == [0, 0, 100, 100]


def test_detail_goes_before_layers_and_layers_before_giving_up(model, cat, monkeypatch):
    options = {"methods": ["gradient"], "fixes": [None, "backward"]}
    whole = widgets.layer_explorer(model, *cat, **options)
    size = len(whole.html.encode())
    layers = len(whole.data["axes"][0]["labels"])
    monkeypatch.setattr(explorer, "SIZE_LIMIT", size - 1)
    coarser = widgets.layer_explorer(model, *cat, **options)
    assert "colours" in coarser.data["note"] and len(coarser.data["axes"][0]["labels"]) == layers
    monkeypatch.setattr(explorer, "SIZE_LIMIT", int(0.75 * size))
    fewer = widgets.layer_explorer(model, *cat, **options)
    kept = len(fewer.data["axes"][0]["labels"])
    assert kept < layers and f"{kept} of {layers} layers" in fewer.data["note"]
    assert len(fewer.html.encode()) <= 0.75 * size
    monkeypatch.setattr(explorer, "SIZE_LIMIT", 5_000)
    with pytest.raises(ValueError, match="leave out methods or fixes"):
        widgets.layer_explorer(model, *cat, **options)


def test_a_map_of_zeros_is_no_error():
    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(0 * self.conv(x).mean((2, 3)))

    found = widgets.layer_explorer(
        Blind(),
        torch.randn(1, 3, 16, 16),
        np.zeros((16, 16, 3), np.uint8),
        methods=["gradient"],
        fixes=[None],
        layers="conv",
    )
    assert found.data["table"]["cells"][0][:2] == ["0.00", "0.000"]


PHOTO = np.zeros((64, 64, 3), np.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 3, 64, 64)}, r"expected one picture .*\(2, 3, 64, 64\)"),
        ({"photo": PHOTO[:, :48]}, "photograph has 64 x 48 pixels and the picture 64 x 64"),
        ({"methods": "gradient"}, "expected methods and fixes as lists, got 'gradient'"),
        ({"fixes": "backward"}, "expected methods and fixes as lists, got .* and 'backward'"),
        ({"photo": PHOTO.astype(float)}, r"photograph as \(H, W, 3\) uint8"),
        ({"methods": []}, "at least one method and one fix"),
        ({"fixes": []}, "at least one method and one fix"),
        ({"methods": ["magic"]}, "unknown method 'magic'"),
        ({"fixes": ["magic"]}, "magic"),
        ({"target": 1000}, "no class 1000"),
        ({"layers": ["magic"]}, "magic"),
    ],
)
def test_bad_input_is_named(model, changes, message):
    arguments = {"x": torch.zeros(1, 3, 64, 64), "photo": PHOTO, "methods": ["gradient"], "fixes": [None]} | changes
    with pytest.raises(ValueError, match=message) as caught:
        widgets.layer_explorer(model, arguments.pop("x"), arguments.pop("photo"), **arguments)
    assert "\n" not in str(caught.value)
