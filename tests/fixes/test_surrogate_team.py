"""Fits in several processes: the surrogate of one process, whatever their number, and whether one was killed or not.

Run by torchrun, this file is what each of the processes does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from smoothsal_lib.fixes import surrogate as surrogate_module
from smoothsal_lib.fixes.surrogate import Surrogate, fit_surrogate
from smoothsal_lib.parallel import ALONE, Team, joined
from smoothsal_lib.training import surrogate as training

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS))
from networks import build  # noqa: E402  (torchrun does not know of the tests' folder)


def images(count: int, seed: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Parts:
    """A stream of 13 pictures in fours, so that the last batch has one; each process gives its part."""

    def __init__(self, team: Team) -> None:
        self.batches, self.team = images(13).split(4), team

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.batches:
            yield batch[self.team.part(len(batch))]


FITS: dict[str, dict[str, Any]] = {
    "least squares": {"epochs": 2, "batch_size": 7},
    "paper": {"recipe": "paper", "epochs": 2, "batch_size": 17},  # of 18: the last batch has one
    "stream": {"held_out": images(8, seed=4), "epochs": 2},
    "stream, paper": {"recipe": "paper", "held_out": images(8, seed=4), "epochs": 2},
    "killed": {"held_out": images(8, seed=4), "epochs": 2, "every": 1},  # the same as "stream"
}


def fit(name: str, team: Team, checkpoint: Path | None = None) -> Surrogate:
    given = images(20) if name in ("least squares", "paper") else Parts(team)
    return fit_surrogate(build("residual"), given, team=team, checkpoint=checkpoint, progress=False, **FITS[name])


def outcome(surrogate: Surrogate) -> dict[str, Any]:
    return {"weights": surrogate.state_dict(), "errors": surrogate.errors, "record": surrogate.record}


def die_in_the_second_epoch(team: Team) -> None:
    """Of two processes, the second ends when the first goes on from the checkpoint after two steps."""
    save = surrogate_module._Run.save

    def save_and_die(run: Any) -> None:
        save(run)
        if team.size == 2 and team.rank == 1 and (run.epoch, run.step) == (1, 2):
            os.kill(os.getpid(), signal.SIGKILL)

    surrogate_module._Run.save = save_and_die  # type: ignore[method-assign]


def main(folder: Path) -> None:
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
    with joined("cpu") as (team, _):
        for name in FITS:
            if name == "killed" and attempt == "0":
                die_in_the_second_epoch(team)
            if name == "killed" or attempt == "0":
                found = fit(name, team, folder / "fit.pt" if name == "killed" else None)
                torch.save(outcome(found), folder / f"{name} {team.rank}.pt")
    (folder / f"attempts {team.rank}").write_text(attempt)
    command(folder, folder / "team")


def command(folder: Path, out: Path) -> None:
    """The command line, which finds its team by itself, on the pictures in ``folder``."""
    pictures = str(folder / "pictures")
    words = ["--model", "tiny_resnet", "--images-from", pictures, "--held-out-from", pictures, "--images", "all"]
    words += ["--recipe", "paper", "--epochs", "1", "--size", "32", "--batch-size", "5", "--workers", "0"]
    training.main([*words, "--device", "cpu", "--out", str(out)])


@pytest.fixture(scope="module", params=[2, 3])
def launched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The folder with what came out of every process, and their number."""
    folder = tmp_path_factory.mktemp(f"team{request.param}")
    for number in range(11):
        (folder / "pictures" / f"{number % 2}").mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(number)
        picture = to_pil_image(torch.rand(3, 36, 36, generator=generator))
        picture.save(folder / "pictures" / f"{number % 2}" / f"{number}.png")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(request.param)]
    command += ["--max-restarts", "1", __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return folder, request.param


@pytest.mark.parametrize("name", FITS)
def test_the_surrogate_is_that_of_one_process(launched: tuple[Path, int], name: str) -> None:
    folder, size = launched
    expected = outcome(fit(name, ALONE))
    for rank in range(size):
        found = torch.load(folder / f"{name} {rank}.pt")
        torch.testing.assert_close(found["weights"], expected["weights"], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found["errors"], expected["errors"], rtol=1e-6, atol=0)
        assert found["record"] == expected["record"]


def test_a_killed_fit_ends_like_the_other(launched: tuple[Path, int]) -> None:
    folder, size = launched
    for rank in range(size):
        assert (folder / f"attempts {rank}").read_text() == ("1" if size == 2 else "0")
        found, expected = (torch.load(folder / f"{name} {rank}.pt") for name in ("killed", "stream"))
        assert all(found["weights"][name].equal(weight) for name, weight in expected["weights"].items())
        assert (found["errors"], found["record"]) == (expected["errors"], expected["record"])


def test_the_command_in_several_processes(launched: tuple[Path, int], tmp_path: Path) -> None:
    """In float32, and stored in half precision: not bit for bit."""
    folder, size = launched
    command(folder, tmp_path)
    ours, theirs = (Surrogate.load(out / "tiny_resnet_surrogate.safetensors") for out in (folder / "team", tmp_path))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-3, atol=1e-4)
    record = json.loads((folder / "team" / "results" / "tiny_resnet_surrogate.json").read_text())
    assert record["images"] == record["presentations"] == 11 and record["device"].startswith(f"{size} processes")
    assert not (folder / "team" / "tiny_resnet_surrogate.checkpoint.pt").exists()


if __name__ == "__main__":
    main(Path(sys.argv[1]))


def test_processes_that_would_not_fit_the_same_stop() -> None:
    """Or they would wait for each other: one takes more steps than the other."""

    class Second(Team):
        def tell(self, value: Any) -> Any:
            settings, steps, every = value
            return [settings, steps + 1, every]

    with pytest.raises(ValueError, match="^the leader of these processes fits otherwise than process 1, with "):
        fit_surrogate(build("residual"), images(16), team=Second(1, 2), progress=False)
