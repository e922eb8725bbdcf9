"""Smooth saliency maps in the hidden layers of convolutional networks.

import smoothsal_lib as sal

model = sal.load_model("tiny_resnet")
x, photo = sal.load_photo("chelsea")
attributions = sal.explain(model, x, method="deeplift", fix="backward")
sal.plot.maps({name: sal.saliency_map(a) for name, a in attributions.items()}, photo=photo)
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from smoothsal_lib import fixes, rules, sampling
from smoothsal_lib.camelyon import load_camelyon_model
from smoothsal_lib.capture import Capture, capture
from smoothsal_lib.contributions import ExtractAggregate, extract_aggregate
from smoothsal_lib.datasets.photos import load_photo, photo_names
from smoothsal_lib.explain import METHODS, explain
from smoothsal_lib.extract import capped, saliency_map, times_image
from smoothsal_lib.fixes import Surrogate, fit_surrogate, smoothed
from smoothsal_lib.layers import HiddenLayer, hidden_layers, pooling_layers, strided_layers
from smoothsal_lib.meta import MetaStep
from smoothsal_lib.metrics import checkerboard_energy, deletion, insertion, power_spectrum, total_variation
from smoothsal_lib.models import load_model, load_surrogate, top_classes
from smoothsal_lib.regions import over_region

try:
    __version__ = version("smoothsal-lib")
except PackageNotFoundError:  # imported from a folder that was never installed
    __version__ = "0+unknown"

__all__ = [
    "METHODS",
    "Capture",
    "ExtractAggregate",
    "HiddenLayer",
    "MetaStep",
    "Surrogate",
    "capped",
    "capture",
    "checkerboard_energy",
    "deletion",
    "exercises",
    "explain",
    "extract_aggregate",
    "fit_surrogate",
    "fixes",
    "hidden_layers",
    "insertion",
    "load_camelyon_model",
    "load_model",
    "load_photo",
    "load_surrogate",
    "over_region",
    "photo_names",
    "plot",
    "pooling_layers",
    "power_spectrum",
    "report",
    "rules",
    "saliency_map",
    "sampling",
    "smoothed",
    "strided_layers",
    "times_image",
    "top_classes",
    "total_variation",
    "widgets",
]


def __getattr__(name: str) -> ModuleType:
    """Import what explaining does not need when it is first used: matplotlib is slow to load."""
    if name in ("exercises", "plot", "report", "widgets"):
        return importlib.import_module(f"smoothsal_lib.{name}")
    raise AttributeError(f"module 'smoothsal_lib' has no attribute {name!r}")


def __dir__() -> list[str]:
    """All names, for tab completion: those too that are imported when they are first used."""
    return sorted({*globals(), *__all__})
