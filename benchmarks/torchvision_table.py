"""What the library can do with every classification network of torchvision: the table of the page "Your own network".

    python -m benchmarks.torchvision_table          # all of them, about 6 minutes on two cores
    python -m benchmarks.torchvision_table resnet18 vgg11

Random weights and a small picture: whether layers are found, fixes apply and DeepLift is complete depends on the
architecture alone. Writes ``data/results/torchvision.json``. ``tests/test_torchvision.py`` asserts the same rows.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

import smoothsal_lib as sal
from smoothsal_lib.embedded import data_folder
from smoothsal_lib.record import provenance

CLASSES = 5
FIXES = ("backward", "backward:paper", "forward", "forward:paper", "surrogate")
# The picture is as small as the architecture allows.
SIZES = {"inception_v3": 75, "maxvit_t": 224, "vit_h_14": 56}
TOKENS = "beyond the patches' embedding its layers hold tokens (N, L, C), not maps (N, C, H, W)"
CHANNELS_LAST = "its blocks hold maps as (N, H, W, C), which are listed as they are"
NO_STRIDE = "downsamples by max-pooling alone: no strided convolution, so nothing to repair"


def names() -> list[str]:
    """Every classification network that torchvision offers."""
    return torchvision.models.list_models(module=torchvision.models)


def picture_size(name: str) -> int:
    """Rows and columns of the picture that the network is tried on."""
    return SIZES.get(name, 64)


@contextmanager
def quick_initialisation() -> Iterator[None]:
    """Uniform weights in place of the truncated normal ones, whose drawing takes minutes for the largest networks."""

    def quick(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        spread = math.sqrt(6 / max(tensor[0].numel(), 1)) if tensor.ndim > 1 else 0.1
        with torch.no_grad():
            return tensor.uniform_(-spread, spread)

    slow = "trunc_normal_ normal_ kaiming_normal_ kaiming_uniform_ xavier_uniform_ uniform_".split()
    originals = {name: getattr(nn.init, name) for name in slow}
    try:
        for name in slow:
            setattr(nn.init, name, quick)
        yield
    finally:
        for name, original in originals.items():
            setattr(nn.init, name, original)


def build(name: str) -> nn.Module:
    """The network with random weights, float64, in evaluation mode; the same weights every time."""
    options: dict[str, Any] = {"image_size": picture_size(name)} if name.startswith("vit_") else {}
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # scipy's truncated normal
    with torch.random.fork_rng(devices=[]), quick_initialisation():
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, num_classes=CLASSES, **options).double().eval()
        for parameter_name, parameter in model.named_parameters():
            if "layer_scale" in parameter_name:
                nn.init.constant_(parameter, 0.5)  # at its start value of 1e-6 the block would be next to nothing
            elif not parameter.any():
                nn.init.uniform_(parameter)  # biases, and the heads of vision transformers
        if name.startswith("squeezenet"):
            nn.init.constant_(model.classifier[1].bias, 1.0)  # its scores end in a ReLU, which may be closed for all
    return model


def calibrate(model: nn.Module, images: Tensor) -> None:
    """Give every batch norm the statistics of these images, lest the signal of deep networks fade to nothing."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum, norm.training = 1.0, True
    with torch.no_grad():
        model(images)
    for norm in norms:
        norm.training = False


class StridedCalls(TorchFunctionMode):
    """Counts the calls of ``conv2d`` with a stride above 1, without looking at any module."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ == "conv2d":
            stride = args[3] if len(args) > 3 else kwargs.get("stride", 1)
            self.count += max(stride if isinstance(stride, (tuple, list)) else (stride,)) > 1
        return func(*args, **kwargs)


def row(name: str) -> dict[str, Any]:
    """One row of the table.

    Returns:
        ``name``, ``size`` (of the picture), ``hidden_layers`` (count), ``strided`` and ``pools`` (counts),
        ``strided_calls`` (counted independently), ``completeness`` (the largest relative error of DeepLift's sum over
        input and hidden layers, float64), ``gradient_error`` (of the gradient at the input against autograd),
        ``fixes`` (those that apply), ``reason`` (what does not work, and why; empty for most).
    """
    size = picture_size(name)
    model = build(name)
    x, baseline = torch.randn(2, 1, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    calibrate(model, torch.cat([x, baseline]))
    strided, pools = sal.strided_layers(model), sal.pooling_layers(model)
    with torch.no_grad(), StridedCalls() as calls:
        scores = model(x)
    with torch.no_grad():
        change = (scores - model(baseline))[0]
    target = int(change.abs().argmax())
    listed = sal.hidden_layers(model, x)
    layers = ["input", *listed]

    attributions = sal.explain(model, x, target, layers, "deeplift", fix=None, baseline=baseline)
    errors = [abs(float(a.sum() - change[target]) / float(change[target])) for a in attributions.values()]
    shapes = {layer: tuple(a.shape) for layer, a in attributions.items()}
    del attributions

    model, x = model.float(), x.float()  # what follows needs no double precision
    plain = sal.explain(model, x, target, layers, "gradient", fix=None)
    image = x.clone().requires_grad_()
    expected = torch.autograd.grad(model(image)[0, target], image)[0]
    fixes = [fix for fix in FIXES if strided and changes(model, x, target, layers, fix, shapes, plain)]
    return {
        "name": name,
        "size": size,
        "hidden_layers": len(listed),
        "strided": len(strided),
        "strided_calls": calls.count,
        "pools": len(pools),
        "completeness": max(errors),
        "gradient_error": float((plain["input"] - expected).norm() / expected.norm()),
        "fixes": fixes,
        "reason": reason(name, bool(strided)),
    }


def changes(
    model: nn.Module,
    x: Tensor,
    target: int,
    layers: list[str],
    name: str,
    shapes: dict[str, tuple[int, ...]],
    plain: dict[str, Tensor],
) -> bool:
    """Whether the fix runs, keeps every shape, stays finite, and changes the gradient of the picture.

    The forward fixes leave out the first strided convolution, so they show only where there is another, or no first.
    """
    with torch.random.fork_rng(devices=[]), quick_initialisation():
        torch.manual_seed(0)
        fix = sal.Surrogate.of(model) if name == "surrogate" else name
    fixed = sal.explain(model, x, target, layers, "gradient", fix=fix)
    assert {layer: tuple(g.shape) for layer, g in fixed.items()} == shapes, f"{name} changes a shape"
    assert all(bool(torch.isfinite(g).all()) for g in fixed.values()), f"{name} is not finite"
    return not torch.allclose(fixed["input"], plain["input"], rtol=1e-3)


def reason(name: str, has_strides: bool) -> str:
    """What the network does not allow, in words; empty for most."""
    if name.startswith("vit_"):
        return TOKENS
    if name.startswith("swin_"):
        return CHANNELS_LAST
    return "" if has_strides else NO_STRIDE


def main() -> None:
    """Print and store the table."""
    parser = argparse.ArgumentParser(description="Try the library on every classification network of torchvision.")
    parser.add_argument("names", nargs="*", help="only these, printed and not stored")
    chosen = parser.parse_args().names
    rows = []
    for name in tqdm(chosen or names()):
        rows.append(row(name))
        gc.collect()
        tqdm.write(json.dumps(rows[-1]))
    if not chosen:
        stored = {**provenance("benchmarks.torchvision_table", "cpu"), "networks": rows}
        (data_folder() / "results" / "torchvision.json").write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
