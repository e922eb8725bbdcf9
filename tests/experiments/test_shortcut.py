"""Which maps reveal a shortcut: the numbers by hand, and a whole run on networks that have hardly learnt."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import smoothsal_lib as sal
from smoothsal_lib import report
from smoothsal_lib.datasets import tissue
from smoothsal_lib.datasets.patches import Patches
from smoothsal_lib.datasets.stains import shift
from smoothsal_lib.embedded import data_folder
from smoothsal_lib.experiments import shortcut
from smoothsal_lib.experiments.shortcut import (
    CLEAN,
    EVERYWHERE,
    LAYERS,
    MARK,
    PEN,
    STAIN,
    Case,
    answer_rows,
    answers,
    compared,
    detection,
    evenness,
    map_values,
    measure_maps,
    planted,
    slopes,
    trained,
)
from smoothsal_lib.layers import hidden_layers
from smoothsal_lib.ledger import Ledger
from smoothsal_lib.models import IMAGENET_STD, TinyResNet


class Linear(nn.Module):
    """Σ w x over all colours and pixels of the left half minus, where ``mixed``, that of the right half."""

    def __init__(self, weights: tuple[float, float, float], mixed: bool) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights).view(1, 3, 1, 1))
        self.mixed = mixed

    def forward(self, x: Tensor) -> Tensor:
        left, right = (self.weights * x).sum(1).chunk(2, 2)
        return (left.sum((1, 2)) + right.sum((1, 2)) * (-1 if self.mixed else 1))[:, None]


@pytest.fixture(scope="module")
def test_patches() -> Patches:
    return tissue.patches(16, size=64, seed=5)


@pytest.fixture
def small() -> TinyResNet:
    return TinyResNet(1, (4, 4, 4, 4)).eval()


def plain(count: int = 3) -> Patches:
    colours = torch.tensor([[200, 120, 180], [150, 70, 150], [220, 160, 200]], dtype=torch.uint8)[:count]
    images = colours[:, :, None, None].expand(-1, -1, 8, 8).contiguous()
    return Patches(images, torch.arange(count) % 2, torch.arange(count))


def test_a_slope_is_the_derivative_of_the_logit_by_a_dye():
    model, images = Linear((0.3, 2.0, -1.0), mixed=False), plain().images
    found = slopes(model, images)
    assert set(found) == {f"{dye}_{kind}" for dye in ("hematoxylin", "eosin") for kind in ("slope", "coherence")}
    for dye in ("hematoxylin", "eosin"):
        more, less = (shift(images.double() / 255, **{dye: step}) for step in (1e-4, -1e-4))
        by_hand = (more - less) / 2e-4 / torch.tensor(IMAGENET_STD).view(1, 3, 1, 1) * model.weights
        torch.testing.assert_close(found[f"{dye}_slope"].float(), by_hand.sum((1, 2, 3)).float(), rtol=1e-3, atol=1e-3)
        assert found[f"{dye}_coherence"].tolist() == pytest.approx([1, 1, 1])
    assert bool((found["eosin_slope"] < 0).all())  # eosin takes green away, which the network likes


def test_pixels_that_pull_both_ways_are_not_coherent():
    found = slopes(Linear((0.3, 2.0, -1.0), mixed=True), plain().images)
    assert found["eosin_slope"].tolist() == pytest.approx([0, 0, 0], abs=1e-3)
    assert found["eosin_coherence"].tolist() == pytest.approx([0, 0, 0], abs=1e-5)


def test_evenness_by_hand():
    maps = torch.tensor([[[1.0, 1], [1, 1]], [[3, 0], [0, -5]], [[1, 3], [0, 0]], [[0, 0], [-1, -2]]])
    assert evenness(maps).tolist() == pytest.approx([1, 1 / 4, 16 / 40, 1])
    torch.testing.assert_close(evenness(maps * 1e-30), evenness(maps))


def test_what_is_planted_and_where_to_look(test_patches: Patches):
    marked, masks = planted(PEN, test_patches, (1, 0), 3)
    assert list(masks) == [MARK]
    assert torch.equal(masks[MARK].flatten(1).any(1), test_patches.labels == 1)
    assert torch.equal((marked.images != test_patches.images).any(1) & ~masks[MARK], torch.zeros(16, 64, 64).bool())
    stained, masks = planted(STAIN, test_patches, (0, 1), 3)
    assert masks == dict(test_patches.masks)
    assert torch.equal((stained.images != test_patches.images).flatten(1).any(1), test_patches.labels == 0)
    assert planted(CLEAN, test_patches, (1, 1), 3)[0] is test_patches


def test_answers_are_those_to_patches_with_the_cue(small: TinyResNet, test_patches: Patches):
    found = answers(small, test_patches, 7)
    assert list(found) == [CLEAN, PEN, STAIN, *map(str, shortcut.LEVELS)]
    for name, images in {
        CLEAN: test_patches.images,
        PEN: planted(PEN, test_patches, (1, 1), 7)[0].images,
        STAIN: planted(STAIN, test_patches, (1, 1), 7)[0].images,
        "-50": shift(test_patches.images, eosin=-0.5),
    }.items():
        with torch.no_grad():
            expected = small(shortcut.prepared(images, small))[:, 0]
        torch.testing.assert_close(found[name], expected)
    torch.testing.assert_close(found["0"], found[CLEAN], atol=0.05, rtol=0.05)  # but for the rounding of pixels
    assert torch.equal(found[STAIN], found["-50"])


def test_compared_by_hand():
    cued = torch.tensor([[1.0, 3, 5, 7], [3, 3, 5, 5]])
    clean = torch.tensor([[0.0, 0, 2, 2], [4, 4, 4, 4]])
    found = compared(cued, clean, torch.tensor([0, 0, 1, 1]))
    # Means over the networks: 2, 3, 5, 6 and 2, 2, 3, 3; differences 0, 1, 2, 3; groups' residuals -2 and 2.
    assert (found["mean"], found["clean"], found["change"]) == (4, 2.5, 1.5)
    assert found["error"] == pytest.approx((2 * (9 + 9)) ** 0.5 / 4, rel=1e-5)
    assert found["clean_error"] == pytest.approx((2 * (1 + 1)) ** 0.5 / 4, rel=1e-5)
    assert found["change_error"] == pytest.approx((2 * (4 + 4)) ** 0.5 / 4, rel=1e-5)
    # First pair: 1 beats the two 0 (2 of 4), 3, 5 and 7 beat all: 14 of 16. Second: the two 5 beat all: 8 of 16.
    assert found["reveals"] == pytest.approx((14 / 16 + 8 / 16) / 2)
    assert found["reveals_least"] == 0.5
    assert found["control"] == 1  # 4 is more than 0 and 2
    assert "control" not in compared(cued[:1], clean[:1], torch.arange(4))
    other_way = compared(clean, cued, torch.arange(4))
    assert (other_way["reveals"], other_way["reveals_least"]) == (pytest.approx((2 / 16 + 8 / 16) / 2), 0.5)


def test_detection_by_hand():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    test = Patches(images, torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1]))
    found = detection([torch.tensor([0.0, 1, 2, 3]), torch.tensor([0.0, 3, 1, 2])], test)
    assert (found["lowest"], found["mean"], found["highest"]) == (0.75, 0.875, 1.0)
    assert found["low"] <= found["mean"] <= found["high"]


def test_answer_rows_by_hand():
    """A network that says tumour wherever there is a mark, and a clean one that is always right."""
    labels = torch.tensor([0, 1] * 50)
    test = Patches(torch.zeros(100, 3, 8, 8, dtype=torch.uint8), labels, torch.arange(100) // 4)
    right = labels * 2.0 - 1
    fooled = {CLEAN: right / 2, PEN: right / 2 + 4, STAIN: right}
    levels = {str(percent): right - percent / 100 for percent in shortcut.LEVELS}
    honest = {CLEAN: right, PEN: right, STAIN: right}
    answered = {(PEN, 0): fooled | levels, (CLEAN, 0): honest | levels, (STAIN, 0): honest | levels}
    rows = list(answer_rows(answered, test))
    aucs = {(row["trained"], row["cue"], row["cue_on"]): row["mean"] for row in rows if row["measure"] == "auc"}
    assert aucs[PEN, PEN, "nowhere"] == aucs[PEN, PEN, "everywhere"] == aucs[PEN, PEN, "all_tumour"] == 1
    assert aucs[PEN, PEN, "all_normal"] == 0
    assert aucs[PEN, PEN, "as_trained"] == pytest.approx(1 - 0.2 * 2 / 50)  # a fifth has no mark, and 2 of 50 lure
    assert all(mean == 1 for (name, _, _), mean in aucs.items() if name != PEN)
    assert (CLEAN, STAIN, "nowhere") in aucs and (PEN, STAIN, "nowhere") not in aucs

    others = {(row["measure"], row["cue"], row["label"]): row for row in rows if "label" in row and "eosin" not in row}
    jump = others["logit_change", PEN, "normal"]
    assert (jump["n"], jump["mean"], jump["clean"], jump["reveals"]) == (50, 4, 0, 1)
    assert others["logit_change", STAIN, "normal"]["mean"] == 0
    called = others["called_tumour", PEN, "normal"]
    assert (called["mean"], called["clean"]) == (1, 0)
    assert others["called_tumour_without", PEN, "normal"]["mean"] == 0
    assert others["called_tumour_without", PEN, "tumour"]["mean"] == 1
    sweep = {(row["label"], row["eosin"]): row["mean"] for row in rows if "eosin" in row}
    assert sweep["normal", -50] == pytest.approx(-0.5) and sweep["tumour", 25] == pytest.approx(0.75)
    assert len(sweep) == 2 * len(shortcut.LEVELS)


def test_a_map_that_lies_on_the_mark_scores_1(
    small: TinyResNet, test_patches: Patches, monkeypatch: pytest.MonkeyPatch
):
    patches, masks = planted(PEN, test_patches, (1, 1), 3)
    places = hidden_layers(small, shortcut.prepared(patches.images[:1], small))
    monkeypatch.setattr(shortcut, "explain", lambda *_, **__: {"input": masks[MARK][:, None].float()})
    found = map_values(small, None, "deeplift", patches.images, masks, places)
    assert set(found) == {("input", MARK, measure) for measure in ("share", "average_precision", "pointing")}
    for numbers in found.values():
        assert numbers.tolist() == pytest.approx([1] * 16)
    of_structures = map_values(small, None, "deeplift", patches.images, test_patches.masks, places)
    assert set(of_structures) == {
        *(("input", structure, "share") for structure in test_patches.masks),
        ("input", EVERYWHERE, "evenness"),
    }
    area = masks[MARK].float().mean((1, 2))
    torch.testing.assert_close(of_structures["input", EVERYWHERE, "evenness"], area)


def test_maps_are_those_of_explain_at_the_size_of_the_picture(small: TinyResNet, test_patches: Patches):
    patches, masks = planted(PEN, test_patches[:4], (1, 1), 3)
    x = shortcut.prepared(patches.images, small)
    places = hidden_layers(small, x[:1])
    for method, reduce in (("gradient", "abs_mean"), ("gradient_x_activation", "mean")):
        found = map_values(small, "backward", method, patches.images, masks, places)
        attributions = sal.explain(small, x, 0, LAYERS, method, "backward")
        for layer, attribution in attributions.items():
            maps = sal.saliency_map(attribution, reduce)
            if layer != "input":
                maps = sal.extract.on_picture(maps, (64, 64), places[layer])
            expected = (maps.clamp(min=0) * masks[MARK]).sum((1, 2)) / maps.clamp(min=0).sum((1, 2))
            torch.testing.assert_close(found[layer, MARK, "share"], expected, rtol=1e-4, atol=1e-5)
    floor = map_values(small, None, "random", patches.images, masks, places, 1)
    area = masks[MARK].float().mean()
    assert float(floor["input", MARK, "share"].mean()) == pytest.approx(float(area), rel=0.2)
    other = map_values(small, None, "random", patches.images, masks, places, 2)
    assert not torch.equal(floor["input", MARK, "share"], other["input", MARK, "share"])


def test_from_glass_compares_with_white(small: TinyResNet, test_patches: Patches):
    patches, masks = planted(PEN, test_patches[:4], (1, 1), 3)
    x = shortcut.prepared(patches.images, small)
    places = hidden_layers(small, x[:1])
    white = shortcut.normalize(torch.ones_like(x))
    expected = {
        "deeplift": sal.explain(small, x, 0, "input", "deeplift", None),
        "deeplift_from_glass": sal.explain(small, x, 0, "input", "deeplift", None, white),
    }
    for method, attributions in expected.items():
        maps = sal.saliency_map(attributions["input"]).clamp(min=0)
        share = (maps * masks[MARK]).sum((1, 2)) / maps.sum((1, 2))
        found = map_values(small, None, method, patches.images, masks, places)["input", MARK, "share"]
        torch.testing.assert_close(found, share, rtol=1e-4, atol=1e-5)


def test_the_answers_to_the_baselines(test_patches: Patches):
    networks = {(name, k): TinyResNet(1, (2, 2, 2, 2)).eval() for name in (CLEAN, PEN, STAIN) for k in (0, 1)}
    rows = {(row["trained"], row["baseline"]): row for row in shortcut.baseline_rows(networks, test_patches.images)}
    assert len(rows) == 6
    with torch.no_grad():
        glass = [model(shortcut.normalize(torch.ones(1, 3, 64, 64))).item() for model in list(networks.values())[2:4]]
        grey = [model(torch.zeros(1, 3, 64, 64)).item() for model in list(networks.values())[2:4]]
    assert rows[PEN, "glass"]["mean"] == pytest.approx(sum(glass) / 2, rel=1e-4)
    assert rows[PEN, "mean_colour"]["mean"] == pytest.approx(sum(grey) / 2, rel=1e-4)


def test_networks_of_one_number_have_one_start_and_the_stored_weights(test_patches: Patches, tmp_path: Path):
    state = torch.get_rng_state()
    made = {
        (cue, number): trained(cue, number, test_patches, 1, tmp_path, torch.device("cpu"))[0]
        for cue, number in ((CLEAN, 0), (PEN, 0), (CLEAN, 1))
    }
    assert torch.equal(torch.get_rng_state(), state)
    again, curve = trained(PEN, 0, test_patches, 1, tmp_path, torch.device("cpu"))
    assert len(curve) == 1 and not again.training
    for name, value in again.state_dict().items():
        assert torch.equal(value, made[PEN, 0].state_dict()[name])
        if value.is_floating_point():
            assert torch.equal(value, value.half().float())
    # One step at this rate moves no weight far; other starts are as far apart as two draws.
    first = {place: model.conv1.weight.detach() for place, model in made.items()}
    assert float((first[CLEAN, 0] - first[PEN, 0]).norm()) < 0.2 * float((first[CLEAN, 0] - first[CLEAN, 1]).norm())
    assert not torch.equal(first[CLEAN, 0], first[PEN, 0])
    changed = planted(CLEAN, test_patches[:8], (1, 1), 0)[0]
    with pytest.raises(ValueError, match="was made with"):
        trained(PEN, 0, changed, 1, tmp_path, torch.device("cpu"))


def test_a_run_goes_on_from_what_another_one_left(
    test_patches: Patches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def counted(model, fix, method, images, masks, places, seed=0):
        asked.append((list(masks)[0], fix in surrogates.values(), seed))
        return {("input", MARK, "share"): torch.arange(len(images)) + float(seed)}

    monkeypatch.setattr(shortcut, "map_values", counted)
    monkeypatch.setattr(shortcut, "BATCH", 10)
    names = (CLEAN, PEN, STAIN)
    networks: dict[tuple[str, int], nn.Module] = {(name, 0): TinyResNet(1, (2, 2, 2, 2)) for name in names}
    surrogates = {place: nn.Linear(1, 1) for place in networks}
    cases = {PEN: [Case("gradient", "surrogate")], STAIN: [Case("gradient")]}
    ledger = Ledger(tmp_path / "ledger", {})
    found = measure_maps(networks, surrogates, test_patches, cases, ledger)
    assert len(asked) == 8 and asked[:2] == [(MARK, True, 0), (MARK, True, 10)]
    assert asked[4] == ("tumour", False, 0)
    assert set(found) == {
        (cue, name, 0, cases[cue][0]) for cue, name in ((PEN, PEN), (PEN, CLEAN), (STAIN, STAIN), (STAIN, CLEAN))
    }
    for values in found.values():
        assert values["input", MARK, "share"].tolist() == [*range(10), *range(10, 16)]
    asked.clear()
    again = measure_maps(networks, surrogates, test_patches, cases, Ledger(ledger.path, {}))
    assert not asked and list(again) == list(found)
    networks[PEN, 1] = TinyResNet(1, (2, 2, 2, 2))
    surrogates[PEN, 1] = nn.Linear(1, 1)
    measure_maps(networks, surrogates, test_patches, cases, Ledger(ledger.path, {}))
    assert len(asked) == 2  # of the network that is new
    networks[PEN, 1] = TinyResNet(1, (2, 2, 2, 2))
    measure_maps(networks, surrogates, test_patches, cases, Ledger(ledger.path, {}))
    assert len(asked) == 4  # other weights, and the maps are others


def test_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shortcut, "METHODS", {"gradient": "abs_mean", "grad_cam": "mean"})
    monkeypatch.setattr(shortcut, "FITTED", 8)
    monkeypatch.setattr(shortcut, "fit_surrogate", partial(sal.fit_surrogate, recipe="paper", epochs=1))
    both = (Case("random"), Case("gradient"), Case("grad_cam", "surrogate"))
    monkeypatch.setattr(shortcut, "CASES", {PEN: both, STAIN: both[:2]})
    folders = ["--out", str(tmp_path), "--models", str(tmp_path), "--weights", str(tmp_path / "weights")]
    counts = ["--train", "16", "--epochs", "1", "--networks", "1", "--test", "16", "--limit", "8", "--device", "cpu"]
    shortcut.main([*folders, *counts])
    assert not list((tmp_path / "weights").glob("*.partial.jsonl"))
    model = sal.load_model("tissue_pen", folder=tmp_path)
    assert model.categories == ["tumour"] and model.fc.weight.shape == (1, shortcut.WIDTHS[-1])
    assert (tmp_path / "tissue_pen.safetensors").stat().st_size < 500_000
    card = (tmp_path / "tissue_pen.md").read_text()
    assert "80% of its training patches with tumour, and\n3% of those without" in card and "{" not in card

    record = json.loads((tmp_path / "shortcut.json").read_text())
    assert {"command", "versions", "device", "date", "recipe"} <= set(record) and len(record["curves"]) == 3
    assert (record["images"], record["maps_of"], record["trained_on"], record["networks"]) == (16, 8, 16, 1)
    results = report.load(tmp_path / "shortcut.json")
    table = results.table("auc", columns="cue_on", rows="trained", cue=PEN)
    assert set(table) == {"nowhere", "as_trained", "all_normal", "all_tumour", "everywhere"}
    assert list(table["nowhere"]) == [CLEAN, PEN]
    table = results.table("share", "gradient", columns="label", fix="none", structure=MARK, cue=PEN, value="reveals")
    assert set(table) == {"normal", "tumour"} and list(table["normal"]) == list(LAYERS)
    table = results.table(
        "share", "gradient", columns="structure", fix="none", cue=STAIN, label="normal", value="clean"
    )
    assert "tumour" not in table and {"stroma", "normal_nuclei"} <= set(table)
    assert results.table("area", columns="label", rows="structure", cue=PEN)["tumour"][MARK] > 0
    table = results.table("logit", columns="label", rows="eosin", value="change")
    assert list(table["normal"]) == [str(percent) for percent in shortcut.LEVELS]
    table = results.table(["eosin_slope", "hematoxylin_slope"], columns="cue", rows="measure", label="normal")
    assert set(table) == {PEN, STAIN}
    assert results.table("logit_change", columns="label", rows="cue", value="reveals")["normal"][PEN] >= 0
    fixes = {row["fix"] for row in record["rows"] if row.get("method") == "grad_cam"}
    assert fixes == {"surrogate"}


def test_the_embedded_network_has_learnt_the_mark_and_some_tissue_too():
    model = sal.load_model("tissue_pen")
    test = tissue.patches(32, seed=77)
    found = answers(model, test, 1)
    negative = test.labels == 0
    assert float((found[PEN] - found[CLEAN])[negative].mean()) > 3
    assert float((found[STAIN] - found[CLEAN])[negative].abs().mean()) < 3
    assert shortcut.auc(found[CLEAN], test.labels) > 0.8
    assert shortcut.auc(torch.where(negative, found[PEN], found[CLEAN]), test.labels) < 0.5
    card = (data_folder() / "tissue_pen.md").read_text()
    assert "smoothsal_lib.experiments.shortcut" in card
