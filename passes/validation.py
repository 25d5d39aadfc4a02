"""Numeric validation: the reference interpreter runs the graph before and after a pass on the same inputs, and the difference is kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isnan
from typing import Any

from tilewright.ir.errors import PassError
from tilewright.ir.graph import Graph
from tilewright.ir.interpreter import interpret
from tilewright.ir.reference import Batch
from tilewright.ir.weights import Weights

# Relative error (Frobenius) that another order of the same operations may cause, by dtype of activations.
ROUNDING = {"f64": 1e-10, "f32": 1e-5, "f16": 1e-2, "bf16": 8e-2}


@dataclass
class Validator:
    """Compares outputs on inputs that `start` is given or `make_inputs` makes; allowed errors add up over passes that declare some."""

    weights: Weights
    inputs: dict[str, Any]  # tensors by name
    batch: Batch
    dtype: str = "f32"
    expected: list[Any] = field(default_factory=list)

    def start(self, graph: Graph) -> None:
        self.expected = interpret(graph, self.inputs, self.weights, batch=self.batch)

    def check(self, graph: Graph, pass_name: str, tolerance: float | None) -> float:
        """The largest relative error over the outputs. Raises PassError where it is more than the pass may add, or what is returned differs."""
        found = interpret(graph, self.inputs, self.weights, batch=self.batch)
        shapes = [[list(tensor.shape) for tensor in outputs] for outputs in (found, self.expected)]
        if shapes[0] != shapes[1]:
            raise PassError(f"pass {pass_name}", f"returns shapes {shapes[0]}, before it {shapes[1]}", "a pass keeps what the graph returns")
        errors = [_relative(a, b) for a, b in zip(found, self.expected)]
        error = next((e for e in errors if isnan(e)), max(errors))
        allowed = ROUNDING[self.dtype] if tolerance is None else tolerance
        if not error <= allowed:
            problem = f"changed the outputs by {error:.1e} (relative), {allowed:.1e} is allowed"
            raise PassError(f"pass {pass_name}", problem, "stop before it, or bisect its rewrites with the limit")
        self.expected = found
        return error


def _relative(found: Any, expected: Any) -> float:
    difference = (found.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp_min(1e-30))
