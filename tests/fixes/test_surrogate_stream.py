"""Fits to streams: what a stream must be, how little of it is kept, and that a kill changes nothing."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import build
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from smoothsal_lib.fixes import surrogate as surrogate_module
from smoothsal_lib.fixes.surrogate import Surrogate, fit_surrogate


def images(count: int, seed: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def fit(model: nn.Module, stream: Any, **options: Any) -> Surrogate:
    return fit_surrogate(model, stream, **{"held_out": images(8, seed=4), "progress": False, **options})


class Counting:
    """A stream of fresh pictures that counts those of its batches that somebody still holds."""

    def __init__(self, batches: int) -> None:
        self.batches, self.alive, self.most, self.given = batches, set[int](), 0, 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Tensor]:
        for number in range(self.batches):
            batch = images(4, seed=number)
            self.given += 1
            self.alive.add(self.given)
            weakref.finalize(batch.untyped_storage(), self.alive.discard, self.given)
            self.most = max(self.most, len(self.alive))
            yield batch
            del batch


def equal(ours: Surrogate, theirs: Surrogate) -> bool:
    return all(a.equal(b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("recipe", ["least_squares", "paper"])
def test_no_batch_is_kept(recipe: str) -> None:
    most = []
    for batches in (6, 60):
        stream = Counting(batches)
        gc.collect()
        fit(build("functional"), stream, recipe=recipe, epochs=2)
        most.append(stream.most)
    assert most[0] == most[1] <= 2


def test_least_squares_stop_reading_and_keep_no_more_rows_than_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    monkeypatch.setattr(surrogate_module, "fit_stage", lambda stage, x, y: rows.append(len(y) * y[0, 0].numel()))
    stream = Counting(500)
    found = fit(build("functional"), stream, epochs=0)
    needed = 20 * 9 * 6  # rows a feature, taps, channels
    assert needed <= rows[0] < needed + 4 * 16
    assert stream.given < 20
    assert found.record["presentations"] == rows[0] // 16


def test_plain_loader_and_its_own_generator(tmp_path: Path) -> None:
    """A fit to a shuffling DataLoader is repeatable, and leaves the loader's random numbers where they were."""
    x, model = images(32), build("functional")
    own = torch.Generator().manual_seed(9)
    before = own.get_state()
    for generator in (None, own):
        loader = DataLoader(TensorDataset(x, torch.zeros(32)), batch_size=8, shuffle=True, generator=generator)
        found = fit(model, loader, epochs=2)
        next(iter(loader))  # draws numbers
        own.set_state(before)
        torch.manual_seed(77)
        assert equal(found, fit(model, loader, epochs=2))
        assert not equal(found, fit(model, loader, epochs=2, seed=1))
        assert own.get_state().equal(before)
    assert found.record["batches"] == 4 and found.record["held_out"] == 8
    assert found.record["presentations"] == 2 * 32 + 2 * 32


def test_a_stream_in_order_learns_what_its_batches_teach() -> None:
    """Without mirroring, a stream is Adam over its batches; the same by hand."""
    model, batches = build("functional"), images(16).split(4)
    loader = DataLoader(torch.cat(batches), batch_size=4)  # type: ignore[arg-type]
    found = fit(model, loader, recipe="paper", epochs=3)
    torch.manual_seed(0)
    expected = Surrogate.of(model)
    (stage,) = expected.stages
    adam = torch.optim.Adam(expected.parameters(), lr=1e-3)
    for x in batches * 3:
        z = torch.relu(model.first(x)).detach()
        adam.zero_grad()
        torch.nn.functional.l1_loss(stage(z), model.second(z).detach()).backward()
        adam.step()
    for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


class Epochs(Counting):
    """Tells which epochs it was asked for."""

    def __init__(self) -> None:
        super().__init__(3)
        self.told: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.told.append(epoch)


class Begun(Counting):
    """Begins where it is told."""

    def __init__(self) -> None:
        super().__init__(3)
        self.told: list[tuple[int, int]] = []

    def begin(self, epoch: int, step: int) -> None:
        self.told.append((epoch, step))


def test_streams_are_told_the_epoch() -> None:
    first, second = Epochs(), Begun()
    for stream in (first, second):
        fit(build("functional"), stream, recipe="paper", epochs=3)
    assert first.told == [0, 1, 2] and second.told == [(0, 0), (1, 0), (2, 0)]


class DyingError(Exception):
    pass


PLACES = [("least_squares", (0, 0)), *((r, p) for r in ("least_squares", "paper") for p in ((0, 2), (1, 0), (1, 4)))]


@pytest.mark.parametrize(("recipe", "place"), PLACES)
@pytest.mark.parametrize("stream", [True, False])
def test_killed_within_an_epoch(
    recipe: str, place: tuple[int, int], stream: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x, path = build("functional"), images(24), tmp_path / "fit.pt"
    given: Any = DataLoader(TensorDataset(x), batch_size=5, shuffle=True) if stream else x
    options: dict[str, Any] = {"recipe": recipe, "epochs": 2, "batch_size": 5}
    expected = fit(model, given, **options)
    save = surrogate_module._Run.save

    def save_and_die(run: Any) -> None:
        save(run)
        if (run.epoch, run.step) == place:
            raise DyingError

    monkeypatch.setattr(surrogate_module._Run, "save", save_and_die)
    with pytest.raises(DyingError):
        fit(model, given, **options, checkpoint=path, every=2)
    monkeypatch.undo()
    found = fit(model, given, **options, checkpoint=path, every=2)
    assert equal(found, expected) and found.record == expected.record and found.errors == expected.errors


class Short(Counting):
    def __len__(self) -> int:
        return self.batches + 1


class Long(Counting):
    def __len__(self) -> int:
        return self.batches - 1


def once() -> Iterator[Tensor]:
    yield images(8)


class Unsized:
    def __iter__(self) -> Iterator[Tensor]:
        return once()


class Wrong(Counting):
    """Of another kind in its first batch, or a later one."""

    def __init__(self, change: Callable[[Tensor], Any], at: int = 0) -> None:
        super().__init__(3)
        self.change, self.at = change, at

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(super().__iter__()):
            yield self.change(batch) if number == self.at else batch


@pytest.mark.parametrize(
    ("stream", "options", "error", "message"),
    [
        (once(), {}, ValueError, "a generator can be read only once: pass what it comes from, such as a DataLoader"),
        (Unsized(), {}, ValueError, "expected a stream with a length, .* len\\(Unsized\\) fails"),
        (7, {}, TypeError, "expected a tensor or batches of images, got int"),
        (Counting(3), {"held_out": None}, ValueError, "a stream needs held_out="),
        (Counting(3), {"held_out": images(2).float()}, ValueError, "float32 on cpu but the model is torch.float64"),
        (Short(3), {}, ValueError, "the stream's length is 4 batches, but it gave 3 in epoch 1"),
        (Long(3), {}, ValueError, "the stream's length is 2 batches, but it gave at least 3 in epoch 1"),
        (Wrong(str), {}, TypeError, "expected batches that are tensors or begin with one, got str"),
        (Wrong(Tensor.float), {}, ValueError, "float32 on cpu but the model is torch.float64"),
        (Wrong(lambda x: x * torch.nan), {}, ValueError, "expected finite images"),
        (Wrong(lambda x: x * torch.nan, 2), {}, ValueError, "no longer finite in epoch 2, step 0: look for images"),
        (Counting(3), {"every": 0}, ValueError, "every = 0 is not a number of steps"),
    ],
)
def test_bad_input(stream: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        fit(build("functional"), stream, **{"recipe": "paper", "epochs": 2, **options})
    assert "\n" not in str(caught.value)
