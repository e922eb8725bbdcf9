"""The benchmarks compare before they time, judge by their targets, and print every row. Nothing is timed here."""

from __future__ import annotations

import re
import sys
from dataclasses import replace

import pytest
import torch
from torchvision.models.resnet import BasicBlock, ResNet

from benchmarks import memory, ours, paper, peers, speed
from benchmarks.case import Case, Contender, incomplete, off
from benchmarks.verdicts import verdict

OURS, PAPER = ours.contenders(), paper.contenders()


@pytest.fixture(scope="module")
def case() -> Case:
    torch.manual_seed(0)
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10).eval()
    made = Case.of(model, torch.randn(1, 3, 64, 64), pictures=8)
    return replace(made, looks=10, steps=8, points=16)


def named(contenders: list[Contender]) -> list[object]:
    return [pytest.param(each, id=f"{each.run}, {each.who}") for each in contenders]


@pytest.mark.parametrize("contender", named([*OURS, *PAPER]))
def test_results_agree(contender: Contender, case: Case):
    assert contender.error(case) <= contender.tolerance


@pytest.mark.parametrize("name", peers.PEERS)
@pytest.mark.filterwarnings("ignore")
def test_peers_agree(name: str, case: Case):
    try:
        found = peers.PEERS[name]()
    except ImportError as error:
        pytest.skip(f"{name} is not installed: {error}")
    assert found
    for each in found:
        assert each.error(case) <= each.tolerance, each.run


def test_the_layers_are_the_blocks_of_the_first_three_stages(case: Case):
    assert case.layers == ("layer1.0", "layer2.0", "layer3.0")
    assert case.fitted == ("layer2.0.conv1", "layer2.0.downsample.0")


def test_every_run_has_a_floor_and_every_contender_a_run():
    assert {each.run for each in [*OURS, *PAPER]} == set(ours.FLOORS)
    every = [(each.run, each.who) for each in [*OURS, *PAPER, *peers.contenders()[0]]]
    assert len(set(every)) == len(every) and {run for run, _ in every} == set(ours.FLOORS)


def test_floors_count_passes(case: Case):
    seen: list[int] = []
    with case.model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0]))):
        for run, passes in {
            "gradient": [1],
            "DeepLift": [2],
            "integrated gradients": [1] * 9,
            "SmoothGrad": [10],
            "insertion and deletion": [15, 15, 3],
            "forward hook": [1],
            "surrogate, fitting": [8] * 10,
        }.items():
            call = ours.FLOORS[run].prepare(case)
            assert seen == [], f"{run}: preparing is not timed"
            call()
            assert seen == passes, run
            seen.clear()


def test_off_is_the_relative_error_of_the_worst_layer():
    expected = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.0, 0.0])}
    assert off({"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([1.5, 0.0])}, expected) == 0.5
    assert off({"a": torch.tensor([3.0, 4.0])}, expected) == float("inf")
    assert off(torch.zeros(3), torch.zeros(2)) == float("inf")
    assert off(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")


def test_incomplete_is_what_a_layer_lacks(case: Case):
    with torch.no_grad():
        scores = case.model(torch.cat([case.x, torch.zeros_like(case.x)]))[:, case.target]
    change = (scores[0] - scores[1]).view(1, 1)
    assert incomplete({"whole": change, "half": change / 2}, case) == pytest.approx(0.5, rel=1e-4)


def test_nothing_is_timed_when_results_differ(case: Case):
    right = next(each for each in OURS if each.run == "gradient")
    wrong = replace(right, who="somebody", error=lambda case: 0.3, against="ours", tolerance=0.1)
    with pytest.raises(SystemExit, match="gradient, somebody: off by 3.0e-01 from ours"):
        speed.agree(case, [right, wrong])
    with pytest.raises(SystemExit):
        speed.agree(case, [replace(right, error=lambda case: float("nan"))])
    (row,) = speed.agree(case, [right])
    assert (row["run"], row["who"], row["tolerance"]) == ("gradient", "ours", 1e-4) and row["error"] < 1e-4


@pytest.mark.parametrize("run", ["gradient", "DeepLift", "insertion and deletion", "forward hook", "surrogate"])
def test_a_wrong_library_is_noticed(run: str, case: Case, monkeypatch: pytest.MonkeyPatch):
    """What the library returns is changed a little, and its contender no longer agrees."""
    wrong = {name: each * 1.01 for name, each in ours.explain(case, "deeplift").items()}
    monkeypatch.setattr(ours, "explain", lambda *args, **options: wrong)
    scores = {name: each * 1.01 for name, each in paper.curves(case).items()}
    monkeypatch.setattr(ours, "curves", lambda case: scores)
    for name in ("hooked", "through_surrogate"):
        logits = getattr(ours, name)(case) * 1.01
        monkeypatch.setattr(ours, name, lambda *args, logits=logits: logits)
    contender = next(each for each in OURS if each.run == run)
    assert not contender.error(case) <= contender.tolerance


@pytest.mark.parametrize(
    ("ratio", "target", "at_least", "expected"),
    [
        (1.15, 1.15, False, "met"),
        (1.16, 1.15, False, "missed"),
        (0.9, 1.1, False, "met"),
        (8.0, 8.0, True, "met"),
        (7.9, 8.0, True, "missed"),
        (12.0, 8.0, True, "met"),
        (5.0, None, False, ""),
    ],
)
def test_verdicts(ratio: float, target: float | None, at_least: bool, expected: str):
    assert verdict(ratio, target, at_least) == expected


def test_a_ratio_is_the_median_over_repeats_not_that_of_medians():
    assert speed.ratio([2.0, 30.0, 1.0], [1.0, 10.0, 1.0]) == 2.0
    assert speed.ratio([6.0], [2.0, 100.0]) == 3.0  # who ran once is compared with the floor of that repeat


def test_rows_by_hand(case: Case):
    def contender(who: str, **options: object) -> Contender:
        return Contender("gradient", who, lambda case: None, lambda case: 0.0, "", 1.0, **options)  # type: ignore[arg-type]

    some = [
        contender("ours", target=1.15),
        contender("captum", note=lambda case: f"{len(case.layers)} layers"),
        contender("slow", share=0.25),
    ]
    seconds = {"floor": [1.0, 2.0, 4.0], "ours": [1.2, 2.2, 4.0], "captum": [12.0, 11.0, 48.0], "slow": [3.0]}
    rows = {(row["who"], row["floor"]): row for row in speed.rows_of("gradient", some, seconds, case)}
    floor = ours.FLOORS["gradient"].name
    assert rows["floor", floor]["seconds"] == 2.0 and rows["floor", floor]["ratio"] == 1.0
    assert rows["ours", floor]["ratio"] == pytest.approx(1.1) and rows["ours", floor]["verdict"] == "met"
    assert rows["captum", floor]["note"] == "3 layers" and rows["captum", floor]["verdict"] == ""
    faster = rows["captum", "ours"]
    assert faster["ratio"] == pytest.approx(10.0) and faster["at_least"] and faster["verdict"] == "met"
    assert rows["slow", floor]["seconds"] == 12.0 and rows["slow", floor]["ratio"] == 12.0
    assert rows["slow", floor]["repeats"] == 1


def timed(budget: float) -> tuple[list[str], dict[str, int]]:
    """The order in which three calls are made, and how often each is counted."""
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in ("floor", "ours", "slow")}
    seconds = speed.interleaved(calls, {"slow"}, budget, torch.device("cpu"))
    return order, {name: len(each) for name, each in seconds.items()}


def test_calls_are_interleaved():
    order, counts = timed(budget=0.0)
    assert order == ["floor", "ours", "slow", "ours", "floor", "floor", "ours"]
    assert counts == {"floor": 3, "ours": 3, "slow": 1}


def test_the_first_run_of_quick_calls_is_not_counted():
    order, counts = timed(budget=60.0)
    assert counts == {"floor": speed.MOST, "ours": speed.MOST, "slow": 1}
    assert order[:5] == ["floor", "ours", "slow", "floor", "ours"] and order.count("ours") == speed.MOST + 1


def test_the_table_has_every_row_and_every_missing_peer(case: Case):
    contenders = [*OURS, *PAPER]
    rows = []
    for run in ours.FLOORS:
        here = [each for each in contenders if each.run == run]
        rows += speed.rows_of(run, here, {"floor": [1.0], **{each.who: [1.0] for each in here}}, case)
    rows.append(
        {
            "run": "memory: gradient", "who": "ours", "MiB": 200.0, "floor": "plain", "ratio": 1.6, "target": 1.5,
            "at_least": False, "verdict": "missed", "note": "", "repeats": 1,
        }
    )  # fmt: skip
    head, *lines, last = speed.table(rows, ["Quantus has no rows: no module"]).splitlines()
    assert last == "Quantus has no rows: no module" and len(lines) == len(rows)
    for row, line in zip(rows, lines, strict=True):
        assert line.startswith(row["run"]) and row["who"] in line and row["verdict"] in line
        assert re.search(rf"\b{row['ratio']:.2f}  {re.escape(row['floor'])}", line)
    assert "200 MiB" in lines[-1] and "<= 1.5  missed" in lines[-1]
    assert {each.run for each in contenders} <= {row["run"] for row in rows}


def test_a_missing_peer_is_a_line(monkeypatch: pytest.MonkeyPatch):
    not_here = set(peers.contenders()[1])  # the extra `bench` may not be installed at all
    for package in ("quantus", "torchcam", "torchcam.methods"):
        monkeypatch.setitem(sys.modules, package, None)
    found, missing = peers.contenders()
    names = [line.split(" has no rows: ")[0] for line in missing]
    assert len(set(names)) == len(names) and {"torch-cam", "Quantus"} <= set(names)
    assert set(names) <= {"torch-cam", "Quantus"} | {line.split(" has no rows: ")[0] for line in not_here}
    assert not set(names) & {each.who for each in found}


def test_rows_of_memory(monkeypatch: pytest.MonkeyPatch):
    peaks = {name: 100.0 for name in memory.RUNS} | {"gradient": 160.0, "plain, twice the batch": 200.0}
    monkeypatch.setattr(memory, "child", lambda name, device, size: peaks[name])
    rows = {row["run"]: row for row in memory.measure(torch.device("cpu"))}
    assert len(rows) == len(memory.RUNS)
    assert rows["memory: gradient"]["ratio"] == 1.6 and rows["memory: gradient"]["verdict"] == "missed"
    assert rows["memory: DeepLift"]["ratio"] == 0.5 and rows["memory: DeepLift"]["verdict"] == "met"
    assert rows["memory: plain"]["who"] == "floor" and rows["memory: plain"]["verdict"] == ""


@pytest.mark.parametrize("name", memory.RUNS)
def test_what_is_measured_runs(name: str, case: Case):
    memory.RUNS[name][0](case)
