"""Batch norm over a batch that several processes share."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode


class WholeBatchNorm(TorchFunctionMode):
    """Inside the context, every batch norm in training mode takes mean and variance over the parts of all processes.

    The function is met wherever a network calls it, so its modules stay what they are. :class:`torch.nn.SyncBatchNorm`
    computes the same, on GPUs only, in modules of its own, and waits for the device in each of them.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    return _Shared.apply(x, weight, bias, running_mean, running_var, eps, momentum)


class _Shared(torch.autograd.Function):
    """Batch norm of (N, C, ...) with one message forwards and one backwards; N may differ between processes.

    The gradients of weight and bias are those of the process's own part, which whoever averages gradients adds up.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        eps: float,
        momentum: float,
    ) -> Tensor:
        ctx.axes = [axis for axis in range(x.ndim) if axis != 1]
        wide = x if x.dtype == torch.float64 else x.float()
        own_var, own_mean = torch.var_mean(wide, ctx.axes, correction=0)
        own = torch.stack([own_mean, own_var, torch.full_like(own_mean, x.numel() // x.shape[1])])
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        means, variances, counts = torch.stack(parts, 1)
        count = counts.sum(0)
        share = counts / count
        whole_mean = (share * means).sum(0)
        whole_var = (share * (variances + (means - whole_mean).square())).sum(0)
        if mean is not None and var is not None:
            mean.lerp_(whole_mean.to(mean), momentum)
            var.lerp_((whole_var * count / (count - 1)).to(var), momentum)
        ctx.save_for_backward(x, weight, whole_mean, (whole_var + eps).rsqrt(), count)
        return F.batch_norm(x, whole_mean, whole_var, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors

        def channels(values: Tensor) -> Tensor:
            return values.view(-1, *[1] * (x.ndim - 2))

        gradient = gradient.to(mean.dtype)
        normal = (x - channels(mean)) * channels(scale)
        own = torch.stack([gradient.sum(ctx.axes), (gradient * normal).sum(ctx.axes)])
        whole = own.clone()
        dist.all_reduce(whole)
        whole /= count
        into_x = channels(scale if weight is None else scale * weight) * (
            gradient - channels(whole[0]) - normal * channels(whole[1])
        )
        of_weight, of_bias = (own[i] if ctx.needs_input_grad[j] else None for i, j in ((1, 1), (0, 2)))
        return into_x.to(x.dtype), of_weight, of_bias, None, None, None, None
