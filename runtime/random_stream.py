"""Counter-based random numbers: each depends on a request's seed and a position alone, whatever else runs and wherever.

The mixing function is the finalizer of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
"""

from __future__ import annotations

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def uniforms(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """f64[n] in [0, 1) for seeds u64[n] and positions i64[n], 53 bits each."""
    return draw_uniforms(make_keys(seeds), positions)


def make_keys(seeds: np.ndarray) -> np.ndarray:
    """u64[n], the half of the work that is the same for all positions of a seed."""
    return _mix(seeds + _STEP)


def draw_uniforms(keys: np.ndarray, positions: np.ndarray) -> np.ndarray:
    bits = _mix(keys + (positions.astype(np.uint64) + np.uint64(1)) * _STEP)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: np.ndarray) -> np.ndarray:
    """u64[n] to u64[n], one to one; products wrap."""
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))
