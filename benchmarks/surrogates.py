"""What a surrogate costs at ImageNet's size: ResNet34 and ResNet50, random weights, pictures of 224 px.

    python -m benchmarks.surrogates                    # about five minutes on two cores
    python -m benchmarks.surrogates --device cuda --batch 64

Measured: seconds and floating-point operations of a step of gradient descent, by either recipe, beside a plain pass
(forward, and backward to the picture) of the same network in the same loop; of the least squares of every stage; of
decoding a photograph; and the peak of the memory, each in a process of its own. A stage whose least squares would take
too long here is counted only.

Projected: minutes on GPUs that are not at hand, from the operations, the peak rate of the data sheet, and the share of
it that NVIDIA's own runs of ResNet50 reach. The same formula, with the share that the plain pass reaches on this
processor, is held against the seconds measured here. Writes ``data/results/surrogate_cost.json``.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.slide import resident
from smoothsal_lib.datasets.benchmark import preparation
from smoothsal_lib.embedded import data_folder
from smoothsal_lib.fixes.least_squares import fit_stage, rows_needed
from smoothsal_lib.fixes.stage import Stage
from smoothsal_lib.fixes.surrogate import (
    RECIPES,
    Surrogate,
    _frozen,
    _imitation_loss,
    _observe,
    _paper_loss,
    fit_surrogate,
)
from smoothsal_lib.parallel import ALONE
from smoothsal_lib.record import provenance

NETWORKS = ("resnet34", "resnet50")
SIZE = 224
IMAGENET = 1_281_167  # pictures to train on
FEW = 512  # pictures that our recipe takes from the command line, of which every 8th is kept out
SOLVED = 4  # pictures for the least squares that are timed
TOO_LONG = 3e11  # operations of a stage's least squares that are not timed here
GPUS: dict[str, dict[str, Any]] = {
    # Dense peaks in operations a second, without sparsity, of the type that the descent computes in (T4: no bfloat16),
    # of float32 and of float64 without tensor cores.
    "T4": {
        "descent": 8.1e12, "float32": 8.1e12, "float64": 8.1e12 / 32, "images_per_second": 428, "passes": 1,
        "source": "NVIDIA T4 data sheet; NVIDIA Turing whitepaper: float64 at 1/32 of float32",
        "share_source": "NVIDIA DeepLearningExamples, ResNet50 v1.5 for PyTorch: inference, FP32, T4, batch 64",
    },
    "A100": {
        "descent": 312e12, "float32": 19.5e12, "float64": 9.7e12, "images_per_second": 2470, "passes": 3,
        "source": "NVIDIA A100 data sheet, SXM",
        "share_source": "NVIDIA DeepLearningExamples, ResNet50 v1.5 for PyTorch: training, mixed precision, one A100",
    },
    "H200": {
        "descent": 989.5e12, "float32": 67e12, "float64": 34e12, "share_of": "A100",
        "source": "NVIDIA H200 data sheet, SXM; bfloat16 is given with sparsity, half of it is dense",
        "share_source": "assumed: that of the A100",
    },
}  # fmt: skip
EIGHT = {  # GPUs of a machine: what eight are worth
    "factor": 16621 / 2470,
    "source": "NVIDIA DeepLearningExamples, as above: 16,621 images a second on eight A100, 2,470 on one",
}
SOLVER_SHARES = {"float32": 0.5, "float64": 0.1, "source": "assumed: large products, and factorisations by cuSOLVER"}


def network(name: str, device: str) -> nn.Module:
    """The network with random weights."""
    torch.manual_seed(0)
    return torchvision.models.get_model(name).eval().to(device)


def contenders(model: nn.Module) -> dict[str, Callable[[Tensor], object]]:
    """What is timed, by name."""
    surrogate = Surrogate.of(model)
    weights = list(surrogate.parameters())
    adam = torch.optim.Adam(weights)

    def plain(x: Tensor) -> object:
        image = x.clone().requires_grad_()
        # The counter of operations watches what modules are fed, and cannot watch a leaf.
        return torch.autograd.grad(model(image.clone())[:, 7].sum(), image)

    def step(loss: Callable[..., Tensor], x: Tensor) -> object:
        gradients = torch.autograd.grad(loss(model, surrogate, ALONE, x), weights)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        return adam.step()

    return {"plain": plain, "least_squares": partial(step, _imitation_loss), "paper": partial(step, _paper_loss)}


def seconds_of(run: Callable[[], object], device: str) -> float:
    """One call, waited for."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - started


def operations(run: Callable[[], object]) -> dict[str, float]:
    """Floating-point operations of products in float32 or below, and in float64; two for each multiply and add.

    Factorisations are counted as Golub and Van Loan (Matrix Computations, 4th edition) do: Cholesky n^3 / 3, its
    inverse 2 n^3 / 3, a triangular solve n^2 for each column, an inverse 2 n^3, a symmetric eigenproblem 9 n^3.
    """
    double = 0.0

    def exact(count: Callable[[torch.Size, torch.Size | None], float]) -> Any:
        def counted(*args: Any, **_: Any) -> int:
            nonlocal double
            tensors = [arg for arg in args if isinstance(arg, Tensor)]
            found = count(tensors[0].shape, tensors[1].shape if len(tensors) > 1 else None)
            double += found if tensors[0].dtype == torch.float64 else 0
            return int(found)

        counted._get_raw = True  # type: ignore[attr-defined]  # given tensors instead of shapes
        return counted

    def cube(factor: float) -> Any:
        return exact(lambda a, _: factor * a[:-2].numel() * a[-1] ** 3)

    aten = torch.ops.aten
    mapping = {
        aten.bmm: exact(lambda a, b: 2 * a[0] * a[1] * a[2] * b[2]),  # type: ignore[index]
        aten.linalg_cholesky_ex: cube(1 / 3),
        aten.cholesky_inverse: cube(2 / 3),
        aten.linalg_inv_ex: cube(2),
        aten._linalg_eigh: cube(9),
        aten.linalg_solve_triangular: exact(lambda a, b: a[0] * a[-1] ** 2 * b[-1]),  # type: ignore[index]
        aten.cholesky_solve: exact(lambda b, a: 2 * b[0] * b[-2] ** 2 * b[-1]),
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        run()
    return {"float32": counter.get_total_flops() - double, "float64": double}


def fit_on_nothing(stage: Stage, size: tuple[int, int], pictures: int) -> None:
    """The least squares on tensors without values, to count what they would compute."""
    empty = Stage(stage.geometry).to("meta")
    x = torch.empty(pictures, stage.geometry.channels[0], *size, device="meta")
    y = torch.empty(pictures, stage.geometry.channels[1], *stage.geometry.output_size(size), device="meta")
    fit_stage(empty, x, y)


def measure(name: str, device: str, batch: int, repeats: int) -> dict[str, Any]:
    """Seconds and operations of one network, a picture."""
    model = network(name, device)
    x = torch.randn(batch, 3, SIZE, SIZE, device=device)
    with _frozen(model):
        runs = contenders(model)
        counted = {what: sum(operations(partial(run, x[:1])).values()) for what, run in runs.items()}
        counted["forward"] = sum(operations(lambda: model(x[:1])).values())
        times: dict[str, list[float]] = {what: [] for what in runs}
        for _ in range(repeats + 1):
            for what, run in runs.items():
                times[what].append(seconds_of(partial(run, x), device) / batch)
        surrogate = Surrogate.of(model)
        with torch.no_grad():
            seen, _ = _observe(model, torch.randn(SOLVED, 3, SIZE, SIZE, device=device), surrogate.layers)
    stages = {}
    for layer, stage in surrogate.items():
        here, there = seen.pop(layer)
        size, positions = tuple(here.shape[2:]), there[0, 0].numel()
        row: dict[str, Any] = {"rows_needed": rows_needed(stage), "positions": positions, "timed": None}
        for recipe, most in (("few", 2 * (FEW - FEW // 8)), ("all", 2 * IMAGENET)):
            pictures = min(most, -(-rows_needed(stage) // positions))
            row[recipe] = {"pictures": pictures, **operations(partial(fit_on_nothing, stage, size, pictures))}
        cost = operations(partial(fit_on_nothing, stage, size, SOLVED))
        if sum(cost.values()) <= TOO_LONG or device == "cuda":
            row["timed"] = {
                "pictures": SOLVED,
                "seconds": seconds_of(partial(fit_stage, stage, here, there), device),
                **cost,
            }
        stages[layer] = row
    return {
        "seconds": {what: statistics.median(found[1:]) for what, found in times.items()},
        "operations": counted,
        "stages": stages,
        "parameters": sum(weight.numel() for weight in surrogate.parameters()),
    }


def peak(device: str) -> float:
    """Of the memory of this process or, on a GPU, of what torch took there, in MiB."""
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else resident()[1]


def memory_of_step(name: str, what: str, device: str, batch: int) -> dict[str, float]:
    """Before and at the peak of one step."""
    model = network(name, device)
    with _frozen(model):
        run = contenders(model)[what]
        x = torch.randn(batch, 3, SIZE, SIZE, device=device)
        before = peak(device)
        run(x)
    return {"before": before, "peak": peak(device)}


class Noise:
    """A stream of random pictures, 64 px wide."""

    def __init__(self, batches: int) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(self.batches):
            yield torch.randn(16, 3, 64, 64)


def memory_of_stream(batches: int) -> dict[str, float]:
    """A whole fit by least squares and one epoch of descent, of a small network to so many batches of 16."""
    from smoothsal_lib.models import TinyResNet

    torch.manual_seed(0)
    model = TinyResNet(10, (8, 8, 16, 16)).eval()
    before = resident()[0]
    fit_surrogate(model, Noise(batches), held_out=torch.randn(16, 3, 64, 64), epochs=1, progress=False)
    return {"before": before, "peak": resident()[1], "pictures": 16 * batches}


def decoding() -> float:
    """Seconds to decode and crop a photograph of 500 x 375 px, the most frequent size in ImageNet; one process."""
    from PIL import Image
    from skimage import data

    buffer = io.BytesIO()
    Image.fromarray(data.chelsea()).resize((500, 375)).save(buffer, "JPEG", quality=95)
    prepare = preparation(SIZE)
    times = [seconds_of(lambda: prepare(Image.open(buffer).convert("RGB")), "cpu") for _ in range(30)]
    return statistics.median(times)


def rate(dtype: torch.dtype, device: str, side: int = 1024) -> float:
    """Operations a second of the product of two square matrices: the peak that is to be had here."""
    a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    return 2 * side**3 / min(seconds_of(lambda: a @ b, device) for _ in range(5))


def project(networks: dict[str, Any], here: dict[str, float], decoding: float) -> list[dict[str, Any]]:
    """Minutes of both recipes on every GPU, and seconds a picture on this machine beside those measured.

    Args:
        networks: what :func:`measure` found, by name.
        here: operations a second on this machine, by type.
        decoding: seconds that one core takes to decode a picture.
    """
    training = networks["resnet50"]
    shares = {
        gpu: facts["images_per_second"] * facts["passes"] * training["operations"]["forward"] / facts["descent"]
        for gpu, facts in GPUS.items()
        if "passes" in facts
    }
    share_here = training["operations"]["plain"] / training["seconds"]["plain"] / here["float32"]
    machines = {**{gpu: (gpu, 1.0) for gpu in GPUS}, "8 x H200": ("H200", EIGHT["factor"])}
    rows: list[dict[str, Any]] = []
    for name, found in networks.items():
        for recipe, images in (("least_squares", FEW - FEW // 8), ("paper", IMAGENET)):
            need = found["operations"][recipe]
            row = {"network": name, "recipe": recipe, "images": images, "epochs": RECIPES[recipe].epochs}
            projected, measured = need / (here["float32"] * share_here), found["seconds"][recipe]
            check = {"share": share_here, "projected_seconds": projected, "measured_seconds": measured}
            rows.append({"kind": "check", **row, **check, "ratio": projected / measured})
            for machine, (gpu, several) in machines.items():
                facts = GPUS[gpu]
                share = shares[facts.get("share_of", gpu)]
                speed = facts["descent"] * share * several
                seconds = images * row["epochs"] * need / speed
                if recipe == "least_squares":
                    looks = max(stage["few"]["pictures"] for stage in found["stages"].values())
                    solves = [
                        sum(stage["few"][kind] / facts[kind] / SOLVER_SHARES[kind] for kind in ("float32", "float64"))
                        for stage in found["stages"].values()
                    ]
                    # Eight GPUs all look at all pictures, and have a stage each at most.
                    seconds += looks * found["operations"]["forward"] / (facts["descent"] * share)
                    seconds += sum(solves) if several == 1 else max(solves)
                figures = {"share": share, "minutes": seconds / 60, "images_per_second": speed / need}
                rows.append(
                    {"kind": "projection", **row, "on": machine, **figures, "cores_to_decode": speed / need * decoding}
                )
    return rows


def child(device: str, *words: str) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.surrogates", "--device", device, "--child", *words]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def main() -> None:
    """Measure, project, print and store."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device, batch = options.device, options.batch
    if options.child:
        name, what, *rest = options.child
        if name == "stream":
            print(json.dumps(memory_of_stream(int(what))))
        elif what == "measure":
            print(json.dumps(measure(name, device, int(rest[0]), int(rest[1]))))
        else:
            print(json.dumps(memory_of_step(name, what, device, int(rest[0]))))
        return
    here = {kind: rate(getattr(torch, kind), device) for kind in ("float32", "float64")}
    networks: dict[str, Any] = {}
    for name in NETWORKS:
        networks[name] = child(device, name, "measure", str(batch), str(options.repeats))
        networks[name]["memory"] = {what: child(device, name, what, str(batch)) for what in ("plain", *RECIPES)}
        seconds = networks[name]["seconds"]
        networks[name]["ratio"] = {what: seconds[what] / seconds["plain"] for what in RECIPES}
        print(name, {what: round(value, 3) for what, value in seconds.items()}, networks[name]["ratio"], flush=True)
    streams = [child(device, "stream", str(batches)) for batches in (16, 128)]
    decoded = decoding()
    rows = project(networks, here, decoded)
    for row in rows:
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
    stored = {
        **provenance(f"benchmarks.surrogates --batch {batch} --repeats {options.repeats}", device),
        "size": SIZE,
        "batch": batch,
        "repeats": options.repeats,
        "measured": {
            "unit": "seconds and operations a picture, medians; memory in MiB, 'before' without the step",
            "rate": here,
            "networks": networks,
            "streamed_fit": streams,
            "decoding_seconds": decoded,
        },
        "assumed": {"gpus": GPUS, "eight": EIGHT, "solver": SOLVER_SHARES, "imagenet": IMAGENET, "few": FEW},
        "projected": rows,
    }
    (data_folder() / "results" / "surrogate_cost.json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
