"""Measures of attributions and of repaired networks."""

from smoothsal_lib.metrics.noise import frequencies, power_spectrum, total_variation

__all__ = ["frequencies", "power_spectrum", "total_variation"]
