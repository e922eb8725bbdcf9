"""What does not fit the memory is done in parts, and comes to the same."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from networks import build
from torch import Tensor, nn

import smoothsal_lib as sal
from smoothsal_lib.capture import logits_of
from smoothsal_lib.memory import Portions, lack_of_memory
from smoothsal_lib.metrics.road import road
from smoothsal_lib.rise import rise
from smoothsal_lib.sampling import AdaptGrad, FusionGrad, NoiseGrad, Path, Sampling, SmoothGrad, VarGrad

TARGETS = [0, 4, 2, 4, 1]


def lack() -> Exception:
    return torch.cuda.OutOfMemoryError("CUDA out of memory.")


@pytest.fixture
def x() -> Tensor:
    """Five images, so that halves are not equal."""
    return torch.randn(5, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def reference(x: Tensor) -> Tensor:
    """A baseline for each."""
    return torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, attribution in found.items():
        assert not attribution.requires_grad
        torch.testing.assert_close(attribution, expected[name], msg=lambda m, n=name: f"{n}: {m}")


# ------------------------------------------------------------------------------------------------------- chunks


@pytest.mark.parametrize("target", [None, 3, TARGETS, torch.tensor(TARGETS)], ids=["none", "one", "list", "tensor"])
@pytest.mark.parametrize("batch", [1, 2, 9])
def test_chunks_keep_each_picture_to_its_class(batch: int, target: Any, x: Tensor) -> None:
    model = build("residual")
    expected = sal.explain(model, x, target, method="gradient", fix="backward")
    assert_same(sal.explain(model, x, target, method="gradient", fix="backward", batch=batch), expected)


@pytest.mark.parametrize("method", [*sal.METHODS, "conv3x3+l2", "weights+l2"])
def test_chunks_of_every_method(method: str, x: Tensor, reference: Tensor) -> None:
    """In place where it can be, so that what "all" means is found with one network, one way, and used another."""
    model = build("residual")
    options: dict[str, Any] = {"method": method, "fix": "backward", "baseline": reference, "steps": 2}
    if method == "smooth_grad_cam++":
        options["sampling"] = SmoothGrad(3)
    assert_same(sal.explain(model, x, TARGETS, batch=2, **options), sal.explain(model, x, TARGETS, **options))


def per_picture(name: str, x: Tensor) -> Sampling:
    return {
        "smoothgrad": SmoothGrad(3, batch=4),
        "vargrad": VarGrad(3, batch=4),
        "adaptgrad": AdaptGrad(3),
        "adaptgrad between bounds of each picture": AdaptGrad(3, low=x - 1, high=x.amax((1, 2, 3), keepdim=True) + 1),
        "noisegrad": NoiseGrad(2),
        "fusiongrad": FusionGrad(2, m=2),
        "path": Path(3),
        "path from a baseline for each picture": Path(3, baseline=x.flip(0)),
        "path from one baseline": Path(3, baseline=x[:1]),
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "smoothgrad",
        "vargrad",
        "adaptgrad",
        "adaptgrad between bounds of each picture",
        "noisegrad",
        "fusiongrad",
        "path",
        "path from a baseline for each picture",
        "path from one baseline",
    ],
)
def test_chunks_of_every_sampling(name: str, x: Tensor, reference: Tensor) -> None:
    model = build("functional")
    options: dict[str, Any] = {"method": "deeplift", "sampling": per_picture(name, x), "baseline": reference}
    assert_same(sal.explain(model, x, None, batch=2, **options), sal.explain(model, x, None, **options))


@pytest.mark.parametrize("order", [1, 2])
def test_chunks_after_an_inner_step(order: int, x: Tensor) -> None:
    model = build("functional")
    options: dict[str, Any] = {"method": "gradient", "meta": sal.MetaStep(0.1, order)}
    assert_same(sal.explain(model, x, TARGETS, batch=2, **options), sal.explain(model, x, TARGETS, **options))


@pytest.mark.parametrize("sampling", [None, SmoothGrad(2)])
@pytest.mark.parametrize("own", [False, True], ids=["one region", "a region each"])
def test_chunks_keep_each_picture_to_its_region(own: bool, sampling: Sampling | None, x: Tensor) -> None:
    dense = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 5, 3, 1, 1)).double()
    region = torch.rand(5, 16, 16) if own else torch.rand(16, 16)
    options: dict[str, Any] = {"layers": ["1", "input"], "region": region, "sampling": sampling}
    assert_same(sal.explain(dense, x, None, batch=2, **options), sal.explain(dense, x, None, **options))


def test_no_more_pictures_than_the_chunk_are_seen_at_once(x: Tensor) -> None:
    model = build("functional")
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    sal.explain(model, x, method="gradient", batch=2)
    assert seen == [2, 2, 1]


@pytest.mark.parametrize("batch", [0, -2, 2.5, True, "2"])
def test_a_chunk_is_a_number_of_pictures(batch: Any, x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"^expected batch as a whole number, at least 1, or None .* got ") as caught:
        sal.explain(build("functional"), x, batch=batch)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", [[0, 1], [0, 1, 2, 3, 9]])
def test_classes_are_checked_as_without_chunks(target: list[int], x: Tensor) -> None:
    with pytest.raises(ValueError, match="no class 9|one target or 5 of them"):
        sal.explain(build("functional"), x, target, batch=1)


# ------------------------------------------------------------------------------------------------ lack of memory


@contextmanager
def room_for(pictures: int, model: nn.Module, backward: bool = False) -> Iterator[list[int]]:
    """A device on which no more pictures fit, on the way there or back; the sizes of the batches that were tried."""
    sizes: list[int] = []

    def check(values: Tensor) -> None:
        sizes.append(len(values))
        if len(values) > pictures:
            raise lack()

    def back(module: nn.Module, args: Any, output: Tensor) -> None:
        output.register_hook(check)

    handle = (
        model.register_forward_hook(back)
        if backward
        else model.head.register_forward_pre_hook(lambda module, args: check(args[0]))
    )
    try:
        yield sizes
    finally:
        handle.remove()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("method", ["gradient", "deeplift", "layer_cam", "integrated_gradients"])
def test_a_batch_that_does_not_fit_is_halved(method: str, backward: bool, x: Tensor) -> None:
    model = build("functional")
    expected = sal.explain(model, x, TARGETS, method=method, steps=2)
    with room_for(2, model, backward) as sizes:
        found = sal.explain(model, x, TARGETS, method=method, steps=2)
    assert_same(found, expected)
    assert list(dict.fromkeys(sizes)) == [5, 3, 2, 1]
    assert sizes.count(5) == sizes.count(3) == 1  # what did not fit is not tried again


def test_looks_are_split_before_pictures(x: Tensor) -> None:
    model = build("functional")
    sampling = SmoothGrad(4, batch=20)
    expected = sal.explain(model, x, TARGETS, method="gradient", sampling=sampling)
    with room_for(3, model) as sizes:
        found = sal.explain(model, x, TARGETS, method="gradient", sampling=sampling)
    assert_same(found, expected)
    # The classes of five pictures, in parts; their looks, fewer and fewer, and a single one does not fit. Then three
    # pictures: their classes, all their looks, half of them, a quarter, which is one look.
    assert sizes[:10] == [5, 3, 2, 20, 10, 5, 3, 12, 6, 3]


@pytest.mark.parametrize("method", ["gradient", "deeplift"])
def test_nothing_of_the_failed_run_is_alive_in_the_next(method: str, x: Tensor) -> None:
    """Without the help of the collector of cycles, which would come too late."""
    model = build("residual")
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def note(module: nn.Module, args: Any, output: Tensor) -> None:
        made.append(weakref.ref(output))

    def count(module: nn.Module, args: Any) -> None:
        alive.append(sum(ref() is not None for ref in made))

    handles = [module.register_forward_hook(note) for module in model.modules() if module is not model]
    handles.append(model.register_forward_pre_hook(count))
    gc.collect()
    gc.disable()
    try:
        with room_for(3, model, backward=True):
            sal.explain(model, x, TARGETS, ["layer2", "layer4"], method, batch=4)
    finally:
        gc.enable()
        for handle in handles:
            handle.remove()
    assert len(alive) >= 3
    assert max(alive) == 0


def test_the_network_is_what_it_was(x: Tensor) -> None:
    model = build("residual").train()
    before = {name: (value._version, value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    random = torch.get_rng_state()
    with room_for(0, model), pytest.raises(MemoryError):
        sal.explain(model, x, fix=["backward", "forward"])
    for name, value in model.state_dict(keep_vars=True).items():
        version, values = before[name]
        assert value._version == version and torch.equal(value, values)
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("sampling", [None, SmoothGrad(3)])
def test_one_picture_that_does_not_fit_is_refused_in_one_line(sampling: Sampling | None, x: Tensor) -> None:
    model = build("functional")
    message = "^cpu has no memory for one picture of 16 x 16 pixels: name fewer layers, or take a smaller picture$"
    with room_for(0, model) as sizes, pytest.raises(MemoryError, match=message) as caught:
        sal.explain(model, x, TARGETS, sampling=sampling)
    assert sizes[0] == 5 and sizes[-1] == 1
    assert caught.value.__context__ is None  # which would keep the failed run alive


@pytest.mark.parametrize("curve", [sal.insertion, sal.deletion, partial(road, order="most")])
def test_scoring_passes_that_do_not_fit_are_halved(curve: Any, x: Tensor) -> None:
    model, maps = build("functional"), x.abs().mean(1)
    expected = curve(model, x, maps, TARGETS).scores
    with room_for(3, model) as sizes:
        torch.testing.assert_close(curve(model, x, maps, TARGETS).scores, expected)
    assert min(sizes) < 3 < max(sizes)
    with room_for(0, model), pytest.raises(MemoryError, match="no memory for one picture"):
        curve(model, x, maps, TARGETS)


def test_logits_that_do_not_fit_are_made_in_parts(x: Tensor) -> None:
    model = build("functional")
    expected = logits_of(model, x)
    with room_for(2, model) as sizes:
        torch.testing.assert_close(logits_of(model, x), expected)
    assert sizes == [5, 3, 2, 2, 1]


def test_other_errors_are_not_taken_for_a_lack_of_memory(x: Tensor) -> None:
    model = build("functional")
    calls: list[int] = []

    def fail(module: nn.Module, args: Any) -> None:
        calls.append(len(args[0]))
        raise RuntimeError("something else")

    model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="^something else$"):
        sal.explain(model, x)
    assert calls == [5]


def test_masked_copies_that_do_not_fit_are_halved(x: Tensor) -> None:
    model = build("functional")
    expected = rise(model, x, TARGETS, masks=12)
    with room_for(7, model) as sizes:
        found = rise(model, x, TARGETS, masks=12)
    torch.testing.assert_close(found, expected)
    assert sizes[:5] == [5, 60, 30, 15, 8] and max(sizes[5:]) == 4 and sum(sizes[5:]) == 60
    with room_for(0, model), pytest.raises(MemoryError, match="^cpu has no memory for one picture of 16 x 16 pixels$"):
        rise(model, x, masks=12)


def test_portions_come_in_order_and_stay_small() -> None:
    tried: list[tuple[int, int]] = []

    def run(some: slice) -> list[int]:
        tried.append((some.start, some.stop))
        if some.stop > 6 and some.stop - some.start > 2:
            raise lack()
        return list(range(some.start, some.stop))

    portions = Portions(4, "too much")
    found = [(some.start, items) for some, items in portions.each(run, 9)]
    assert found == [(0, [0, 1, 2, 3]), (4, [4, 5]), (6, [6, 7]), (8, [8])]
    assert tried == [(0, 4), (4, 8), (4, 6), (6, 8), (8, 9)]
    assert portions.size == 2
    assert [some for some, _ in portions.each(run, 3)] == [slice(0, 2), slice(2, 3)]


@pytest.mark.parametrize(
    ("error", "lack"),
    [
        (lack(), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("16 x 16 pixels"), False),
    ],
)
def test_what_is_a_lack_of_memory(error: Exception, lack: bool) -> None:
    assert lack_of_memory(error) is lack


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds the address space of a process")
def test_a_computer_without_memory() -> None:
    """A process that may have no more than 400 MB beyond what it has, and 64 pictures whose graph alone takes 1 GB."""
    script = """
        import resource
        import torch
        from torch import nn
        import smoothsal_lib as sal

        torch.set_num_threads(1)
        layers = [nn.Conv2d(3, 64, 2, 2), *(nn.ReLU() for _ in range(16))]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))
        x = torch.randn(64, 3, 128, 128)
        sizes = []
        model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
        expected = sal.explain(model, x[:1], 1, "0", "gradient")["0"]
        status = open("/proc/self/status").read().split("VmSize:")[1]
        most = int(status.split()[0]) * 1024 + 400 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        found = sal.explain(model, x, 1, "0", "gradient")["0"]
        assert found.shape == (64, 64, 64, 64)
        torch.testing.assert_close(found[:1], expected)
        assert sizes[1] == 64 and sizes[-1] < 64, sizes
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
