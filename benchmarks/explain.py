"""What all hidden layers at once cost, beside one plain pass and beside captum's loop over layers.

    python benchmarks/explain.py                    # ResNet34, one picture of 224 px, on the CPU
    python benchmarks/explain.py --device cuda

Every repeat runs all contenders one after the other, so that whatever else the machine does falls on all of them alike;
reported are medians. Before anything is timed, results are compared. Writes ``data/results/bench_explain.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import captum.attr
import torch
import torchvision
from torch import Tensor, nn
from tqdm import trange

import smoothsal_lib as sal
from smoothsal_lib.embedded import data_folder
from smoothsal_lib.record import provenance

CLASS = 7
SMOOTHGRAD = sal.sampling.SmoothGrad(n=50, noise=0.15, batch=10)
RATE = 1e-3  # of the inner step of meta-saliency; its time does not depend on it


def plain(model: nn.Module, x: Tensor) -> Tensor:
    """The floor: one forward pass, and one backward pass to the picture."""
    image = x.clone().requires_grad_()
    return torch.autograd.grad(model(image)[:, CLASS].sum(), image)[0]


def plain_looks(model: nn.Module, x: Tensor) -> Tensor:
    """The floor of SmoothGrad: as many plain passes, in the same batches, on the same noisy pictures; their mean."""
    pictures = torch.cat([picture for _, picture in SMOOTHGRAD.images(x)])
    return torch.cat([plain(model, some) for some in pictures.split(SMOOTHGRAD.batch)]).mean(0, keepdim=True)


def captum_smoothgrad(model: nn.Module, x: Tensor, layers: list[str]) -> None:
    """SmoothGrad of every layer as captum offers it: all looks again for each layer, with noise of its own."""
    for name in layers:
        gradient = captum.attr.LayerGradientXActivation(model, model.get_submodule(name))
        captum.attr.NoiseTunnel(gradient).attribute(
            x,
            nt_samples=SMOOTHGRAD.n,
            nt_samples_batch_size=SMOOTHGRAD.batch,
            stdevs=float(SMOOTHGRAD.spread(x)),
            target=CLASS,
        )


def captum_gradients(model: nn.Module, x: Tensor, layers: list[str]) -> dict[str, Tensor]:
    """Gradient x activation of every layer as captum offers it: one forward and backward pass for each."""
    return {
        name: captum.attr.LayerGradientXActivation(model, model.get_submodule(name)).attribute(x, CLASS).detach()
        for name in layers
    }


def captum_deeplift(model: nn.Module, x: Tensor, layer: str) -> str:
    """What becomes of captum's DeepLift on a network that uses a ReLU module twice, as torchvision's ResNets do."""
    try:
        sums = captum.attr.LayerDeepLift(model, model.get_submodule(layer)).attribute(x, torch.zeros_like(x), CLASS)
    except Exception as error:  # an AssertionError or a RuntimeError, depending on the version
        return f"refuses: {type(error).__name__}: {str(error).splitlines()[0]}"
    return f"adds up to {float(sums.sum()):.4g} where the score changes by {change_of_score(model, x):.4g}"


def change_of_score(model: nn.Module, x: Tensor) -> float:
    """f_c(x) - f_c(0), what DeepLift's attributions must add up to."""
    with torch.no_grad():
        return float((model(x) - model(torch.zeros_like(x)))[:, CLASS].sum())


def check(model: nn.Module, x: Tensor, blocks: list[str]) -> dict[str, float]:
    """The largest relative errors of ours, against autograd, captum and the sum that DeepLift owes; all are small."""

    def off(ours: Tensor, theirs: Tensor) -> float:
        return float((ours - theirs).norm() / theirs.norm())

    at_input = sal.explain(model, x, CLASS, "input", "gradient", fix=None)["input"]
    ours = sal.explain(model, x, CLASS, blocks, "gradient_x_activation", fix=None)
    theirs = captum_gradients(model, x, blocks)
    change = change_of_score(model, x)
    sums = [float(a.sum()) for a in sal.explain(model, x, CLASS, "all", "deeplift", fix=None).values()]
    found = {
        "gradient at the input, against autograd": off(at_input, plain(model, x)),
        "gradient x activation, against captum": max(off(ours[name], theirs[name]) for name in blocks),
        "sum of DeepLift, against the change of the score": max(abs(s - change) / abs(change) for s in sums),
        "SmoothGrad at the input, against the mean of plain passes": off(
            smooth_at_input(model, x), plain_looks(model, x)
        ),
    }
    for what, error in found.items():
        assert error < 1e-3, f"{what}: off by {error:.1e}"
    return found


def smooth_at_input(model: nn.Module, x: Tensor) -> Tensor:
    """The library's SmoothGrad at the picture itself."""
    return sal.explain(model, x, CLASS, "input", "gradient", fix=None, sampling=SMOOTHGRAD)["input"]


def clock(device: torch.device) -> float:
    """Seconds, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(contenders: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every contender in every repeat; one repeat before the first is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in trange(-1, repeats, file=sys.stderr):
        for name, run in contenders.items():
            start = clock(device)
            run()
            if repeat >= 0:
                seconds[name].append(clock(device) - start)
    return seconds


def main() -> None:
    """Check, measure, print a table, store it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args()
    device = torch.device(options.device)

    torch.manual_seed(0)
    model = torchvision.models.resnet34(weights=None).eval().to(device)
    x = torch.randn(1, 3, options.size, options.size, device=device)
    pair = torch.cat([x, torch.zeros_like(x)])
    layers = list(sal.hidden_layers(model, x))
    blocks = [name for name in layers if name.startswith("layer")]
    checked = check(model, x, blocks)
    verdict_on_captum = captum_deeplift(model, x, blocks[0])

    seconds = measure(
        {
            "plain": lambda: plain(model, x),
            "gradient, all layers": lambda: sal.explain(model, x, CLASS, "all", "gradient", fix=None),
            "plain, doubled batch": lambda: plain(model, pair),
            "deeplift, all layers": lambda: sal.explain(model, x, CLASS, "all", "deeplift", fix=None),
            "captum, gradient layer by layer": lambda: captum_gradients(model, x, blocks),
            "NormGrad, all layers": lambda: sal.explain(model, x, CLASS, "all", "normgrad", fix=None),
            "NormGrad after a step, first order": lambda: sal.explain(
                model, x, CLASS, "all", "normgrad", fix=None, meta=sal.MetaStep(RATE, 1)
            ),
            "NormGrad after a step, second order": lambda: sal.explain(
                model, x, CLASS, "all", "normgrad", fix=None, meta=sal.MetaStep(RATE, 2)
            ),
        },
        options.repeats,
        device,
    )
    # Fifty looks take as long as fifty of the runs above, so they are repeated less often, and captum's loop once.
    seconds |= measure(
        {
            "50 plain passes": lambda: plain_looks(model, x),
            "SmoothGrad-50, all layers": lambda: sal.explain(
                model, x, CLASS, "all", "gradient", fix=None, sampling=SMOOTHGRAD
            ),
        },
        max(1, options.repeats // 3),
        device,
    )
    start = clock(device)
    captum_smoothgrad(model, x, blocks)
    seconds["captum, SmoothGrad-50 layer by layer"] = [clock(device) - start]
    median = {name: statistics.median(times) for name, times in seconds.items()}
    rows = []
    for name, floor, target in (
        ("plain", "plain", None),
        ("gradient, all layers", "plain", 1.25),
        ("plain, doubled batch", "plain", None),
        ("deeplift, all layers", "plain, doubled batch", 1.5),
        ("captum, gradient layer by layer", "plain", None),
        ("NormGrad, all layers", "plain", None),
        ("NormGrad after a step, first order", "plain", None),
        ("NormGrad after a step, second order", "plain", None),
        ("50 plain passes", "50 plain passes", None),
        ("SmoothGrad-50, all layers", "50 plain passes", 1.15),
        ("captum, SmoothGrad-50 layer by layer", "50 plain passes", None),
    ):
        # The ratio of each repeat, rather than of the medians: the two runs of a repeat share the machine's mood.
        ratio = statistics.median(a / b for a, b in zip(seconds[name], seconds[floor], strict=False))
        verdict = "" if target is None else ("met" if ratio <= target else "missed")
        rows.append(
            {"run": name, "seconds": median[name], "times": floor, "ratio": ratio, "target": target, "verdict": verdict}
        )

    print(
        f"ResNet34, {options.size} px, {len(layers)} layers, {len(blocks)} of them blocks; captum runs the blocks only"
    )
    print(f"{'run':38s}{'seconds':>9s}{'ratio':>8s}  of {'':20s}{'target':>7s}  verdict")
    for row in rows:
        goal = "" if row["target"] is None else f"{row['target']:.2f}"
        beside = f"{row['ratio']:8.2f}  of {row['times']:20s}{goal:>7s}  {row['verdict']}"
        print(f"{row['run']:38s}{row['seconds']:9.3f}{beside}")
    print(f"captum's DeepLift on this network: {verdict_on_captum}")
    stored = {
        **provenance("benchmarks.explain", device),
        "network": "resnet34, random weights",
        "pixels": options.size,
        "layers": len(layers),
        "blocks": len(blocks),
        "repeats": options.repeats,
        "agreement": checked,
        "captum_deeplift": verdict_on_captum,
        "rows": rows,
    }
    (data_folder() / "results" / "bench_explain.json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
