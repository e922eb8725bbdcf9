"""Layer-wise relevance propagation in hidden layers, through zennit."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

from torch import nn


@contextmanager
def relevance_network(model: nn.Module) -> Iterator[nn.Module]:
    """A copy of the network in which relevance comes back where the gradient would.

    Convolutions follow LRP-z⁺, R_j = Σ_k (x_j w_jk)⁺ / Σ_i (x_i w_ik)⁺ R_k, linear layers LRP-ε, ε = 1e-6 (Bach et al.
    2015, doi 10.1371/journal.pone.0130140; in this combination Kohlbrenner et al. 2020, arXiv 1910.09840). Batch norms
    are merged into the layers before them, and the sum at the end of a residual block shares relevance out. All
    rules are linear in what comes from above: the gradient of the score f_c under them is the relevance divided by f_c.

    zennit knows modules, and the residual blocks of torchvision's ResNets. Sums that a network of your own makes in its
    ``forward`` hand all of their relevance to both sides, and means over positions made there share it out evenly,
    where ``nn.AdaptiveAvgPool2d`` shares it out by activation; give zennit a canonizer for those and use it directly.

    Relevance is activation times something, and 0 where a unit is silent. The backward and the forward hook blur it
    onto silent units all the same, and the next block's sum divides by their activation: expect large values of both
    signs under those fixes. A surrogate repairs LRP without that.

    The network itself is not touched: zennit changes weights while it works, and leaves some of that behind when
    entering fails. Hooks, such as a fix's, are copied along, and a surrogate's stages take the places of the
    convolutions that they stand for.

    Args:
        model: the network, repaired or not.

    Raises:
        ModuleNotFoundError: where zennit is not installed.
    """
    try:
        composites = importlib.import_module("zennit.composites")
        torchvision = importlib.import_module("zennit.torchvision")
    except ModuleNotFoundError:
        raise ModuleNotFoundError("method 'lrp' needs zennit: pip install 'smoothsal-lib[lrp]'") from None
    copy = deepcopy(model)
    for module in list(copy.modules()):
        stage = getattr(module.__dict__.get("forward"), "__self__", None)
        if isinstance(stage, nn.Module) and stage is not module:
            module.stage = stage  # a child, so that zennit finds the convolutions in it
            module.__class__ = nn.Module  # for zennit no convolution any more, but with all of its hooks
    with composites.EpsilonPlus(canonizers=[torchvision.ResNetCanonizer()]).context(copy):
        yield copy
