"""The three repairs of Smooth Deep Saliency, each a context around any use of a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import nn

from smoothsal_lib.fixes.backward import BackwardHook
from smoothsal_lib.fixes.base import Fix
from smoothsal_lib.fixes.forward import ForwardHook
from smoothsal_lib.fixes.surrogate import Surrogate, fit_surrogate

__all__ = ["BackwardHook", "Fix", "ForwardHook", "Surrogate", "as_fixes", "fit_surrogate", "smoothed"]

NAMES = {
    "backward": (BackwardHook, "centred"),
    "backward:paper": (BackwardHook, "paper"),
    "forward": (ForwardHook, "centred"),
    "forward:paper": (ForwardHook, "paper"),
}


def as_fixes(fix: str | Fix | Sequence[str | Fix] | None) -> list[Fix]:
    """Turn what a caller gives as ``fix`` into a list of :class:`Fix` objects.

    Raises:
        ValueError: for an unknown name.
        TypeError: for anything that is neither a name nor a fix.
    """
    if fix is None:
        return []
    if isinstance(fix, (list, tuple)):
        return [one for given in fix for one in as_fixes(given)]
    if isinstance(fix, Fix):
        return [fix]
    if not isinstance(fix, str):
        raise TypeError(f"expected a fix as a name or a Fix, got {type(fix).__name__}")
    if fix == "surrogate":
        raise ValueError("a surrogate belongs to one network: pass fix=sal.load_surrogate() or sal.fit_surrogate(...)")
    if fix not in NAMES:
        raise ValueError(f"unknown fix {fix!r}: choose None, {', '.join(map(repr, NAMES))}, or a surrogate")
    kind, form = NAMES[fix]
    return [kind(form)]


@contextmanager
def smoothed(model: nn.Module, *fixes: str | Fix | Sequence[str | Fix] | None) -> Iterator[nn.Module]:
    """Inside the block the network is repaired, for code of your own as for captum or zennit.

    Several fixes are entered in the order given. On every exit the network is what it was.

        with sal.smoothed(model, "backward"):
            attribution = captum.attr.LayerGradCam(model, model.layer2).attribute(x, target)

    Args:
        model: the network.
        fixes: names or :class:`Fix` objects; ``None`` repairs nothing.

    Raises:
        TypeError, ValueError: for an unknown fix, or a network that it cannot repair.
    """
    with ExitStack() as stack:
        for fix in (one for given in fixes for one in as_fixes(given)):
            stack.enter_context(fix.repair(model))
        yield model
