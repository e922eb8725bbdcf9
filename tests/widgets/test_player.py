"""What the player shows at a step is the picture that the network was asked about, and the score that it gave."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import pytest
import torch
from browser import choose, pixels, set_slider, table

import smoothsal_lib as sal
from smoothsal_lib import widgets
from smoothsal_lib.metrics.faithfulness import baseline_images, ranking
from smoothsal_lib.metrics.sanity import random_maps
from smoothsal_lib.widgets import explorer

STEPS = 7


@pytest.fixture(scope="module")
def model():
    return sal.load_model("tiny_resnet")


@pytest.fixture(scope="module")
def x():
    return sal.load_photo("chelsea", size=64)[0]


@pytest.fixture(scope="module")
def maps(model, x):
    found = sal.explain(model, x, layers=["input", "layer3.1"], method="deeplift", fix=None)
    return {"DeepLift, input": found["input"], "DeepLift, layer3.1": found["layer3.1"], "random": random_maps(x[:, 0])}


def exchanged(x, order, share: int, before, after) -> np.ndarray:
    """The picture with the first pixels exchanged, by hand, in colours."""
    count = round(share * 64 * 64 / STEPS)
    picture = before.clone().flatten(2)
    picture[..., order[:count]] = after.flatten(2)[..., order[:count]]
    return sal.plot.in_colours(picture.view(x.shape))[0]


def test_pictures_curves_and_areas_are_those_of_the_library(model, x, maps, visit, tmp_path):
    path = tmp_path / "player.html"
    widgets.insertion_player(model, x, maps, steps=STEPS).save(path)
    target = int(model(x).argmax())
    games = {
        "insertion": (sal.insertion(model, x, maps, target, STEPS), baseline_images(x, "blur"), x),
        "deletion": (sal.deletion(model, x, maps, target, STEPS), x, baseline_images(x, "zero")),
    }
    seen = set()
    with visit() as visited:
        page = visited.open(path)
        for game, name, step in [
            ("insertion", "DeepLift, input", 2),
            ("deletion", "DeepLift, layer3.1", 3),
            ("deletion", "random", 0),
            ("insertion", "random", STEPS - 1),
        ]:
            choose(page, "game", game)
            choose(page, "map", name)
            set_slider(page, "exchanged", step)
            curves, before, after = games[game]
            wanted = exchanged(x, ranking(maps[name], x)[0], step, before, after)
            shown = pixels(page.locator("canvas").first)
            assert (shown[..., 3] == 255).all()
            difference = np.abs(shown[..., :3].astype(int) - wanted)
            assert difference.mean() < 6, (game, name, step)  # JPEG
            seen.add(shown.tobytes())
            for row, (other, curve) in zip(table(page)[1:], curves.items(), strict=True):
                assert row[0].endswith(other)
                assert float(row[1]) == pytest.approx(curve.scores[0, step].item(), abs=0.0051)
                assert row[2] == f"{curve.auc.item():.3f}"
            assert f"{game}, {name}" in page.locator(".sal-view").first.get_attribute("aria-label")
    assert len(seen) == 4


def test_steps_of_pixels_are_the_steps_of_the_curves(model, x, maps):
    found = widgets.insertion_player(model, x, maps, steps=STEPS)
    steps = np.frombuffer(zlib.decompress(base64.b64decode(found.data["orders"])), np.uint8).reshape(3, -1)
    counts = torch.linspace(0, 64 * 64, STEPS + 1, dtype=torch.float64).round().long().tolist()
    for row in steps:
        assert [int((row <= step).sum()) for step in range(STEPS + 1)] == counts


def test_the_network_stays_as_it_was(model, x, maps):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    try:
        widgets.insertion_player(model, x, maps, steps=2)
        assert model.training
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    finally:
        model.eval()


def test_too_many_maps_are_refused(model, x, maps, monkeypatch):
    monkeypatch.setattr(explorer, "SIZE_LIMIT", 10_000)
    with pytest.raises(ValueError, match="3 maps take more than 10,000 bytes: leave out some"):
        widgets.insertion_player(model, x, maps, steps=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 3, 64, 64)}, r"expected one picture \(1, 3, H, W\), got \(2, 3, 64, 64\)"),
        ({"maps": {}}, "expected maps by name, got none"),
        ({"steps": 0}, "steps = 0 is not between 1 and 254"),
        ({"steps": 255}, "steps = 255 is not between 1 and 254"),
        ({"maps": {"a": torch.zeros(3, 8, 8)}}, "expected 1 maps"),
        ({"target": 100}, "no class 100"),
    ],
)
def test_bad_input_is_named(model, changes, message):
    arguments = {"x": torch.zeros(1, 3, 64, 64), "maps": {"a": torch.rand(1, 8, 8)}} | changes
    with pytest.raises(ValueError, match=message) as caught:
        widgets.insertion_player(model, arguments.pop("x"), arguments.pop("maps"), **arguments)
    assert "\n" not in str(caught.value)
