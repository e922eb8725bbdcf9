"""Find the layers worth looking at: the hidden ones to explain, and the strided ones that make the checkerboard."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.pooling import _AvgPoolNd, _MaxPoolNd
from torch.nn.modules.utils import _ntuple

from smoothsal_lib.state import check_model, preserved

INPUT = "input"  # the name under which the picture itself is a layer, so that no module of that name can be one

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class HiddenLayer:
    """A layer that can be explained.

    Attributes:
        name: the module's name in ``model.named_modules()``.
        shape: (C, H, W) of its output.
        stride: how many input pixels lie between two neighbours of its output, (rows, columns).
        offset: the input pixel (row, column) at which its unit (0, 0) is centred, the middle of all that the unit can
            see; unit (i, j) is centred at (offset[0] + i stride[0], offset[1] + j stride[1]). A 3 x 3 convolution with
            padding 1 has the offset 0, at any stride; a 2 x 2 pooling 0.5, between two pixels.

    Stride and offset follow from the kernels, strides, dilations and paddings on the way (receptive-field arithmetic,
    Dumoulin & Visin 2016, arXiv 1603.07285). They are a guess where no such answer exists: where ways to the layer
    disagree, and behind what changes a map's size by other means (adaptive pooling, upsampling, cropping, cyclic
    padding). The stride is then that of the sizes, rounded, and the units are spread around the centre of the picture:
    the offset is (H - 1 - stride (h - 1)) / 2, which is (stride - 1) / 2 where the stride divides H.
    """

    name: str
    shape: tuple[int, int, int]
    stride: tuple[int, int]
    offset: tuple[float, float]


def strided_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The convolutions with a stride above 1 along any axis, in the order the model registers them.

    These are where checkerboard noise comes from: seen from the input, positions fall into parity classes that meet
    different subsets of the kernel (Smooth Deep Saliency, arXiv 2404.02282, section 3). Grouped, depthwise, dilated,
    asymmetric and patch-embedding convolutions count; transposed convolutions upsample and do not.

    Returns:
        ``{name: module}``; empty for a network without any.
    """
    return {
        name: module
        for name, module in check_model(model).named_modules()
        if isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd) and max(module.stride) > 1
    }


def pooling_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The max- and average-pooling layers with a stride above 1, in the order the model registers them.

    Average pooling with kernel = stride spreads the gradient evenly and leaves no checkerboard. Max pooling sends it to
    single positions: noise, and phase-locked where windows overlap (kernel > stride), since some positions then lie in
    more windows than others. No fix of this library touches it.

    Returns:
        ``{name: module}``; empty for a network without any.
    """
    return {
        name: module
        for name, module in check_model(model).named_modules()
        if isinstance(module, (_MaxPoolNd, _AvgPoolNd)) and max(_ntuple(1)(module.stride)) > 1
    }


def check_images(x: Tensor, model: nn.Module) -> None:
    """Refuse what no network could explain, in one line.

    Raises:
        TypeError: when ``x`` is no floating-point tensor, or ``model`` no module.
        ValueError: for a shape other than (N, C, H, W), an empty batch, NaN or infinite values, or a dtype or device
            that differs from the model's.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"expected images as a tensor (N, C, H, W), got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"expected floating-point images, got {x.dtype}: convert and normalise them first")
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"expected images of shape (N, C, H, W), none of them 0, got {tuple(x.shape)}")
    parameter = next((p for p in check_model(model).parameters() if p.is_floating_point()), None)
    if parameter is not None and (parameter.dtype != x.dtype or parameter.device != x.device):
        raise ValueError(
            f"images are {x.dtype} on {x.device} but the model is {parameter.dtype} on {parameter.device}: "
            "move one to the other"
        )
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"expected finite images, got {int((~torch.isfinite(x)).sum())} NaN or infinite values")


def as_baseline(baseline: Tensor | float | None, x: Tensor, name: str = "baseline") -> Tensor:
    """What images are compared with, as a tensor of their shape, dtype and device; ``None`` means zeros.

    Args:
        baseline: a tensor that broadcasts to the shape of ``x``, or a number.
        x: images (N, C, H, W).
        name: what to call it in an error.

    Raises:
        ValueError: when it does not broadcast to that shape, or is not finite.
    """
    given = torch.as_tensor(0.0 if baseline is None else baseline, dtype=x.dtype, device=x.device).detach()
    try:
        given = given.expand(x.shape)
    except RuntimeError:
        raise ValueError(f"{name} of shape {tuple(given.shape)} does not broadcast to {tuple(x.shape)}") from None
    if not bool(torch.isfinite(given).all()):
        raise ValueError(f"expected a finite {name}, got NaN or infinite values")
    return given.clone()


def hidden_layers(model: nn.Module, x: Tensor) -> dict[str, HiddenLayer]:
    """The explainable layers of a network, in forward order, found by one forward pass.

    A layer is listed when its output is a map (N, C, H, W) of more than one position and *everything* the input can
    tell the output passes through it. The outputs of residual blocks qualify, a convolution inside a residual branch
    does not: the shortcut runs around it. At listed layers, and only there, DeepLift's attributions must add up to
    the whole difference of the scores. :func:`explain` accepts any other module by name all the same.

    How it is found: the layer's output is a node of the autograd graph. The number of paths from the output to the
    input that run through the node is (paths above it) x (paths below it), and must equal the number of all paths.

    Of several modules that return the same tensor, the outermost that is no plain container is named
    (``layer1.0`` rather than ``layer1.0.relu``). A convolution or normalisation that feeds straight into a
    normalisation or activation of its own is represented by the last of that run.

    Args:
        model: any network on images; its state is left untouched.
        x: images (N, C, H, W) as the model expects them.

    Returns:
        ``{name: HiddenLayer}``; empty when the network has no such layer (a vision transformer, say).

    Raises:
        TypeError, ValueError: for a model or images that make no sense; see :func:`check_images`.
    """
    check_images(x, model)
    with preserved(model), torch.inference_mode(False), torch.enable_grad():
        image = as_leaf(x[:1]).clone()
        start = get_gradient_edge(image).node  # now, because a network that begins in place gives the tensor another
        output, records = trace(model, image)
        found = explainable(records, output, start)
        grids = _grids(output.grad_fn, start, x.shape[2:]) if found else {}
    return {record.name: _described(record, grids[record.edge.node], x.shape[2:]) for record in found}


def total_stride(model: nn.Module, x: Tensor) -> int:
    """By how many pixels a picture must move for every map of a network to move by whole units.

    The least common multiple of the strides of all maps, along both axes, those inside of blocks among them; 16 for a
    ResNet whose last stage is 16 times smaller than the picture. It follows from the graph as described for
    :class:`HiddenLayer`.

    Args:
        model: any network on images; its state is left untouched.
        x: images (N, C, H, W) as the model expects them.

    Raises:
        TypeError, ValueError: for a model or images that make no sense; see :func:`check_images`.
    """
    check_images(x, model)
    with preserved(model), torch.inference_mode(False), torch.enable_grad():
        image = as_leaf(x[:1]).clone()
        start = get_gradient_edge(image).node
        top = check_output(trace(model, image, ())[0], dense=True).grad_fn
        grids = _grids(top, start, x.shape[2:]) if top is not None else {}
    return math.lcm(*(axis.stride for grid in grids.values() if grid is not None for axis in grid))


@dataclass(frozen=True)
class _Axis:
    """Where the units of a map stand along one axis of the picture: ``size`` of them, ``stride`` pixels apart."""

    offset: float
    stride: int
    size: int

    def windowed(self, kernel: int, stride: int, padding: tuple[int, int], dilation: int, ceil: bool = False) -> _Axis:
        """Behind a window of ``kernel`` taps that slides over these units."""
        reach = dilation * (kernel - 1)
        room = self.size + sum(padding) - reach - 1
        last = -(-room // stride) if ceil else room // stride
        if ceil and last * stride >= self.size + padding[0]:  # torch drops a window that would lie in the padding
            last -= 1
        return _Axis(self.offset + (reach / 2 - padding[0]) * self.stride, self.stride * stride, last + 1)

    @classmethod
    def centred(cls, size: int, pixels: int) -> _Axis:
        """Units spread around the centre of the picture."""
        stride = round(pixels / size)
        return cls((pixels - 1 - stride * (size - 1)) / 2, stride, size)


_Grid = tuple[_Axis, _Axis]


def _described(record: Record, grid: _Grid | None, picture: Sequence[int]) -> HiddenLayer:
    _, channels, *sizes = record.shape
    if grid is None or [axis.size for axis in grid] != sizes:  # the sizes tell of a resizing that the graph hides
        rows, columns = (_Axis.centred(size, pixels) for size, pixels in zip(sizes, picture, strict=True))
    else:
        rows, columns = grid
    return HiddenLayer(
        record.name, (channels, rows.size, columns.size), (rows.stride, columns.stride), (rows.offset, columns.offset)
    )


def _grids(top: Node, start: Node, picture: Sequence[int]) -> dict[Node, _Grid | None]:
    """Where the units of every map between ``start`` and ``top`` stand in the picture; None where that is unknown.

    Convolutions, poolings and paddings move units. Everything else is taken to leave them in place.
    """
    found: dict[Node, _Grid | None] = {start: (_Axis(0.0, 1, picture[0]), _Axis(0.0, 1, picture[1]))}
    for node in reversed(_top_down(top)):
        sources = {found[below] for below, _ in node.next_functions if below in found}
        if node is not start and sources:
            grid = sources.pop()
            found[node] = _moved(node, grid) if grid is not None and not sources else None
    return found


def _moved(node: Any, grid: _Grid) -> _Grid | None:
    """The grid behind the operation of one node of the autograd graph."""
    kind = node.name().removesuffix("0").removesuffix("Backward")
    ceil = False
    if kind == "Convolution":
        if len(node._saved_stride) != 2:  # over tokens or channels
            return grid
        if node._saved_transposed:
            return None
        kernel, dilation = node._saved_weight.shape[2:], node._saved_dilation
    elif kind in ("MaxPool2DWithIndices", "AvgPool2D"):
        kernel, ceil = node._saved_kernel_size, node._saved_ceil_mode
        dilation = (1, 1) if kind == "AvgPool2D" else node._saved_dilation
    elif kind in ("ConstantPadNd", "ReflectionPad2D", "ReplicationPad2D"):
        # Last axis first: left, right, top, bottom, then channels.
        left, right, top, bottom = (*(node._saved_pad if kind == "ConstantPadNd" else node._saved_padding), 0, 0)[:4]
        return grid[0].windowed(1, 1, (top, bottom), 1), grid[1].windowed(1, 1, (left, right), 1)
    else:
        return grid
    stride = node._saved_stride or kernel
    rows, columns = (
        axis.windowed(kernel[i], stride[i], (node._saved_padding[i],) * 2, dilation[i], ceil)
        for i, axis in enumerate(grid)
    )
    return rows, columns


def as_leaf(x: Tensor) -> Tensor:
    """The images as the beginning of an autograd graph; ``x`` itself, even one of inference mode, is left alone."""
    return (x.clone() if x.is_inference() else x.detach()).requires_grad_()


@dataclass(frozen=True)
class Record:
    """What one call of a module left behind: its place in the autograd graph and the value it returned."""

    name: str
    module: nn.Module
    edge: GradientEdge  # stays on this output, whatever is later done to the tensor in place
    value: Tensor
    version: int
    absorbed: Node | None  # the convolution or normalisation that this activation represents

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W), for a map."""
        return tuple(self.value.shape)

    @property
    def overwritten(self) -> bool:
        """Whether a later in-place operation has changed ``value``."""
        return self.value._version != self.version


def trace(
    model: nn.Module,
    image: Tensor,
    names: Iterable[str] | None = None,
    copy: bool = False,
    run: Callable[[Tensor], Any] | None = None,
) -> tuple[Any, list[Record]]:
    """Run the model once and record the tensors that its modules return.

    Args:
        model: the network.
        image: input that is part of an autograd graph, and no leaf (the network may begin with an in-place operation).
        names: the modules to record; ``None`` for all.
        copy: keep a copy of each value, so that later in-place operations cannot reach it.
        run: how to call the model; ``None`` for ``model(image)``.

    Returns:
        The model's output, and the records in the order in which the modules returned.
    """
    records: list[Record] = []
    last_norm_or_conv: dict[Node | None, Record] = {}
    source_of: dict[nn.Module, Node | None] = {}

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        # Noted before the call: an in-place activation gives its input another grad_fn.
        source_of[module] = args[0].grad_fn if args and isinstance(args[0], Tensor) else None

    def after(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        source = last_norm_or_conv.get(source_of.pop(module, None))
        if not isinstance(output, Tensor) or output.grad_fn is None:
            return
        value = output.detach().clone() if copy else output.detach()
        absorbed = source.edge.node if source and _continues(source, module, output) else None
        record = Record(name, module, get_gradient_edge(output), value, value._version, absorbed)
        records.append(record)
        if isinstance(module, (_ConvNd, *_NORMS)):
            last_norm_or_conv[output.grad_fn] = record

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name not in ("", INPUT) and (names is None or name in names):
                hooks.callback(module.register_forward_pre_hook(before).remove)
                hooks.callback(module.register_forward_hook(partial(after, name)).remove)
        return (run or model)(image), records


def explainable(records: list[Record], output: Any, start: Node) -> list[Record]:
    """Those of ``records`` that :func:`hidden_layers` lists, in forward order; the picture is the node ``start``."""
    top = check_output(output, dense=True).grad_fn
    if top is None:  # the scores do not depend on the image
        return []
    crossed_by_all = _bottlenecks(top, start)
    absorbed = {record.absorbed for record in records}
    outermost: dict[Node, Record] = {}  # modules return from the inside out, so the last to return a tensor names it
    for record in records:
        node = record.edge.node
        is_map = len(record.shape) == 4 and record.shape[2] * record.shape[3] > 1
        if is_map and type(record.module) not in _CONTAINERS and node in crossed_by_all and node not in absorbed:
            outermost[node] = record
    return list(outermost.values())


def _continues(source: Record, module: nn.Module, output: Tensor) -> bool:
    """Whether ``module`` is the normalisation or activation of the convolution or normalisation it is fed by."""
    is_leaf = next(module.children(), None) is None
    if output.grad_fn is source.edge.node:  # nn.Identity, or dropout in evaluation mode: no other tensor
        return False
    return is_leaf and not isinstance(module, (_ConvNd, _MaxPoolNd, _AvgPoolNd)) and source.shape == tuple(output.shape)


def _bottlenecks(top: Node, bottom: Node) -> set[Node]:
    """The nodes of the autograd graph that every path from ``top`` down to ``bottom`` runs through."""
    order = _top_down(top)
    above = dict.fromkeys(order, 0)  # paths from the top; Python's integers do not overflow
    above.update({top: 1})
    for node in order:
        for below, _ in node.next_functions:
            if below is not None:
                above[below] += above[node]
    under: dict[Node, int] = {}  # paths to the bottom
    for node in reversed(order):
        under[node] = int(node is bottom) + sum(under[below] for below, _ in node.next_functions if below is not None)
    total = under[top]
    return {node for node in order if total and above[node] * under[node] == total}


def _top_down(top: Node) -> list[Node]:
    """The autograd graph below ``top``, every node after all nodes above it."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack = [(top, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((below, False) for below, _ in node.next_functions if below is not None and below not in seen)
    order.reverse()
    return order


def check_output(output: Any, dense: bool = False) -> Tensor:
    """The network's logits, refused in one line when they are not of shape (N, classes).

    Args:
        output: what the network returned.
        dense: whether logits for every position, (N, classes, h, w), will do too.

    Raises:
        ValueError: for any other output.
    """
    if isinstance(output, Tensor) and (output.ndim == 2 or (dense and output.ndim == 4)):
        return output
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    dense_logits = isinstance(output, Tensor) and output.ndim == 4
    hint = ": give a region, or use over_region, to say which part" if dense_logits else ""
    raise ValueError(f"expected the network to return logits of shape (N, classes), got {shape}{hint}")


def resolve(model: nn.Module, layers: str | nn.Module | Iterable[str | nn.Module]) -> list[str]:
    """The names of the layers that a caller gives by name or as modules.

    Raises:
        TypeError: for anything but names and modules.
        ValueError: for an unknown name (the closest one is suggested), a foreign module, or no layer at all.
    """
    if not isinstance(layers, (str, nn.Module, Iterable)):
        raise TypeError(f"expected layers as names or modules, got {layers!r}")
    modules = dict(model.named_modules())
    name_of = {module: name for name, module in modules.items()}
    names: list[str] = []
    for layer in [layers] if isinstance(layers, (str, nn.Module)) else layers:
        if isinstance(layer, nn.Module):
            if name_of.get(layer, "") in ("", INPUT):
                raise ValueError(f"this {type(layer).__name__} is no layer of the {type(model).__name__} to explain")
            layer = name_of[layer]
        elif not isinstance(layer, str):
            raise TypeError(f"expected a layer as a name or a module, got {layer!r}")
        elif layer != INPUT and (not layer or layer not in modules):
            close = get_close_matches(str(layer), [*modules, INPUT], 1, cutoff=0) or [INPUT]
            raise ValueError(f"no layer {layer!r} in this {type(model).__name__}: did you mean {close[0]!r}?")
        names.append(layer)
    if not names:
        raise ValueError("no layers given: pass names, modules, 'input', or 'all'")
    return names


def require_strided(model: nn.Module, skip_first: bool = False) -> dict[str, nn.Module]:
    """:func:`strided_layers`, for those who cannot do without.

    Args:
        model: the network.
        skip_first: leave out the first, unless it is the only one: its grid shows at the input alone, and changing it
            costs the most accuracy.

    Raises:
        ValueError: when there is none.
    """
    found = strided_layers(model)
    if not found:
        raise ValueError(f"{type(model).__name__} has no strided convolution, so nothing to repair: use fix=None")
    if skip_first and len(found) > 1:
        del found[next(iter(found))]
    return found
