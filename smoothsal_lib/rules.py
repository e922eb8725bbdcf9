"""Backward rules: how the gradient changes where a network is not linear.

Each rule is a context. Inside it every PyTorch *function* the network calls is seen, whether a module, a functional or
a tensor method calls it, once or several times, in place or not. That is what hooks on modules cannot do: torchvision's
ResNets use one ReLU module twice in a block, DenseNet calls ``F.relu``, VGG overwrites its activations.

    with GuidedBackprop():
        score = model(x)[0, target]
    score.backward()
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Function = Callable[..., Any]


def _out_of_place(func: Function, kwargs: dict[str, Any]) -> tuple[Function, dict[str, Any], bool]:
    """``func`` and its keywords in the form that overwrites nothing, and whether they were in place."""
    if "inplace" in kwargs:
        return func, {**kwargs, "inplace": False}, bool(kwargs["inplace"])
    name = func.__name__
    if name.startswith("__i") and name[3:-2] in _OPERATORS:
        return getattr(Tensor, f"__{name[3:]}"), kwargs, True
    if name.endswith("_") and not name.endswith("__") and callable(getattr(Tensor, name[:-1], None)):
        return getattr(Tensor, name[:-1]), kwargs, True
    return func, kwargs, False


_OPERATORS = {"add", "sub", "mul", "matmul", "truediv", "pow"}


def _operands_first(args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """``relu(input=x)`` as ``relu(x)``, ``mul(x, other=y)`` as ``mul(x, y)``."""
    named = [kwargs[key] for key in ("input", "other", "mat2") if key in kwargs]
    if not named:
        return args, kwargs
    return (*args, *named), {key: value for key, value in kwargs.items() if key not in ("input", "other", "mat2")}


def _is_rectifier(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether this call is ReLU or ReLU6; ``nn.ReLU6`` calls ``hardtanh`` from 0 to 6."""
    if name == "hardtanh":
        return bool(kwargs.get("min_val", args[1] if len(args) > 1 else -1) == 0)
    return name in ("relu", "relu6")


class _RectifierRule(TorchFunctionMode):
    """Replaces what ReLU and ReLU6 do to the gradient on its way back.

    Attributes:
        met: how many rectifiers the network has called inside the context.
    """

    def __init__(self) -> None:
        super().__init__()
        self.met = 0

    def __torch_function__(self, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not _is_rectifier(func.__name__.rstrip("_"), args, kwargs):
            return func(*args, **kwargs)
        self.met += 1
        args, kwargs = _operands_first(args, kwargs)
        func, kwargs, inplace = _out_of_place(func, kwargs)
        output = _Rectifier.apply(args[0], func, kwargs, self.backward)
        return args[0].copy_(output) if inplace else output

    @staticmethod
    def backward(gradient: Tensor, open_gate: Tensor) -> Tensor:
        """The gradient that a rectifier hands down; ``open_gate`` is its derivative, 0 or 1."""
        raise NotImplementedError


class _Rectifier(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, func: Function, kwargs: dict[str, Any], rule: Function) -> Tensor:
        output = func(x, **kwargs)
        ctx.rule = rule
        ctx.save_for_backward((output > 0) & (output == x))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.rule(gradient, ctx.saved_tensors[0].to(gradient.dtype)), None, None, None


class GuidedBackprop(_RectifierRule):
    """A rectifier passes the gradient where both its input and the gradient are positive.

    Source: Springenberg et al. 2015, arXiv 1412.6806, section 3.4.
    """

    @staticmethod
    def backward(gradient: Tensor, open_gate: Tensor) -> Tensor:
        """The positive part of the gradient, where the gate is open."""
        return gradient.clamp(min=0) * open_gate


class Deconvnet(_RectifierRule):
    """A rectifier passes the gradient where the gradient is positive, whatever its input was.

    Source: Zeiler and Fergus 2014, arXiv 1311.2901, section 2.1.
    """

    @staticmethod
    def backward(gradient: Tensor, open_gate: Tensor) -> Tensor:
        """The positive part of the gradient."""
        return gradient.clamp(min=0)


# Functions of one tensor, applied to every element.
ELEMENTWISE = set(
    "relu relu6 leaky_relu prelu rrelu hardtanh hardsigmoid hardswish hardshrink softshrink tanhshrink threshold "
    "abs absolute clamp clamp_min clamp_max clip sigmoid tanh exp expm1 exp2 log log1p log2 log10 sqrt rsqrt square "
    "reciprocal pow __pow__ __rpow__ __rtruediv__ __rdiv__ sin cos atan erf erfc softplus silu gelu mish elu selu celu "
    "log_sigmoid softsign _threshold".split()
)
PRODUCTS = set("mul multiply __mul__ __rmul__ matmul __matmul__ __rmatmul__ mm bmm einsum".split())
# Linear in the activations, so that their own gradient is already their multiplier.
LINEAR = set(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear addmm batch_norm avg_pool1d "
    "avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d add sub subtract neg negative "
    "positive rsub __add__ __radd__ __sub__ __rsub__ __neg__ __pos__ cat concat concatenate stack hstack vstack "
    "flatten unflatten ravel view view_as reshape reshape_as permute transpose t swapaxes swapdims movedim moveaxis "
    "squeeze unsqueeze expand expand_as broadcast_to repeat repeat_interleave tile contiguous clone to type type_as "
    "float double half bfloat16 cuda cpu roll flip rot90 pad mean sum cumsum diff narrow select index_select gather "
    "take_along_dim chunk split tensor_split unbind __getitem__ __setitem__ copy_ masked_fill where interpolate "
    "upsample pixel_shuffle pixel_unshuffle channel_shuffle unfold fold dropout dropout1d dropout2d dropout3d "
    "alpha_dropout feature_dropout feature_alpha_dropout grid_sample diagonal tril triu __get__ as_strided".split()
)


# Computed as differences of large numbers, so that their rounding error is that of their argument.
_CANCELLING = {"gelu", "tanhshrink"}
# Linear in the argument of this position; of a convolution the weight too can come from the image, which is a product.
_WEIGHTED = {f"{kind}{d}d": 0 for kind in ("conv", "conv_transpose") for d in (1, 2, 3)}
_WEIGHTED |= {"linear": 0, "batch_norm": 0, "grid_sample": 0, "addmm": 1}
# Linear as long as the mask or index they choose by is the same for baseline and image.
_CHOOSING = set("where masked_fill gather index_select take_along_dim __getitem__ __setitem__".split())


class DeepLift(TorchFunctionMode):
    """Multipliers instead of gradients: m = Δy / Δx, so that attributions add up to the difference of the scores.

    The network runs twice, first on the baseline inside :meth:`reference`, then on the image inside the context itself.
    The gradient of the second run's score is then the DeepLift multiplier at every layer. Three rules cover any
    network:

    - what is linear keeps its gradient;
    - a function of single elements has the slope of the secant, (f(x) - f(x̄)) / (x - x̄), the *rescale rule* of
      Shrikumar et al. 2017, arXiv 1704.02685, section 3.5.1; max-pooling follows the same authors' code: what the
      image's maximum gains over the baseline's goes to the image's winner, the rest to the baseline's winner;
    - a product of two activations splits by the midpoint rule, Δ(ab) = Δa·(b + b̄)/2 + Δb·(a + ā)/2, which is exact.

    Division, normalisation layers, softmax and attention are composed of these.

    Raises:
        NotImplementedError: when the network calls a function that none of the rules covers, or lets the image act on
            the score where no gradient flows (a mask computed from activations, say); silently taking the gradient
            would break completeness.
        RuntimeError: when the network takes another path on the image than on the baseline.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tape: list[tuple[Any, tuple[Tensor, ...]]] = []
        self._recording = False
        self._position = 0
        self._depth = 0

    def reference(self) -> AbstractContextManager[None]:
        """Inside, the network's run on the baseline is remembered."""
        return _Reference(self)

    def __enter__(self) -> DeepLift:
        if self._depth == 0:
            self._position = 0
            if self._recording:
                self._tape = []
        self._depth += 1
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self._depth -= 1
        super().__exit__(*error)
        if self._depth == 0 and not self._recording and self._position < len(self._tape) and error[0] is None:
            raise RuntimeError(_other_path(f"ends before {self._tape[self._position][0][0]!r}"))

    def __torch_function__(self, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        pure, pure_kwargs, inplace = _out_of_place(func, kwargs)
        name = pure.__name__
        weights = tuple(id(a) for a in args if isinstance(a, nn.Parameter))
        if weights:  # layer for layer, the image's run must be that of the baseline
            self._replay((name, weights))
        if name in LINEAR:
            return self._linear(func, name, args, kwargs)
        args, kwargs = _operands_first(args, pure_kwargs)
        if name in ELEMENTWISE:
            output = self._elementwise(pure, args, kwargs)
        elif name in PRODUCTS:
            output = self._product(pure, args, kwargs)
        elif name in _MAX_POOLS:
            output = self._max_pool(name, args, kwargs)
        elif name == "softmax":
            output = self._softmax(args, kwargs)
        elif name in _COMPOSED:
            with self:  # what it is composed of is seen again
                output = _COMPOSED[name](*args, **kwargs)
        else:
            given = [t for t in _tensors([*args, *kwargs.values()]) if _computed(t)]
            output = pure(*args, **kwargs)
            # Without a gradient no harm is done, and without a change (a weight's norm, say) none either.
            if given and any(t.requires_grad for t in _tensors([output])) and not self._unchanged(name, given):
                raise NotImplementedError(
                    f"DeepLift has no rule for {name!r}: if it is linear, add its name to smoothsal_lib.rules.LINEAR"
                )
        return args[0].copy_(output) if inplace else output

    def _replay(self, step: tuple[Any, ...], *inputs: Tensor) -> tuple[Tensor, ...] | None:
        """While recording, remember the inputs; later hand back those of the baseline's run."""
        if self._recording:
            # Copies, because a later operation of the network may overwrite the originals.
            self._tape.append((step, tuple(t.detach().clone() for t in inputs)))
            return None
        if not self._tape:
            raise RuntimeError("run the network on the baseline first, inside reference()")
        if self._position == len(self._tape):
            raise RuntimeError(_other_path(f"goes on with {step[0]!r}"))
        expected, reference = self._tape[self._position]
        if expected != step or any(a.shape[1:] != b.shape[1:] for a, b in zip(inputs, reference, strict=True)):
            raise RuntimeError(_other_path(f"has {step[0]!r} in place of {expected[0]!r}"))
        self._position += 1
        if not torch.is_grad_enabled() and not _all_equal(inputs, reference):
            raise NotImplementedError(
                f"DeepLift cannot see through the autograd.Function or no_grad block in which {step[0]!r} is called"
            )
        return reference

    def _linear(self, func: Function, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """A function of :data:`LINEAR`; refused where its mask, index or weight makes it something else."""
        given = _tensors([*args, *kwargs.values()])
        if name == "batch_norm" and (kwargs.get("training") or kwargs.get("running_mean", args[1]) is None):
            raise NotImplementedError(
                "DeepLift needs batch norm with running statistics: the batch's own mix the images"
            )
        if name in _CHOOSING:
            choices = [t for t in given if not t.is_floating_point()]
            if choices and not self._unchanged(name, choices):
                raise NotImplementedError(f"DeepLift has no rule for {name!r} by a mask or index from the image")
        if name in _WEIGHTED:
            # Weights may be computed: from parameters (weight norm), which is harmless, or from the image.
            x = args[_WEIGHTED[name]]
            weights = [t for t in given if t is not x and _computed(t)]
            reference = self._replay((name,), x, *weights) if weights else None
            if reference and not _all_equal(weights, reference[1:]):
                if not name.startswith(("conv", "linear")) or len(weights) > 1 or weights[0] is not args[1]:
                    raise NotImplementedError(f"DeepLift has no rule for {name!r} with arguments from the image")

                def f(x: Tensor, weight: Tensor) -> Tensor:
                    return func(x, weight, *args[2:], **kwargs)

                return _Midpoint.apply(x, weights[0], *reference, f)
        return func(*args, **kwargs)

    def _unchanged(self, name: str, given: list[Tensor]) -> bool:
        """Whether these arguments are the same for the baseline and the image."""
        reference = self._replay((name,), *given)
        return reference is None or _all_equal(given, reference)

    def _elementwise(self, func: Function, args: Any, kwargs: dict[str, Any]) -> Tensor:
        at = next(i for i, a in enumerate(args) if isinstance(a, Tensor))
        others = [a for a in (*args[at + 1 :], *kwargs.values()) if _computed(a)]
        if others and not self._unchanged(func.__name__, others):
            raise NotImplementedError(f"DeepLift has no rule for {func.__name__!r} of two tensors from the image")

        def f(x: Tensor) -> Tensor:
            return func(*args[:at], x, *args[at + 1 :], **kwargs)

        reference = self._replay((func.__name__,), args[at])
        return f(args[at]) if reference is None else _Secant.apply(args[at], reference[0], f, func.__name__)

    def _product(self, func: Function, args: Any, kwargs: dict[str, Any]) -> Tensor:
        nested = func.__name__ == "einsum" and not isinstance(args[1], Tensor)
        flat = [args[0], *args[1]] if nested else list(args)
        # A parameter is the same for baseline and image, and what is multiplied by it stays linear.
        at = [i for i, t in enumerate(flat) if isinstance(t, Tensor) and not (t.is_leaf and t.requires_grad)]
        if len(at) < 2:
            return func(*args, **kwargs)
        if len(at) > 2:
            raise NotImplementedError(f"DeepLift splits products of two tensors, {func.__name__!r} has {len(at)}")

        def f(a: Tensor, b: Tensor) -> Tensor:
            given = list(flat)
            given[at[0]], given[at[1]] = a, b
            return func(*given, **kwargs)

        return self._bilinear(func.__name__, flat[at[0]], flat[at[1]], f)

    def _bilinear(self, name: str, a: Tensor, b: Tensor, f: Function) -> Tensor:
        reference = self._replay((name,), a, b)
        if reference is None or not (a.requires_grad or b.requires_grad):
            return f(a, b)
        for factor, at_baseline in zip((a, b), reference, strict=True):
            if not factor.requires_grad and not torch.equal(factor, at_baseline):
                raise NotImplementedError(
                    f"DeepLift cannot split {name!r}: one factor is computed from the image without a gradient"
                )
        return _Midpoint.apply(a, b, *reference, f)

    def _max_pool(self, name: str, args: Any, kwargs: dict[str, Any]) -> Tensor:
        indexed = getattr(F, f"{name}_with_indices")
        if kwargs.pop("return_indices", name.startswith("adaptive_")):  # torch's adaptive ones return them unasked
            raise NotImplementedError("DeepLift has no rule for max-pooling that returns indices")

        def pool(x: Tensor) -> tuple[Tensor, Tensor]:
            return indexed(x, *args[1:], **kwargs)

        reference = self._replay((name,), args[0])
        spatial = int(name[-2])
        return pool(args[0])[0] if reference is None else _MaxPool.apply(args[0], reference[0], pool, spatial)

    def _softmax(self, args: Any, kwargs: dict[str, Any]) -> Tensor:
        x = args[0] if kwargs.get("dtype") is None else args[0].to(kwargs["dtype"])
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if dim is None:
            raise NotImplementedError("DeepLift needs softmax with its dim given")
        reference = self._replay(("softmax",), x)
        return torch.softmax(x, dim) if reference is None else _Softmax.apply(x, reference[0], dim)


def _all_equal(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def _tensors(arguments: Iterable[Any]) -> list[Tensor]:
    """The tensors among the arguments of a function, those in a tuple or list included."""
    flat = (t for a in arguments for t in (a if isinstance(a, (tuple, list)) else (a,)))
    return [t for t in flat if isinstance(t, Tensor)]


def _computed(value: Any) -> bool:
    """Whether ``value`` is a tensor that autograd computed, rather than a parameter or a constant."""
    return isinstance(value, Tensor) and value.requires_grad and not value.is_leaf


def _other_path(how: str) -> str:
    return f"the network takes another path on the image than on the baseline: it {how}; DeepLift compares step by step"


class _Reference(AbstractContextManager[None]):
    """Turns a rule to recording while it is entered; can be entered again, and then starts afresh."""

    def __init__(self, rule: DeepLift) -> None:
        self._rule = rule

    def __enter__(self) -> None:
        self._rule._recording = True
        self._rule.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._rule.__exit__(*error)
        self._rule._recording = False


class _Secant(torch.autograd.Function):
    """An elementwise function whose derivative is the slope between the baseline's point and the image's.

    When the two points are close, cancellation fills the secant with rounding noise. It is replaced by the tangent
    half-way wherever the two differ by no more than rounding explains, which cannot hurt completeness: the error it
    makes in f is as small as that of f itself.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, reference: Tensor, f: Function, name: str) -> Tensor:
        output, output_reference = f(x), f(reference)
        delta = x - reference
        slope = (output - output_reference) / delta
        if name == "relu":  # made of straight pieces through 0: its secant is exact, and the tangent saved
            slope = torch.where(delta == 0, (x > 0).to(x.dtype), slope)
        else:
            tangent = _derivative(f, x - delta / 2)
            size = output.abs() + output_reference.abs()
            if name in _CANCELLING:
                size = size + x.abs() + reference.abs()
            noise = 8 * torch.finfo(x.dtype).eps * size / delta.abs()
            slope = torch.where((slope - tangent).abs() > noise, slope, tangent)  # NaN (no change) goes to the tangent
        ctx.save_for_backward(slope)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient * ctx.saved_tensors[0], None, None, None


def _derivative(f: Function, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(f(x).sum(), x)[0]


class _Midpoint(torch.autograd.Function):
    """A bilinear function f(a, b) that is differentiated half-way between the baseline and the image."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, a_reference: Tensor, b_reference: Tensor, f: Function) -> Tensor:
        ctx.f = f
        ctx.save_for_backward((a + a_reference) / 2, (b + b_reference) / 2)
        return f(a, b)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            a, b = (t.detach().requires_grad_() for t in ctx.saved_tensors)
            wanted = [t for t, needed in zip((a, b), ctx.needs_input_grad, strict=False) if needed]
            found = iter(torch.autograd.grad(ctx.f(a, b), wanted, gradient))
        return *(next(found) if needed else None for needed in ctx.needs_input_grad[:2]), None, None, None


class _MaxPool(torch.autograd.Function):
    """Max-pooling, overlapping windows included.

    A window's maximum changes by x_p - x̄_q, where p wins in the image and q in the baseline. With M = max(x_p, x̄_q),
    position p is given M - x̄_q and position q is given x_p - M. Neither exceeds the change of its own position, so all
    multipliers lie in [0, 1], and where a position has not changed it is given nothing.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, reference: Tensor, pool: Function, spatial: int) -> Tensor:
        output, winner = pool(x)
        reference_output, reference_winner = pool(reference)
        highest = torch.maximum(output, reference_output)
        ctx.spatial = spatial
        ctx.save_for_backward(winner, reference_winner, highest - reference_output, output - highest, x - reference)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        winner, reference_winner, gained, lost, delta = ctx.saved_tensors

        def scatter(values: Tensor, index: Tensor) -> Tensor:
            flat = torch.zeros_like(delta, memory_format=torch.contiguous_format).flatten(-ctx.spatial)
            index, values = index.flatten(-ctx.spatial), values.flatten(-ctx.spatial)
            return flat.scatter_add_(-1, index, values).view(delta.shape)

        given = scatter(gradient * gained, winner) + scatter(gradient * lost, reference_winner)
        return torch.where(delta == 0, scatter(gradient, winner), given / delta), None, None, None


_MAX_POOLS = {f"{kind}max_pool{d}d" for kind in ("", "adaptive_") for d in (1, 2, 3)}


class _Softmax(torch.autograd.Function):
    """Softmax as e · (1 / Σe) with e = exp(x - max x): the max-pool rule, two secants and a midpoint, written out.

    Without the maximum, exp would overflow; with a common shift for both runs, the run with the smaller scores would
    underflow.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, reference: Tensor, dim: int) -> Tensor:
        (top, winner), (top_reference, reference_winner) = (t.max(dim, keepdim=True) for t in (x, reference))
        e, e_reference = (x - top).exp(), (reference - top_reference).exp()
        r, r_reference = (1 / t.sum(dim, keepdim=True) for t in (e, e_reference))
        distance = ((x - top) - (reference - top_reference)).abs()
        highest = torch.maximum(e, e_reference)
        # The secant of exp from its higher end, which neither cancels nor overflows; a masked score (-inf) has none.
        exp_slope = torch.where(distance == 0, highest, highest * -torch.expm1(-distance) / distance).nan_to_num(0.0)
        # What the maximum's change is to each winner, as in _MaxPool, per unit of that winner's own change.
        delta, highest_top = x - reference, torch.maximum(top, top_reference)
        gained = (highest_top - top_reference) / delta.gather(dim, winner)
        lost = (top - highest_top) / delta.gather(dim, reference_winner)
        ctx.dim, ctx.winners = dim, (winner, reference_winner)
        shares = (gained.nan_to_num(0.0), lost.nan_to_num(0.0))  # 0 / 0: a winner that has not changed
        ctx.save_for_backward(exp_slope, (e + e_reference) / 2, (r + r_reference) / 2, -r * r_reference, *shares)
        return e * r

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        exp_slope, e_mid, r_mid, r_slope, *shares = ctx.saved_tensors
        through_sum = (gradient * e_mid).sum(ctx.dim, keepdim=True) * r_slope
        shifted = (gradient * r_mid + through_sum) * exp_slope
        total, given = shifted.sum(ctx.dim, keepdim=True), shifted
        for winner, share in zip(ctx.winners, shares, strict=True):
            given = given.scatter_add(ctx.dim, winner, -total * share)
        return given, None, None


def _divide(a: Any, b: Any, *, rounding_mode: str | None = None) -> Any:
    if rounding_mode is not None:
        raise NotImplementedError(f"DeepLift has no rule for division with rounding_mode={rounding_mode!r}")
    if not isinstance(b, Tensor):
        return a * (1 / b)
    return a * torch.reciprocal(b)


def _standardise(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dims, keepdim=True) + eps)


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _layer_norm(
    input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    return _affine(_standardise(input, dims, eps), weight, bias)


def _per_channel(t: Tensor | None, x: Tensor) -> Tensor | None:
    return None if t is None else t.view(-1, *[1] * (x.ndim - 2))


def _group_norm(
    input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Tensor:
    grouped = input.reshape(input.shape[0], num_groups, -1)
    standard = _standardise(grouped, (-1,), eps).reshape(input.shape)
    return _affine(standard, _per_channel(weight, input), _per_channel(bias, input))


def _instance_norm(
    input: Tensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *_: Any,
) -> Tensor:
    if not use_input_stats:
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    standard = _standardise(input, tuple(range(2, input.ndim)), eps)
    return _affine(standard, _per_channel(weight, input), _per_channel(bias, input))


def _rms_norm(input: Tensor, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    return _affine(input * torch.rsqrt(input.square().mean(dims, keepdim=True) + eps), weight, None)


def _local_response_norm(input: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    square = F.pad(input.square().unsqueeze(1), (0, 0) * (input.ndim - 2) + (size // 2, (size - 1) // 2))
    mean = square.unfold(2, size, 1).mean(-1).squeeze(1)
    return input * (k + alpha * mean).pow(-beta)


def _normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None) -> Tensor:
    if p != 2:
        raise NotImplementedError(f"DeepLift normalises by the 2-norm only, not by the {p}-norm")
    return input * torch.rsqrt(input.square().sum(dim, keepdim=True).clamp_min(eps**2))


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> Tensor:
    if is_causal:
        attn_mask = query.new_ones(query.shape[-2], key.shape[-2]).tril().bool()
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return torch.softmax(scores, -1) @ value


_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)


def _multi_head_attention(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    given = _MULTI_HEAD.bind(*args, **kwargs).arguments
    optional = ("attn_mask", "key_padding_mask", "bias_k", "use_separate_proj_weight", "add_zero_attn")
    unsupported = [name for name in optional if given.get(name) is not None and given[name] is not False]
    if unsupported:
        raise NotImplementedError(f"DeepLift has no rule for multi-head attention with {unsupported[0]}")
    weights, biases = given["in_proj_weight"].detach().chunk(3), (None,) * 3
    if given["in_proj_bias"] is not None:
        biases = given["in_proj_bias"].detach().chunk(3)
    inputs, heads = (given["query"], given["key"], given["value"]), given["num_heads"]
    # (L, N, E) -> (N, heads, L, E / heads)
    q, k, v = (
        F.linear(t, w, b).unflatten(-1, (heads, -1)).permute(1, 2, 0, 3)
        for t, w, b in zip(inputs, weights, biases, strict=True)
    )
    mixed = _attention(q, k, v).permute(2, 0, 1, 3).flatten(-2)
    return F.linear(mixed, given["out_proj_weight"], given["out_proj_bias"]), None


_COMPOSED: dict[str, Function] = {
    "div": _divide,
    "divide": _divide,
    "true_divide": _divide,
    "__truediv__": _divide,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "instance_norm": _instance_norm,
    "rms_norm": _rms_norm,
    "local_response_norm": _local_response_norm,
    "normalize": _normalize,
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _multi_head_attention,
}
