"""Measures of attributions and of repaired networks."""

from smoothsal_lib.metrics.faithfulness import Curves, deletion, insertion
from smoothsal_lib.metrics.noise import checkerboard_energy, frequencies, power_spectrum, total_variation
from smoothsal_lib.metrics.road import road

__all__ = [
    "Curves",
    "checkerboard_energy",
    "deletion",
    "frequencies",
    "insertion",
    "power_spectrum",
    "road",
    "total_variation",
]
