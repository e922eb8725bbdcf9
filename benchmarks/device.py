"""What a device makes of the library: whether maps are those of the CPU, how fast they come, and where the time goes.

    python -m benchmarks.device            # on the GPU, or on the CPU where there is none, and says so
    python -m benchmarks.device --quick

In the order of the record, ``data/results/device.json``:

- agreement: maps of every method, sampling and fix, run in every precision and memory format, beside those of the CPU
  in float32: the largest deviation of any layer, as a share of its norm, and the smallest rank correlation of its map;
- completeness: what DeepLift's attributions lack of the change of the score, as a share of it;
- waiting: how often one call of ``explain`` asks for a value that was computed, for which a GPU has to be waited for;
- scoring: a forward pass, as insertion and deletion make hundreds, as it is and compiled, on a GPU with CUDA graphs;
- loading: pictures that come from other processes, with and without pinned memory and copies that overlap;
- throughput: pictures a second, all layers at once, and the shares of the operations that the time goes to.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

import smoothsal_lib as sal
from smoothsal_lib.embedded import data_folder
from smoothsal_lib.fixes import Surrogate
from smoothsal_lib.record import provenance
from smoothsal_lib.sampling import SAMPLINGS

Maps = dict[str, Tensor]
Row = dict[str, Any]
FEW: dict[str, dict[str, int]] = {"noisegrad": {"n": 2}, "fusiongrad": {"n": 2, "m": 2}, "path": {"steps": 3}}


@dataclass(frozen=True)
class Way:
    """A way to run a network.

    Attributes:
        error: how far off maps may be, as a share of their norm.
        dtype: of the network and its pictures.
        memory_format: of the network's weights and its pictures.
        within: the context of the run on a device.
    """

    error: float
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format
    within: Callable[[str], AbstractContextManager[Any]] = lambda device: nullcontext()

    def run(self, device: str, call: Callable[[nn.Module, Tensor], Maps], model: nn.Module, x: Tensor) -> Maps:
        """What a call makes of the network and the pictures, which are moved to the device; in float64 on the CPU."""
        model = model.to(device, self.dtype).to(memory_format=self.memory_format)
        x = x.to(device, self.dtype).to(memory_format=self.memory_format)
        with self.within(device):
            found = call(model, x)
        assert all(attribution.device.type == device for attribution in found.values())
        return {name: attribution.to("cpu", torch.float64) for name, attribution in found.items()}


WAYS = {
    "float32": Way(1e-4),
    "float64": Way(1e-9, torch.float64),
    "channels last": Way(1e-4, memory_format=torch.channels_last),
    "inference mode": Way(1e-4, within=lambda device: torch.inference_mode()),
    "autocast": Way(0.35, within=lambda device: torch.autocast(device, torch.bfloat16)),
    "bfloat16": Way(0.35, torch.bfloat16),
}
# What explain can be asked for: every method, sampling and order of an inner step.
EXPLAINED: dict[str, dict[str, Any]] = {
    **{method: {"method": method} for method in sal.METHODS},
    "smooth_grad_cam++": {"method": "smooth_grad_cam++", "sampling": sal.sampling.SmoothGrad(3)},
    "conv3x3+l2": {"method": "conv3x3+l2"},
    "weights+l2": {"method": "weights+l2"},
    "first order": {"method": "gradient", "meta": sal.MetaStep(0.01, 1)},
    "second order": {"method": "gradient", "meta": sal.MetaStep(0.01, 2)},
    **{
        name: {"method": "deeplift", "sampling": kind(**FEW.get(name, {"n": 3}))}  # type: ignore[arg-type]
        for name, kind in SAMPLINGS.items()
    },
}
FIXES = ("backward", "backward:paper", "forward", "forward:paper", "surrogate", "surrogate and backward")


def repair(model: nn.Module, fix: str) -> Any:
    """A fix of :data:`FIXES` for the network; a surrogate has random weights, the same every time."""
    if "surrogate" not in fix:
        return fix
    # Its parameters must not be tensors of inference mode, in which it was not trained either.
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        surrogate = Surrogate.of(model)
    return [surrogate, "backward"] if "backward" in fix else surrogate


def deviation(found: Maps, expected: Maps) -> dict[str, float]:
    """How far each layer is off, as a share of its norm."""
    assert list(found) == list(expected)
    return {name: float((found[name] - e).norm() / e.norm()) for name, e in expected.items()}


def rank_correlation(found: Tensor, expected: Tensor) -> float:
    """Spearman's, of the positions of two saliency maps; 1 for two constants, such as a map that is 0."""
    ranks = torch.stack([sal.saliency_map(each).flatten().argsort().argsort() for each in (found, expected)])
    return 1.0 if ranks.shape[1] == 1 else float(torch.corrcoef(ranks.double())[0, 1])


class Waits(TorchDispatchMode):
    """Counts where the CPU asks for a value, for which it would have to wait if a GPU were to compute it."""

    ASKING = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if name in self.ASKING:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def agreement(device: str, network: str, build: Callable[[], nn.Module], x: Tensor, whats: list[str]) -> list[Row]:
    """The rows of one network: every way, beside the CPU in float32."""
    rows = []
    target = build()(x).argmax(1).tolist()
    for what in whats:

        def call(model: nn.Module, x: Tensor, what: str = what) -> Maps:
            if what in FIXES:
                return sal.explain(model, x, target, method="deeplift", fix=repair(model, what))
            return sal.explain(model, x, target, fix=None, steps=3, **EXPLAINED[what])

        expected = WAYS["float32"].run("cpu", call, build(), x)
        for name, way in WAYS.items():
            if name in ("float64", "inference mode") or (device == "cpu" and name == "float32"):
                continue
            found = way.run(device, call, build(), x)
            off = max(deviation(found, expected).values())
            rank = min(rank_correlation(found[layer], expected[layer]) for layer in expected)
            rows.append({"network": network, "what": what, "way": name, "deviation": off, "rank": rank})
            print(f"{network:14s}{what:26s}{name:16s}{off:10.1e}{rank:8.3f}", flush=True)
    return rows


def completeness(device: str, build: Callable[[], nn.Module], x: Tensor) -> list[Row]:
    """What DeepLift lacks, at the worst of all layers, in every way."""
    with torch.no_grad():
        logits = build().double()(x.double())
        target = logits.argmax(1)
        change = (logits - build().double()(torch.zeros_like(x).double())).gather(1, target[:, None])[:, 0]
    rows = []
    for name, way in WAYS.items():
        found = way.run(device, lambda model, x: sal.explain(model, x, target, fix=None), build(), x)
        lack = max(float(((a.sum((1, 2, 3)) - change) / change).abs().max()) for a in found.values())
        rows.append({"way": name, "lack": lack})
        print(f"DeepLift lacks {lack:.1e} of the change of the score, {name}")
    return rows


def waiting(device: str, model: nn.Module, x: Tensor) -> list[Row]:
    """How often one call waits: values asked for, and on a GPU what CUDA's own debug mode complains of."""
    rows = []
    for what, options in EXPLAINED.items():
        with Waits() as asked:
            sal.explain(model, x, 1, steps=3, **options)
        complaints = None
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                sal.explain(model, x, 1, steps=3, **options)
            torch.cuda.set_sync_debug_mode("default")
            complaints = sum("synchroniz" in str(one.message) for one in caught)
        rows.append({"what": what, "values": asked.counts.total(), "cuda": complaints})
        print(f"{what:26s}waits for {rows[-1]['values']} values, CUDA complains {complaints} times")
    return rows


def seconds(run: Callable[[], object], device: str, repeats: int) -> float:
    """The median of several runs, after one that is not counted."""
    taken = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def scoring(device: str, model: nn.Module, x: Tensor, repeats: int, compiled: bool) -> list[Row]:
    """A forward pass, as it is and compiled; how long compiling takes, and after how many pictures it has paid."""
    modes: dict[str, str | None] = {"as it is": None}
    if compiled:
        modes |= {"compiled": "default"} | ({"CUDA graphs": "reduce-overhead"} if device == "cuda" else {})
    rows: list[Row] = []
    with torch.inference_mode():
        expected = model(x)
        for name, mode in modes.items():
            run = model if mode is None else torch.compile(model, mode=mode)
            start = time.perf_counter()
            try:
                error = float((run(x) - expected).norm() / expected.norm())
                run(x)
            except Exception as failure:  # no C++ compiler, say
                rows.append({"run": name, "refuses": f"{type(failure).__name__}: {str(failure).splitlines()[0]}"})
                print(f"{name}: {rows[-1]['refuses']}")
                continue
            first = time.perf_counter() - start
            rate = len(x) / seconds(lambda run=run: run(x), device, repeats)
            gained = 0.0 if not rows else 1 / rows[0]["pictures_per_second"] - 1 / rate
            pays = None if gained <= 0 else round(first / gained)
            rows.append({"run": name, "pictures_per_second": rate, "first": first, "error": error, "pays_after": pays})
            print(f"{name:14s}{rate:9.1f} pictures/s, first {first:.1f} s, off by {error:.0e}, pays after {pays}")
    return rows


def loading(device: str, model: nn.Module, pixels: int, batch: int, batches: int) -> list[Row]:
    """Pictures from another process through a forward pass; on a GPU pinned and overlapped, too."""
    pictures = torch.randn(batch * 4, 3, pixels, pixels)
    pinned = [False, True] if device == "cuda" else [False]
    rows = []
    for pin in pinned:
        loader = DataLoader(TensorDataset(pictures), batch, num_workers=1, pin_memory=pin, persistent_workers=True)

        def epoch(loader: Any = loader, pin: bool = pin) -> None:
            with torch.inference_mode():
                for _ in range(-(-batches // 4)):
                    for (x,) in islice(loader, batches):
                        model(x.to(device, non_blocking=pin))

        taken = seconds(epoch, device, 1)
        rate = batch * 4 * -(-batches // 4) / taken
        rows.append({"pinned": pin, "pictures_per_second": rate})
        print(f"loaded by another process, {'pinned, overlapped' if pin else 'as they are'}: {rate:.1f} pictures/s")
    return rows


def throughput(device: str, pixels: int, batches: list[int], repeats: int) -> tuple[list[Row], list[Row]]:
    """Pictures a second of three ResNets; and the operations that DeepLift of the last spends its time in."""
    rows: list[Row] = []
    for network in ("resnet18", "resnet34", "resnet50"):
        model = torchvision.models.get_model(network, weights=None).eval().to(device)
        for batch in batches:
            x = torch.randn(batch, 3, pixels, pixels, device=device)

            def plain(model: nn.Module = model, x: Tensor = x) -> None:
                image = x.clone().requires_grad_()
                torch.autograd.grad(model(image)[:, 1].sum(), image)

            runs: dict[str, Callable[[], object]] = {"plain forward and backward": plain}
            for method in ("gradient", "deeplift"):
                runs[f"{method}, all layers"] = lambda model=model, x=x, method=method: sal.explain(
                    model, x, 1, method=method, fix=None
                )
            for name, run in runs.items():
                if device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                rate = batch / seconds(run, device, repeats)
                peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
                rows.append(
                    {"network": network, "run": name, "batch": batch, "pictures_per_second": rate, "peak_bytes": peak}
                )
                print(f"{network:10s}{name:28s}{batch:5d} at once{rate:9.2f} pictures/s", flush=True)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as profiled:
        runs["deeplift, all layers"]()
    key = f"self_{device}_time_total" if device == "cpu" else "self_device_time_total"
    events = sorted(profiled.key_averages(), key=lambda event: -getattr(event, key))
    total = sum(getattr(event, key) for event in events)
    shares = [{"operation": e.key, "share": getattr(e, key) / total, "calls": e.count} for e in events[:10]]
    for row in shares:
        print(f"{row['share']:7.1%}  {row['operation']} ({row['calls']} calls)")
    return rows, shares


def random_resnet18() -> nn.Module:
    """The same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torchvision.models.resnet18(weights=None).eval()


def main() -> None:
    """Check, measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--quick", action="store_true", help="fewer repeats, smaller batches, nothing compiled by a CPU"
    )
    options = parser.parse_args()
    device, gpu = options.device, options.device == "cuda"
    print(torch.cuda.get_device_name() if gpu else "No GPU: everything runs on the CPU.", file=sys.stderr)
    repeats = 1 if options.quick else 9 if gpu else 3
    # Convolutions of float32 in TensorFloat-32 would be off by 1e-3: what the tolerances are about is float32.
    torch.backends.cudnn.allow_tf32 = False

    photos = torch.cat([sal.load_photo(name, 64 if gpu else 32)[0] for name in ("chelsea", "coffee")])
    noise = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    everything = [*EXPLAINED, *FIXES]
    agreed = agreement(device, "tiny_resnet", lambda: sal.load_model("tiny_resnet"), photos, everything)
    some = everything if gpu else ["gradient", "deeplift", "layer_cam", "smoothgrad", "backward", "forward"]
    agreed += agreement(device, "resnet18", random_resnet18, noise, some)
    complete = completeness(device, lambda: sal.load_model("tiny_resnet"), photos)
    waited = waiting(device, sal.load_model("tiny_resnet").to(device), photos.to(device))
    model = random_resnet18().to(device)
    pixels, batch = (224, 128) if gpu else (64, 16)
    scored = scoring(
        device, model, torch.randn(batch, 3, pixels, pixels, device=device), repeats, gpu or not options.quick
    )
    loaded = loading(device, model, pixels, batch, 64 if gpu else 4)
    batches = ([1, 8, 32] if options.quick else [1, 8, 32, 128]) if gpu else [1] if options.quick else [1, 4]
    rates, shares = throughput(device, 224, batches, repeats)
    worst = {
        way: {
            "deviation": max(row["deviation"] for row in agreed if row["way"] == way),
            "rank": min(row["rank"] for row in agreed if row["way"] == way),
        }
        for way in dict.fromkeys(row["way"] for row in agreed)
    }
    stored = {
        **provenance("benchmarks.device" + (" --quick" if options.quick else ""), device),
        "gpu": gpu,
        "repeats": repeats,
        "worst": worst,
        "agreement": agreed,
        "completeness": complete,
        "waiting": waited,
        "scoring": {"network": "resnet18, random weights", "pixels": pixels, "batch": batch, "rows": scored},
        "loading": loaded,
        "throughput": rates,
        "profile": {"run": f"resnet50, deeplift, {batches[-1]} at once", "rows": shares},
    }
    (data_folder() / "results" / "device.json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
