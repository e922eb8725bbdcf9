"""Several processes end with what one would have found, whoever dies on the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from slide_files import damage, glass, noise, write
from torch import nn

pytest.importorskip("tiffslide", reason="the extra slides is not installed")

from smoothsal_lib import evaluate, parallel
from smoothsal_lib import slide as slide_module
from smoothsal_lib.models import TinyResNet
from smoothsal_lib.parallel import ALONE, Team, first_to_fail, joined
from smoothsal_lib.slide import HEATMAP, PICTURE, SUMMARY

SIZES = (1, 2, 3, 7)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [0, 1, 2, 7, 20])
def test_every_item_is_somebodys_and_nobodys_twice(size: int, count: int):
    team = [Team(rank, size) for rank in range(size)]
    shares = [one.share(range(count)) for one in team]
    assert sorted(item for share in shares for item in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    parts = [range(count)[one.part(count)] for one in team]
    assert [item for part in parts for item in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_alone_nothing_is_exchanged():
    tensor = torch.arange(3.0)
    ALONE.wait()
    ALONE.add_up([tensor])
    ALONE.take_over([tensor])
    assert ALONE.leads and tensor.tolist() == [0, 1, 2] and ALONE.tell("words") == "words"
    with joined("cpu") as (team, device):
        assert team is ALONE and device == torch.device("cpu")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[dist.Store]:
    """As torchrun would have started this process, alone on its machine but for a second GPU's; the store it lends."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=10))
    found = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    found |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    found |= {"RANK": "0", "LOCAL_RANK": "1", "WORLD_SIZE": "1"}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    yield store
    monkeypatch.setattr(parallel, "_meeting", None)


@pytest.mark.usefixtures("launched")
def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        ValueError, match="^process 1 of this machine has no GPU of its own: there are 1, which --nproc"
    ):
        with joined("cuda"):
            pass
    assert not dist.is_initialized() and first_to_fail() and not first_to_fail()


def test_one_process_speaks_of_a_failure(launched: dist.Store, monkeypatch: pytest.MonkeyPatch):
    assert first_to_fail() and first_to_fail()  # they have not met yet
    first, second = (dist.PrefixStore(name, launched) for name in "ab")
    for store, expected in ((first, [True, False]), (second, [True, False])):
        monkeypatch.setattr(parallel, "_meeting", store)
        assert [first_to_fail(), first_to_fail()] == expected

    class Gone:
        def add(self, key: str, count: int) -> int:
            raise RuntimeError("connection refused")

    monkeypatch.setattr(parallel, "_meeting", Gone())
    assert first_to_fail()


def test_who_meets_is_not_led_astray_by_who_was_there_before(launched: dist.Store, monkeypatch: pytest.MonkeyPatch):
    """Three attempts with the same store; of the first, one process died before it had an answer."""
    places = iter(())

    def lent(url: str, timeout: timedelta) -> Iterator[tuple[dist.Store, int, int]]:
        yield dist.TCPStore("127.0.0.1", launched.port, is_master=False), *next(places)

    monkeypatch.setattr(sys.modules["torch.distributed.rendezvous"], "rendezvous", lent)
    launched.set("question 1", "of a dead process")
    seen = []
    for size in (3, 3, 2):
        places = iter([(rank, size) for rank in range(size)])
        with ThreadPoolExecutor(size) as threads:
            met = [one.result(10) for one in [threads.submit(parallel._meet) for _ in range(size)]]
        assert sorted(team.rank for _, team in met) == list(range(size))
        (store, _), *others = met
        store.set("word", str(size))
        assert all(other.get("word") == str(size).encode() for other, _ in others)
        assert all(store.add("count", 1) == i + 1 for i, (store, _) in enumerate(met))  # nobody counted before
        seen += others
    assert len(seen) == 5


def test_a_lost_process_is_told_of_in_one_line(monkeypatch: pytest.MonkeyPatch):
    def lost(*_: object, **__: object) -> None:
        raise RuntimeError("Connection closed by peer [127.0.0.1]\nand its stack")

    monkeypatch.setattr(dist, "all_reduce", lost)
    for talk in (Team(0, 2).wait, lambda: Team(0, 2).add_up([torch.zeros(1)])):
        with pytest.raises(ConnectionError, match=r"^another process of this run has ended.*by peer \[127.0.0.1\]$"):
            talk()


CHILD = """
    import os, signal, sys
    import torch
    from pathlib import Path

    from smoothsal_lib import evaluate, slide
    from smoothsal_lib.__main__ import main
    from smoothsal_lib.ledger import Ledger
    from smoothsal_lib.models import TinyResNet
    from smoothsal_lib.parallel import joined

    def detector(name):
        torch.manual_seed(0)
        return TinyResNet(1, (4, 4, 6, 8)).eval()

    slide.load_model = detector
    name, fatal, *words = sys.argv[1:]  # fatal: at which attempt rank 1 kills itself, at which the leader cannot write
    attempt, rank = (int(os.environ[name]) for name in ("TORCHELASTIC_RESTART_COUNT", "RANK"))
    add, write = Ledger.add, evaluate.write
    dies, fails = (int(one) for one in fatal.split(","))

    def killed(self, key, values):
        if rank == 1 and attempt == dies and self.pieces:  # it has added one before
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, key, values)

    def full(*arguments):
        if attempt == fails:
            raise FileNotFoundError("the disk is gone")
        write(*arguments)

    def talk():
        with joined("cpu") as (team, device):
            a, b = torch.full((2, 3), float(team.rank)), torch.tensor([1.0, team.rank])
            team.add_up([a, b])
            c = torch.tensor([team.rank])
            team.take_over([c], team.size - 1)
            d = torch.tensor([team.rank])
            team.take_over([d])
            said = [a.tolist(), b.tolist(), c.tolist(), d.tolist(), team.tell({"from": team.rank})]
            Path(sys.argv[0]).with_name(f"{team.rank}.txt").write_text(repr((said, team.size)))

    talk()
    Ledger.add, evaluate.write = killed, full
    sys.argv[1:] = [name, *words]
    main()
"""


def launch(folder: Path, size: int, restarts: int, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the child's code in several processes; ports are free ones, so that tests may run side by side."""
    script = folder / "child.py"
    script.write_text(textwrap.dedent(CHILD))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    command += ["--max-restarts", str(restarts), str(script), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        try:
            out, error = process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            process.terminate()  # which torchrun hands on to those that it started, unlike a kill
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, error)


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Sums are rounded as the number of threads has it, and the bytes are to be those of the launched processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def lines(text: str, of: str) -> list[str]:
    return [line for line in text.splitlines() if of in line]


def test_evaluate_by_three_of_whom_one_dies_and_one_fails(fake_data: Path, tmp_path: Path):
    """Seven batches, two of which are not even full sets of three; torchrun starts the processes again, twice."""
    words = ["--folder", str(fake_data), "--images", "20", "--batch", "3", "--layers", "layer3.1", "--device", "cpu"]
    words += ["--measure", "total_variation", "--method", "gradient", "random"]
    (tmp_path / "out").mkdir()
    shared, alone = tmp_path / "out" / "a.json", tmp_path / "alone" / "a.json"
    done = launch(tmp_path, 3, 2, "evaluate", "0,1", *words, "--out", str(shared))
    assert done.returncode == 0, done.stderr
    said = ([[[3.0] * 3] * 2, [3.0, 3.0], [2], [0], {"from": 0}], 3)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(3)] == [repr(said)] * 3
    # Of the first failure a survivor may speak before torchrun ends it; of the second the leader, and no other.
    *before, told = lines(done.stderr, "python -m smoothsal_lib evaluate: ")
    assert "the disk is gone" in told and len(before) <= 1
    assert all("another process of this run has ended" in line for line in before)
    with on_one_thread():
        evaluate.main([*words, "--out", str(alone)])
    assert shared.read_bytes() == alone.read_bytes()
    rows = json.loads(shared.read_text())["rows"]
    assert [row["n"] for row in rows] == [20] * 4
    assert [one.name for one in shared.parent.iterdir()] == ["a.json"]


def test_a_slide_begun_by_three_and_finished_by_one_or_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture = glass(400, 500)
    picture[100:300, 50:400] = noise(200, 350) // 4 + 100
    slide = write(tmp_path / "tissue.tif", picture)
    damage(slide, 8 * 3 + 2)
    words = f"{slide} --layer layer2.1 --mpp 0.5 --tile 64 --overlap 32 --batch 3 --mask 100 --device cpu --out".split()

    def detector(name: str) -> nn.Module:
        torch.manual_seed(0)
        return TinyResNet(1, (4, 4, 6, 8)).eval()

    monkeypatch.setattr(slide_module, "load_model", detector)
    whole, one, two = (tmp_path / name for name in ("whole", "one", "two"))
    done = launch(tmp_path, 3, 0, "slide", "0,-1", *words, str(two))
    assert done.returncode != 0 and not (two / HEATMAP).exists() and not done.stdout
    assert len(lines(done.stderr, "python -m smoothsal_lib slide: ")) <= 1
    begun = {f"tiles.partial{number}.jsonl" for number in ("", ".1", ".2")}
    assert begun < {path.name for path in two.iterdir()}
    assert (two / "tiles.partial.1.jsonl").read_text().count("\n") == 2
    shutil.copytree(two, one)
    with on_one_thread():
        for out in (whole, one):
            slide_module.main([*words, str(out)])
    done = launch(tmp_path, 2, 0, "slide", "-1,-1", *words, str(two))
    assert done.returncode == 0, done.stderr
    assert len(lines(done.stdout, "tiles explained")) == 1 and "skipped tile" in done.stdout
    for name in (HEATMAP, PICTURE, SUMMARY):
        assert (one / name).read_bytes() == (two / name).read_bytes() == (whole / name).read_bytes(), name
    for out in (one, two):
        assert sorted(path.name for path in out.iterdir()) == sorted([HEATMAP, PICTURE, SUMMARY])
