"""Several layers' maps in one: high only where all of them are high.

    layers = hidden_layers(model, x)
    maps = {name: saliency_map(a, "l2") for name, a in explain(model, x, target, list(layers)).items()}
    one = combine(maps, (64, 64), layers, weights=spread_weights(maps))

A late layer knows which object it looks at and not quite where, an early one has sharp edges everywhere. A product
keeps what both show. Every map M_l is scaled to M̂_l = (M_l - min) / (max - min), image by image, and then

    product = ∏_l M̂_l,    geometric = ∏_l M̂_l^{w_l},  Σ_l w_l = 1

Source: There and Back Again, Rebuffi, Fong, Ji and Vedaldi 2020, arXiv 2004.02866, section 4.2. How weights come
from data is defined here in its spirit, not as it does: see :func:`spread_weights` and :func:`localisation_weights`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from smoothsal_lib.extract import resize_map
from smoothsal_lib.layers import INPUT, HiddenLayer

COMBINATIONS = ("geometric", "product")
_ROUNDING = 16  # a map whose values differ by so many units in the last place of its largest one is constant


def combine(
    maps: Mapping[str, Tensor],
    size: tuple[int, int],
    layers: Mapping[str, HiddenLayer] | None = None,
    how: str = "geometric",
    weights: Mapping[str, float] | None = None,
    mode: str = "aligned",
) -> Tensor:
    """One map from those of several layers.

    Maps are brought to the picture's size first and scaled there, so that each has the range [0, 1] among the pixels.
    The lowest pixel of a layer is then exactly 0 and vetoes: the combination is 0 wherever a layer of positive weight
    has its minimum. A layer of weight 0 has no say (0⁰ = 1), nor has a map that is constant up to rounding, which is
    scaled to ones. Signed maps have their most negative value at 0; clamp them first where only what is positive
    counts.

    Args:
        maps: ``{layer: M (N, h, w)}``, of one size for each layer.
        size: (H, W) of the picture that the network was given.
        layers: where the units of the maps stand, as :func:`smoothsal_lib.hidden_layers` tells for that picture; it may
            list more. Only the mode ``"aligned"`` reads it, and ``"input"``, the picture itself, needs no entry.
        how: ``"geometric"`` for the weighted geometric mean; ``"product"``. Without weights both rank pixels alike, but
            a product of many layers may come out as 0 where it is only small.
        weights: ``{layer: w}`` for exactly the layers of ``maps``, 0 or more; they are divided by their sum. ``None``
            weighs all layers alike.
        mode: how maps are resized, see :func:`smoothsal_lib.extract.resize_map`.

    Returns:
        (N, H, W) between 0 and 1, in at least 32 bits.

    Raises:
        ValueError: for no maps, maps of other shapes, of different N or with values that are not finite; an unknown way
            to combine; weights for a product, of other layers, negative, not finite or all 0; and what ``resize_map``
            refuses.
    """
    if how not in COMBINATIONS:
        raise ValueError(f"unknown way to combine {how!r}: choose {' or '.join(map(repr, COMBINATIONS))}")
    if how == "product" and weights is not None:
        raise ValueError("a product has no weights: use how='geometric'")
    checked = _checked(maps)
    if how == "product":
        powers = dict.fromkeys(checked, 1.0)
    else:
        powers = _shares(weights if weights is not None else dict.fromkeys(checked, 1.0), checked)
    logarithm: Tensor | float = 0.0
    for name, own in checked.items():
        scaled = _scaled(_placed(own, size, name, layers, mode))
        logarithm = logarithm + torch.xlogy(powers[name], scaled)  # 0 for the power 0, even of 0
    assert isinstance(logarithm, Tensor)
    return logarithm.exp()


def spread_weights(maps: Mapping[str, Tensor]) -> dict[str, float]:
    """Weights without labels: a layer whose maps vary more between positions says more about where.

    The spread of a layer is the mean over its maps of the coefficient of variation of M̂, the standard deviation over
    positions divided by the mean: std(M) / (mean(M) - min(M)). It is the same for a M + b, a > 0; 0 for constant maps;
    √(P - 1) for one of P positions with a single peak, so a finer layer can have more of it. Weights are proportional,
    and alike when all maps of all layers are constant.

    This definition is ours. Rebuffi et al. 2020, arXiv 2004.02866, section 4.2, weigh layers by the spread of their
    features.

    Args:
        maps: ``{layer: M (N, h, w)}`` at the layers' own size, over a data set; N may differ between layers.

    Returns:
        ``{layer: w}``, Σ w = 1.

    Raises:
        ValueError: for no maps, maps of other shapes or with values that are not finite.
    """
    spreads = {}
    for name, own in _checked(maps, one_count=False).items():
        scaled = _scaled(own)
        spreads[name] = float((scaled.std((1, 2), correction=0) / scaled.mean((1, 2))).mean())
    return _proportional(spreads)


def localisation_weights(scores: Mapping[str, Tensor | float], chance: Tensor | float) -> dict[str, float]:
    """Weights from labelled pictures: how much better than chance each layer alone finds the object.

    w_l is proportional to max(0, mean score of layer l - chance); all are alike when no layer is better than chance.
    Take pictures on which nothing is measured later.

    This definition is ours, after the supervised weights of Rebuffi et al. 2020, arXiv 2004.02866, section 4.2.

    Args:
        scores: ``{layer: (N,)}``, as from :func:`smoothsal_lib.metrics.localisation.pointing_game` or
            ``energy_in_box`` for the maps of each layer on the same pictures; or the mean of each.
        chance: what a map that says nothing scores, for each picture (N,) as from
            :func:`smoothsal_lib.metrics.localisation.box_share`, or on average.

    Returns:
        ``{layer: w}``, Σ w = 1; 0 for a layer at or below chance, unless all are.

    Raises:
        ValueError: for no layers, or scores of another shape or not finite.
    """
    by_chance = _mean(chance, "chance")
    return _proportional({name: max(0.0, _mean(own, f"layer {name!r}") - by_chance) for name, own in scores.items()})


def _mean(scores: Tensor | float, whose: str) -> float:
    given = torch.as_tensor(scores, dtype=torch.float64)
    if given.ndim > 1 or given.numel() == 0 or not bool(torch.isfinite(given).all()):
        got = given.item() if given.ndim == 0 else f"{tuple(given.shape)} with a mean of {given.mean():g}"
        raise ValueError(f"expected finite scores (N,) of {whose}, or their mean, got {got}")
    return float(given.mean())


def _proportional(values: Mapping[str, float]) -> dict[str, float]:
    """Weights from values of 0 or more; alike where no value says which layer to prefer."""
    if not values:
        raise ValueError("no layers given: pass {layer: scores (N,)}")
    return _shares(values if any(values.values()) else dict.fromkeys(values, 1.0), values)


def _checked(maps: Mapping[str, Tensor], one_count: bool = True) -> dict[str, Tensor]:
    """The maps in at least 32 bits."""
    if not maps:
        raise ValueError("no maps given: pass {layer: maps (N, h, w)}")
    count = len(next(iter(maps.values())))
    for name, own in maps.items():
        if own.ndim != 3 or 0 in own.shape:
            raise ValueError(f"expected maps (N, h, w), none of them 0, got {tuple(own.shape)} for layer {name!r}")
        if one_count and len(own) != count:
            raise ValueError(f"layer {name!r} has {len(own)} maps, and {next(iter(maps))!r} has {count}")
        if not bool(torch.isfinite(own).all()):
            wrong = int((~torch.isfinite(own)).sum())
            raise ValueError(f"expected finite maps, got {wrong} NaN or infinite values at layer {name!r}")
    return {name: own.to(torch.promote_types(own.dtype, torch.float32)) for name, own in maps.items()}


def _placed(
    own: Tensor, size: tuple[int, int], name: str, layers: Mapping[str, HiddenLayer] | None, mode: str
) -> Tensor:
    """The maps of one layer at the picture's size."""
    if name == INPUT and tuple(own.shape[1:]) == tuple(size):
        return own
    if mode == "aligned" and (layers is None or name not in layers):
        raise ValueError(f"layers do not tell where {name!r} is: pass hidden_layers(model, x), or mode='bilinear'")
    return resize_map(own, size, None if layers is None else layers.get(name), mode)


def _scaled(maps: Tensor) -> Tensor:
    """M̂: every map from 0 to 1; ones where a map is constant."""
    largest = maps.abs().amax((1, 2), keepdim=True)
    maps = maps / largest.where(largest > 0, 1)  # so that no difference overflows
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    constant = high - low <= _ROUNDING * torch.finfo(maps.dtype).eps
    return torch.where(constant, 1, (maps - low) / (high - low).where(~constant, 1))


def _shares(weights: Mapping[str, float], names: Mapping[str, object]) -> dict[str, float]:
    """Weights of the named layers, divided by their sum."""
    if weights.keys() != names.keys():
        other = sorted(weights.keys() ^ names.keys())[0]
        raise ValueError(f"weights and maps must have the same layers, and {other!r} is in one of them only")
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight {weight} of layer {name!r} is not 0 or more")
    total = math.fsum(weights.values())
    if total == 0:
        raise ValueError("all weights are 0: give at least one layer more, or weights=None")
    return {name: weights[name] / total for name in names}
