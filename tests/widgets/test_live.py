"""The live explorer follows its fields, says what goes wrong, and leaves a reader's network as it was."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import torch
from networks import build
from PIL import Image

import smoothsal_lib as sal
from smoothsal_lib import widgets
from smoothsal_lib.datasets.photos import photo_names
from smoothsal_lib.widgets import live
from smoothsal_lib.widgets.explorer import Explorer

OPTIONS = {"methods": ["gradient"], "fixes": [None, "backward"], "size": 64}


@pytest.fixture(autouse=True)
def shown(monkeypatch) -> list:
    """The arguments of every explorer that was made, instead of the explorers, which take time."""
    calls = []

    def explorer(model, x, photo, **options):
        calls.append({"model": model, "x": x, "photo": photo} | options)
        return Explorer("choices", f"explorer {len(calls)}", {})

    monkeypatch.setattr(live, "layer_explorer", explorer)
    return calls


def fields(box) -> dict:
    return {child.description: child for child in box.children if getattr(child, "description", "")}


def status(box) -> str:
    return next(child.value for child in box.children if type(child).__name__ == "HTML")


def png(colour=(250, 30, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (80, 70), colour).save(file, "png")
    return file.getvalue()


def test_it_begins_with_the_cat_and_the_first_of_five_classes(shown, capsys):
    box = widgets.live_explorer("tiny_resnet", **OPTIONS)
    x, _ = sal.load_photo("chelsea", size=64)
    assert torch.equal(shown[0]["x"], x)
    (five,) = sal.top_classes(sal.load_model("tiny_resnet"), x)
    options = fields(box)["class"].options
    assert [label for label, _ in options] == [f"{name} ({chance:.0%})" for name, chance in five]
    assert shown[0]["target"] == options[0][1]
    assert shown[0]["methods"] == ["gradient"] and shown[0]["fixes"] == [None, "backward"]
    assert "explorer 1" in capsys.readouterr().out
    assert "64 × 64" in status(box)


def test_every_field_makes_one_new_explorer(shown):
    box = widgets.live_explorer("tiny_resnet", **OPTIONS)
    field = fields(box)
    assert [label for label, _ in field["picture"].options] == photo_names()
    field["picture"].value = "coffee"
    assert len(shown) == 2 and torch.equal(shown[1]["x"], sal.load_photo("coffee", size=64)[0])
    third = field["class"].options[2][1]
    field["class"].value = third
    assert len(shown) == 3 and shown[2]["target"] == third
    field["network"].value = "tissue_resnet"
    assert len(shown) == 4 and shown[3]["model"] is not shown[2]["model"]
    assert [label.partition(" (")[0] for label, _ in field["class"].options] == shown[3]["model"].categories


@pytest.mark.parametrize("form", ["ipywidgets 7", "ipywidgets 8"])
def test_a_picture_is_uploaded_in_the_form_of_either_version(form, shown):
    box = widgets.live_explorer("tiny_resnet", **OPTIONS)
    new = {"name": "red.png", "type": "image/png", "size": len(png()), "content": memoryview(png())}

    class Upload:
        value = {"red.png": {"content": png()}} if form == "ipywidgets 7" else (new,)

    owner = fields(box)["picture"]._trait_notifiers["value"]["change"][-1].__self__
    owner.upload = Upload()
    owner.on_upload()
    assert shown[-1]["photo"].shape == (64, 64, 3)
    np.testing.assert_array_equal(shown[-1]["photo"][0, 0], (250, 30, 30))
    field = fields(box)["picture"]
    assert field.label == "your own picture" and len(shown) == 2
    field.value = "coffee"
    assert torch.equal(shown[-1]["x"], sal.load_photo("coffee", size=64)[0])
    field.label = "your own picture"
    np.testing.assert_array_equal(shown[-1]["photo"][0, 0], (250, 30, 30))
    owner.upload.value = {}
    owner.on_upload()
    assert len(shown) == 4


def test_what_goes_wrong_is_said_and_the_fields_stay_usable(shown):
    box = widgets.live_explorer("tiny_resnet", **OPTIONS)
    field = fields(box)
    field["network"].value = "magic"
    assert "unknown model &#x27;magic&#x27;" in status(box) and len(shown) == 1
    field["network"].value = "tiny_resnet"
    owner = field["picture"]._trait_notifiers["value"]["change"][-1].__self__
    owner.upload = type("Upload", (), {"value": ({"content": b"no picture"},)})()
    owner.on_upload()
    assert "10 bytes are no picture" in status(box) and len(shown) == 2
    field["picture"].value = "coffee"
    assert len(shown) == 3 and "64 × 64" in status(box)


def test_what_cannot_be_had_is_not_what_was_there_before(shown):
    box = widgets.live_explorer("tiny_resnet", **OPTIONS)
    field = fields(box)
    field["network"].value = "magic"
    assert field["class"].options == () and field["class"].value is None
    field["picture"].value = "coffee"  # which no network looks at
    assert len(shown) == 1 and "magic" in status(box)
    field["network"].value = "tiny_resnet"
    assert len(shown) == 2 and torch.equal(shown[1]["x"], sal.load_photo("coffee", size=64)[0])
    owner = field["picture"]._trait_notifiers["value"]["change"][-1].__self__
    owner.upload = type("Upload", (), {"value": ({"content": b"no picture"},)})()
    owner.on_upload()
    assert field["class"].options == ()


def test_a_network_of_ones_own_has_no_field_and_stays_as_it_was(shown):
    model = build("grouped").float().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    box = widgets.live_explorer(model, methods=["gradient"], fixes=[None], size=16)
    assert "network" not in fields(box)
    assert shown[0]["model"] is model and shown[0]["x"].shape == (1, 3, 16, 16)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_pictures_have_the_size_that_suits_the_network(shown):
    widgets.live_explorer("tiny_resnet", methods=["gradient"])
    widgets.live_explorer(build("residual").float(), methods=["gradient"])
    assert [call["x"].shape[2] for call in shown] == [128, 224]


def test_the_environment_chooses_the_network(shown, monkeypatch):
    monkeypatch.setenv("SMOOTHSAL_MODEL", "tissue_resnet")
    assert fields(widgets.live_explorer(**OPTIONS))["network"].value == "tissue_resnet"


def test_the_real_explorer_is_what_is_shown(monkeypatch, capsys):
    monkeypatch.setattr(live, "layer_explorer", widgets.layer_explorer)
    widgets.live_explorer("tiny_resnet", **OPTIONS)
    assert "Layer explorer: choose layer, fix, method" in capsys.readouterr().out


@pytest.mark.parametrize("wait", [0, 300])
def test_the_explorer_is_built_where_its_html_is_put_on_the_page_later(wait, tmp_path, visit, monkeypatch):
    displayed = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: displayed.append(data))
    monkeypatch.setattr(live, "layer_explorer", lambda *_, **__: widgets.taps())
    widgets.live_explorer("tiny_resnet", **OPTIONS)
    path = tmp_path / "page.html"
    path.write_text("<!doctype html><meta charset=utf-8><body></body>", "utf-8")
    with visit() as visited:
        page = visited.open(path)
        page.evaluate(
            """([html, wait]) => {
                const output = document.createElement("div");
                output.innerHTML = html;
                setTimeout(() => document.body.append(output), wait);
            }""",
            [displayed[0]["text/html"], wait],
        )
        page.get_by_role("slider", name="kernel").wait_for()
        assert page.locator(".sal-panels").count() == 1


def test_missing_ipywidgets_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ModuleNotFoundError, match="pip install ipywidgets"):
        widgets.live_explorer()
