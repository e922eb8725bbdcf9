"""Training in several processes: the network of one process, whatever their number, and whether one was killed or not.

Run by torchrun, this file is what each of the processes does.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from smoothsal_lib.datasets import tiny_imagenet
from smoothsal_lib.datasets.patches import Patches
from smoothsal_lib.models import DenseResNet, TinyResNet, load_model
from smoothsal_lib.parallel import ALONE, Team, joined
from smoothsal_lib.training import classifier, detector
from smoothsal_lib.training.batchnorm import WholeBatchNorm

CPU = torch.device("cpu")
NARROW = (8, 8, 8, 8)  # with four, the backward pass of float32 crashes in oneDNN
BATCH = 7  # which neither 2 nor 3 divide
NOISY = classifier.Recipe(
    epochs=0, polish=((3, {48: 0.5, 64: 0.5}),), polish_lr=0.1, label_smoothing=0.1, batch=BATCH, noise=0.1
)
TISSUE = detector.Recipe(epochs=2, batch=BATCH, sizes=((32, 0.5), (48, 0.5)))


class Exact:
    """In float64, which autocast leaves alone. Only the loss, and the gradient of the logits, are in float32."""

    killed_at = -1  # the step in training at which the process ends
    steps = 0

    def forward(self, x: Tensor) -> Tensor:
        Exact.steps += self.training
        if Exact.steps == Exact.killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x.double())


class ExactResNet(Exact, TinyResNet): ...


class ExactDense(Exact, DenseResNet): ...


def new(kind: type[nn.Module], outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return kind(outputs, NARROW).double().to(memory_format=torch.channels_last)


def numbers(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_trained(folder: Path, team: Team) -> tuple[nn.Module, list]:
    pictures = torch.randint(0, 256, (16, 3, 64, 64), dtype=torch.uint8, generator=numbers())
    data = pictures, torch.arange(16) % 3
    model = new(ExactResNet, 3)
    return model, classifier.fit(model, NOISY, data, data, folder / "noisy.checkpoint.pt", CPU, team)


def detecting(kind: type[nn.Module], outputs: int, folder: Path, team: Team) -> tuple[nn.Module, list]:
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8, generator=numbers())
    masks = {name: torch.rand(16, 32, 32, generator=numbers(1)) < 0.3 for name in ("lumen", "tumour", "gland")}
    patches = Patches(images, torch.arange(16) % 2, torch.arange(16) % 4, masks)
    model = new(kind, outputs)
    checkpoint = folder / f"{kind.__name__}.checkpoint.pt"
    return model, detector.fit_detector(model, patches, TISSUE, checkpoint, validation=patches[:11], team=team)


TRAININGS = {
    "noisy": noise_trained,
    "detector": partial(detecting, ExactResNet, 1),
    "segmenter": partial(detecting, ExactDense, 4),
}


def train_all(folder: Path, team: Team) -> None:
    """Train each, and store what came out, as each process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, training in TRAININGS.items():
        model, curve = training(folder, team)
        assert type(model) in (ExactResNet, ExactDense) and not model.training
        assert {type(module) for module in model.modules() if "Norm" in type(module).__name__} == {nn.BatchNorm2d}
        torch.save({"weights": model.state_dict(), "curve": curve}, folder / f"{name}_{team.rank}.pt")


def outcomes(folder: Path, processes: int) -> dict[str, list[dict]]:
    return {name: [torch.load(folder / f"{name}_{rank}.pt") for rank in range(processes)] for name in TRAININGS}


# --- what the processes do --------------------------------------------------------------------------------------------


def compare_batch_norms(team: Team) -> None:
    """With :class:`nn.BatchNorm2d` on the whole batch: output, gradients, and statistics after two steps."""
    whole = torch.randn(2, 5, 3, 4, 2, dtype=torch.float64, generator=numbers()) * 3 + 10
    onto = torch.randn(5, 3, 4, 2, dtype=torch.float64, generator=numbers(1))
    part = team.part(5)
    for options in ({}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.1}):
        expected, norm = (nn.BatchNorm2d(3, dtype=torch.float64, **options) for _ in range(2))
        for x in whole:
            parameters, own_parameters = (dict(one.named_parameters()) for one in (expected, norm))
            for one in (parameters, own_parameters):
                if one:
                    one["weight"].data = torch.tensor([1.0, -2, 3], dtype=torch.float64)
            x, own = x.clone().requires_grad_(), x[part].clone().requires_grad_()
            y = expected(x)
            gradients = torch.autograd.grad((y * y * onto).sum(), [x, *parameters.values()])
            with WholeBatchNorm():
                own_y = norm(own)
            own_gradients = torch.autograd.grad((own_y * own_y * onto[part]).sum(), [own, *own_parameters.values()])
            team.add_up(own_gradients[1:])
            torch.testing.assert_close(own_y, y[part])
            torch.testing.assert_close(own_gradients, (gradients[0][part], *gradients[1:]))
        torch.testing.assert_close(norm.state_dict(), expected.state_dict())
        if norm.track_running_stats:
            with WholeBatchNorm():  # in evaluation mode there is nothing to share
                torch.testing.assert_close(norm.eval()(own), expected.eval()(x)[part])
    norm = nn.BatchNorm2d(3)
    with torch.autocast("cpu", torch.bfloat16), WholeBatchNorm():
        own = norm(whole[0, part].bfloat16())
    expected = nn.BatchNorm2d(3)(whole[0].bfloat16())
    assert own.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(own, expected[part])


@dataclass(frozen=True)
class OneEpoch(classifier.Recipe):
    polish: tuple = ()


def command(folder: Path, data: Path) -> None:
    classifier.TinyResNet, classifier.Recipe = partial(TinyResNet, 100, NARROW), OneEpoch
    classifier.main(["--data", str(data), "--out", str(folder / "command"), "--epochs", "1", "--device", "cpu"])


def work(folder: Path, data: Path, dies: bool) -> None:
    restarted = os.environ["TORCHELASTIC_RESTART_COUNT"] == "1"
    with joined("cpu") as (team, _):
        if dies and restarted and team.leads:
            shutil.copytree(folder, folder.with_name("left"))
        if dies and not restarted and team.rank == 1:
            Exact.killed_at = 4  # in the middle of the second epoch, which has two steps
        if not dies:
            compare_batch_norms(team)
        train_all(folder, team)
    if team.size == 2:
        command(folder, data)


# --- what comes of it -------------------------------------------------------------------------------------------------


def start(processes: int, folder: Path, data: Path, *, dies: bool = False) -> str:
    """What torchrun and its processes say; it starts them once more when one dies."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "--max-restarts", "1"]
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, __file__, str(folder), str(data), "dies" if dies else "lives"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    folder = tmp_path_factory.mktemp("alone")
    train_all(folder, ALONE)
    return outcomes(folder, 1)


@pytest.fixture(scope="module")
def together(fake_data, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, str]]:
    folders = {processes: tmp_path_factory.mktemp("together") for processes in (2, 3)}
    return {processes: (folder, start(processes, folder, fake_data)) for processes, folder in folders.items()}


def close(found: dict, expected: dict) -> float:
    """The largest difference of weights and statistics; those of the curves' figures are checked here."""
    for row, other in zip(found["curve"], expected["curve"], strict=True):
        assert {**row, "seconds": 0} == pytest.approx({**other, "seconds": 0}, abs=1e-6)
    differences = [
        (value.double() - expected["weights"][name].double()).abs().max().item()
        for name, value in found["weights"].items()
    ]
    return max(differences)


@pytest.mark.parametrize("processes", [2, 3])
def test_many_processes_train_the_network_of_one(processes, together, alone) -> None:
    """Up to rounding: of sums in float64, and of logits and losses in float32, whose relative step is 6e-8."""
    folder, said = together[processes]
    found = outcomes(folder, processes)
    for name, (expected,) in alone.items():
        first, *others = found[name]
        assert list(first["weights"]) == list(expected["weights"])
        assert close(first, expected) < 1e-6
        for other in others:  # to the last bit
            assert all(torch.equal(value, other["weights"][key]) for key, value in first["weights"].items()), name
    assert said.count("epoch  1/") == len(TRAININGS) + (processes == 2)  # one process speaks
    assert "Warning" not in said


def test_a_killed_process_costs_nothing(fake_data, together, alone, tmp_path) -> None:
    """One of three, since what three numbers add up to depends on their order."""
    said = start(3, tmp_path / "killed", fake_data, dies=True)
    assert said.count("epoch  1/3") == said.count("epoch  2/3") == 1  # torchrun goes on after the first
    found, whole = (outcomes(folder, 3) for folder in (tmp_path / "killed", together[3][0]))
    for name, processes in whole.items():
        for one, other in zip(found[name], processes, strict=True):
            assert [row["loss"] for row in one["curve"]] == [row["loss"] for row in other["curve"]]
            for key, value in other["weights"].items():
                assert torch.equal(value, one["weights"][key]), (name, key)

    left = tmp_path / "left"  # as the killed process left it; another number of them may go on as well
    assert [path.name for path in left.iterdir()] == ["noisy.checkpoint.pt"]
    assert len(torch.load(left / "noisy.checkpoint.pt")["curve"]) == 1
    model, curve = noise_trained(left, ALONE)
    assert close({"weights": model.state_dict(), "curve": curve}, alone["noisy"][0]) < 1e-6


def test_the_command(fake_data, together) -> None:
    folder, said = together[2][0] / "command", together[2][1]
    assert said.count("top-1 on 100 validation images") == 1
    record = json.loads((folder / "results" / "tiny_resnet_training.json").read_text())
    assert record["device"].startswith("2 processes, each on ")
    assert record["device"] in (folder / "tiny_resnet.md").read_text()
    assert set(load_file(folder / "tiny_resnet.safetensors")) == set(TinyResNet(100, NARROW).state_dict())
    top1 = classifier.evaluate(load_model("tiny_resnet", folder), *tiny_imagenet.load_split("val", fake_data), CPU)
    assert f"images: {top1:.4f}" in said


def test_more_processes_than_pictures_are_refused(tmp_path) -> None:
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    data = images, torch.zeros(2, dtype=torch.long)
    model = new(ExactResNet, 3)
    optimizer = classifier.make_optimizer(model, NOISY)
    with pytest.raises(ValueError, match=r"^3 processes cannot share a batch of 2: start 2 at most$"):
        classifier.train_epoch(model, optimizer, *data, 0, NOISY, CPU, Team(0, 3))


if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "dies")
