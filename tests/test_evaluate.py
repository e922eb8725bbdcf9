"""Whole-set runs: the numbers are those of the measures, and a kill changes none of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_nothing_leaks import state

import smoothsal_lib as sal
from smoothsal_lib.__main__ import main as command_line
from smoothsal_lib.datasets.benchmark import Benchmark, open_benchmark
from smoothsal_lib.evaluate import MEASURES, SIMILARITY, Plan, check_plan, evaluate, fingerprint, main, statistics_of
from smoothsal_lib.extract import resize_map
from smoothsal_lib.layers import hidden_layers
from smoothsal_lib.ledger import Ledger
from smoothsal_lib.metrics import road
from smoothsal_lib.metrics.localisation import energy_in_box, pointing_game
from smoothsal_lib.metrics.sanity import class_sensitivity
from smoothsal_lib.metrics.similarity import rank_correlation, ssim

PLAN = Plan(images=6, fixes=("none", "backward"), layers=("input", "layer3.1"), batch=4)


@pytest.fixture(scope="module")
def benchmark(fake_data: Path) -> Benchmark:
    return open_benchmark("tiny-imagenet-100", fake_data)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return sal.load_model()


def run(plan: Plan, model: torch.nn.Module, benchmark: Benchmark, path: Path) -> list[dict]:
    surrogate = sal.load_surrogate() if "surrogate" in plan.fixes else None
    return evaluate(plan, model, benchmark, Ledger(path, {}), surrogate)


def test_the_rows_are_what_the_measures_say(model, benchmark, tmp_path):
    plan = replace(PLAN, measures=MEASURES)
    rows = {
        (row["fix"], row["method"], row["layer"], row["measure"]): row
        for row in run(plan, model, benchmark, tmp_path / "p.jsonl")
    }
    chosen = benchmark.spread(6)
    x, labels, boxes = benchmark.images(chosen), benchmark.labels[chosen], benchmark.boxes[chosen]
    with torch.no_grad():
        logits = model(x)
    attributions = sal.explain(model, x, layers=["input", "layer3.1"], method="gradient", fix="backward")
    curves = sal.insertion(model, x, attributions), sal.deletion(model, x, attributions)
    roads = [road(model, x, attributions, order=order)["layer3.1"].auc for order in ("most", "least")]
    plain = sal.explain(model, x, layers="layer3.1", method="gradient", fix=None)["layer3.1"]
    layer = hidden_layers(model, x)["layer3.1"]
    small = {fix: sal.saliency_map(a) for fix, a in (("backward", attributions["layer3.1"]), ("none", plain))}
    maps = resize_map(small["backward"], (64, 64), layer)
    magnitudes = [sal.saliency_map(one, "abs_mean") for one in (attributions["layer3.1"], plain)]
    sensitivity = class_sensitivity(model, x, "layer3.1", "gradient", "backward")["layer3.1"]
    expected = {
        "total_variation": sal.total_variation(attributions["layer3.1"]),
        "checkerboard_energy": sal.checkerboard_energy(attributions["layer3.1"]),
        "insertion": curves[0]["layer3.1"].auc,
        "deletion": curves[1]["layer3.1"].auc,
        "pointing_game": pointing_game(maps, boxes, 15 / 224 * 64).double(),
        "energy_in_box": energy_in_box(maps, boxes),
        "road_most": roads[0],
        "road_least": roads[1],
        "rank_correlation": rank_correlation(small["backward"], small["none"]),
        "rank_correlation_magnitude": rank_correlation(*magnitudes),
        "ssim": ssim(maps, resize_map(small["none"], (64, 64), layer)),
        "class_sensitivity": sensitivity,
    }
    for measure, values in expected.items():
        row = rows["backward", "gradient", "layer3.1", measure]
        assert row["n"] == 6
        assert row["mean"] == pytest.approx(values.mean().item(), rel=1e-3, abs=1e-5), measure
        assert row["std"] == pytest.approx(values.double().std().item(), rel=2e-2, abs=1e-4), measure
    top1 = rows["none", "output", "output", "top1"]
    assert top1["mean"] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert rows["backward", "output", "output", "prediction_difference"]["mean"] == 0
    assert all(rows["none", "gradient", "layer3.1", measure]["mean"] == pytest.approx(1) for measure in SIMILARITY)
    plain, fixed = (rows[fix, "gradient", "layer3.1", "total_variation"] for fix in ("none", "backward"))
    assert fixed["change"] == pytest.approx(fixed["mean"] - plain["mean"], rel=1e-4)
    assert 0 < fixed["change_error"] < fixed["std"] and "change" not in plain


def test_all_images_are_explained_for_the_class_the_original_predicts(model, benchmark, tmp_path):
    plan = replace(PLAN, fixes=("forward",), measures=("total_variation",), layers=("layer2.1",))
    (row,) = run(plan, model, benchmark, tmp_path / "p.jsonl")
    x = benchmark.images(benchmark.spread(6))
    with torch.no_grad():
        target = model(x).argmax(1)
    attribution = sal.explain(model, x, target, "layer2.1", "gradient", "forward")["layer2.1"]
    assert row["mean"] == pytest.approx(sal.total_variation(attribution).mean().item(), rel=1e-4)


def test_scoring_on_the_repaired_network_is_another_question(model, benchmark, tmp_path):
    plan = replace(PLAN, fixes=("surrogate",), measures=("insertion",), layers=("layer2.1",))
    (original,) = run(plan, model, benchmark, tmp_path / "a.jsonl")
    (repaired,) = run(replace(plan, score_on="repaired"), model, benchmark, tmp_path / "b.jsonl")
    assert original["mean"] != repaired["mean"]
    surrogate = sal.load_surrogate()
    x = benchmark.images(benchmark.spread(6))
    target = model(x).argmax(1)
    attribution = sal.explain(model, x, target, "layer2.1", "gradient", surrogate)
    with sal.smoothed(model, surrogate):
        wanted = sal.insertion(model, x, attribution, target)["layer2.1"].auc.mean().item()
    assert repaired["mean"] == pytest.approx(wanted, rel=1e-4)


def test_half_precision_scores_nearly_the_same(model, benchmark, tmp_path):
    plan = replace(PLAN, fixes=("none",), measures=("insertion",), layers=("layer2.1",))
    (exact,) = run(plan, model, benchmark, tmp_path / "a.jsonl")
    (fast,) = run(replace(plan, precision="bfloat16"), model, benchmark, tmp_path / "b.jsonl")
    assert fast["mean"] == pytest.approx(exact["mean"], abs=0.01)


def test_random_maps_and_rise_and_random_weights(model, benchmark, tmp_path):
    plan = Plan(
        images=2, fixes=("none",), methods=("rise", "random", "gradient"), layers=("layer2.1",), batch=2, masks=20
    )
    rows = run(replace(plan, measures=("deletion",), randomise=True), model, benchmark, tmp_path / "p.jsonl")
    trained = {row["method"]: row["layer"] for row in rows if row["state"] == "trained"}
    assert trained == {"rise": "input", "random": "layer2.1", "gradient": "layer2.1"}
    states = list(dict.fromkeys(row["state"] for row in rows))
    assert states[:2] == ["trained", "fc"] and states[-1] == "all" and len(states) == 7
    means = {row["state"]: row["mean"] for row in rows if row["method"] == "gradient"}
    assert len(set(means.values())) > 4


def test_the_model_is_left_as_it_was(model, benchmark, tmp_path):
    x = benchmark.images([0])
    before = state(model, x)
    run(replace(PLAN, randomise=True, measures=("checkerboard_energy", "top1")), model, benchmark, tmp_path / "p.jsonl")
    assert state(model, x) == before


def test_a_run_that_breaks_off_goes_on_where_it_stopped(model, benchmark, tmp_path, monkeypatch):
    plan = replace(PLAN, measures=("total_variation", "top1"), batch=2)
    whole = run(plan, model, benchmark, tmp_path / "whole.jsonl")
    path = tmp_path / "broken.jsonl"
    add, count = Ledger.add, 0

    def breaks(self: Ledger, key: str, values: object) -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        add(self, key, values)

    monkeypatch.setattr(Ledger, "add", breaks)
    with pytest.raises(KeyboardInterrupt):
        run(plan, model, benchmark, path)
    assert len(Ledger(path, {}).pieces) == 4
    assert run(plan, model, benchmark, path) == whole
    assert count == 5 + 3 * 2 * 2 - 4  # nothing was computed twice


def test_killed_and_started_again_on_the_command_line(fake_data, tmp_path):
    command = [sys.executable, "-m", "smoothsal_lib", "evaluate", "--folder", str(fake_data), "--images", "12"]
    command += ["--batch", "1", "--layers", "layer3.1", "--measure", "insertion", "--device", "cpu"]
    partial = tmp_path / "killed.partial.jsonl"
    process = subprocess.Popen([*command, "--out", str(tmp_path / "killed.json")], stderr=subprocess.DEVNULL)
    while process.poll() is None and (not partial.is_file() or partial.read_bytes().count(b"\n") < 4):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert partial.is_file() and not (tmp_path / "killed.json").exists()
    for name in ("killed", "whole"):
        subprocess.run([*command, "--out", str(tmp_path / f"{name}.json")], check=True, stderr=subprocess.DEVNULL)
    killed, whole = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("killed", "whole"))
    assert killed["rows"] == whole["rows"] and whole["images"] == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed.json", "whole.json"]
    assert {"command", "versions", "device", "date", "settings", "data"} <= set(whole)
    assert str(fake_data) not in json.dumps(whole) and str(tmp_path) not in json.dumps(whole)


def test_a_run_goes_on_with_the_same_weights_only(model):
    other = sal.load_model()
    assert fingerprint(model, None) == fingerprint(other)
    with torch.no_grad():
        other.fc.bias[0] += 1e-3
    assert fingerprint(model) != fingerprint(other)


@pytest.mark.parametrize(
    ("settings", "sampling"),
    [
        ({"sampling": "smoothgrad", "looks": 3, "noise": 0.3}, sal.sampling.SmoothGrad(3, 0.3, seed=7)),
        ({"sampling": "noisegrad", "looks": 2, "noise": 0.1}, sal.sampling.NoiseGrad(2, 0.1, seed=7)),
        ({"sampling": "path", "looks": 4}, sal.sampling.Path(4)),
        ({"sampling": "adaptgrad", "looks": 2}, sal.sampling.AdaptGrad(2, seed=7)),
        ({"sampling": "none", "looks": 4}, None),
    ],
)
def test_a_plan_with_sampling_and_a_cell(settings, sampling, model, benchmark, tmp_path):
    plan = replace(
        PLAN, images=2, fixes=("backward",), methods=("conv3x3+l2",), layers=("layer3.1",), seed=7, **settings
    )
    plan = replace(plan, measures=("total_variation", "class_sensitivity"))
    rows = {row["measure"]: row["mean"] for row in run(plan, model, benchmark, tmp_path / "p.jsonl")}
    x = benchmark.images(benchmark.spread(2))
    maps = sal.explain(model, x, None, "layer3.1", "conv3x3+l2", "backward", sampling=sampling)["layer3.1"]
    assert rows["total_variation"] == pytest.approx(float(sal.total_variation(maps).mean()), rel=1e-4)
    sensitivity = class_sensitivity(model, x, "layer3.1", "conv3x3+l2", "backward", sampling=sampling)["layer3.1"]
    assert rows["class_sensitivity"] == pytest.approx(float(sensitivity.mean()), rel=1e-4)


def test_statistics():
    assert statistics_of([1, 2, 4]) == (2.33333, 1.528, 3)
    assert statistics_of([5]) == (5, 0, 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"fixes": ("none", "blur")}, "unknown fixes 'blur': choose out of none, backward, "),
        ({"methods": ("lime",)}, "unknown method 'lime': did you mean "),
        ({"measures": ("auc",)}, "unknown measures 'auc': choose out of top1, "),
        ({"score_on": "both"}, "unknown score_on 'both': choose out of original, repaired"),
        ({"precision": "half"}, "unknown precision 'half': choose out of float32, bfloat16"),
        ({"images": -1}, "images = -1 is not a number of images: give 1 or more"),
        ({"batch": 0}, "batch = 0 is not a number of images: give 1 or more"),
        ({"sampling": "smooth"}, "unknown sampling 'smooth': choose out of none, smoothgrad, "),
        ({"sampling": "smoothgrad", "noise": -1.0}, "noise = -1.0 is not a standard deviation"),
        ({"sampling": "path", "noise": 0.1}, "noise = 0.1: the sampling 'path' has none to set"),
        ({"sampling": "vargrad", "looks": 0}, "n = 0 is no count"),
        ({"methods": ("conv5x5+l2",)}, "unknown extract 'conv5x5': choose one of "),
        ({"steps": 0}, "steps = 0 is not a number of steps: give 1 or more"),
    ],
)
def test_a_plan_with_something_unknown(wrong, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        check_plan(replace(PLAN, **wrong))


def test_images_of_ones_own_need_no_known_name(model, benchmark, tmp_path):
    mine = replace(benchmark, name="mine", description="my pictures", boxes=None)
    plan = replace(PLAN, model="my network", data="mine", images=2, measures=("total_variation",))
    known = run(replace(plan, data=PLAN.data), model, benchmark, tmp_path / "known")
    assert run(plan, model, mine, tmp_path / "mine") == known


def test_what_a_plan_needs_and_does_not_have(model, benchmark, tmp_path):
    with pytest.raises(ValueError, match="asks for a surrogate of tiny_resnet, and none was given"):
        evaluate(replace(PLAN, fixes=("surrogate",)), model, benchmark, Ledger(tmp_path / "a", {}))
    with pytest.raises(ValueError, match="has no boxes"):
        without = replace(benchmark, boxes=None)
        evaluate(replace(PLAN, measures=("pointing_game",)), model, without, Ledger(tmp_path / "b", {}))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "usage: python -m smoothsal_lib {evaluate,report,slide} ..."),
        ("evaluate --out {out} --fix blur", "python -m smoothsal_lib evaluate: unknown fixes 'blur'"),
        (
            "evaluate --out {out} --data cifar",
            "python -m smoothsal_lib evaluate: unknown benchmark 'cifar': choose one of",
        ),
        ("evaluate --out {out} --folder {out}", "python -m smoothsal_lib evaluate: no tiny-imagenet-100 in"),
        ("report nothing", "python -m smoothsal_lib report: no results 'nothing'"),
    ],
)
def test_the_command_line_says_what_is_wrong_in_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["smoothsal_lib", *words.format(out=tmp_path / "x.json").split()])
    with pytest.raises(SystemExit) as stopped:
        command_line()
    assert str(stopped.value).startswith(message) and "\n" not in str(stopped.value)
    assert not list(tmp_path.iterdir())


def test_main_writes_one_file(fake_data, tmp_path):
    words = (
        "--images 2 --batch 2 --fix none surrogate --layers layer3.1 --measure checkerboard_energy --method gradient"
    )
    main([*words.split(), "--folder", str(fake_data), "--out", str(tmp_path / "x.json"), "--device", "cpu"])
    record = json.loads((tmp_path / "x.json").read_text())
    assert [row["fix"] for row in record["rows"]] == ["none", "surrogate"]
    assert record["command"] == f"python -m smoothsal_lib evaluate {words} --out x.json --device cpu"
