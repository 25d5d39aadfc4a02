"""The closed table from ATen calls to ops of the graph. Knows neither models nor where tensors come from.

Axes count in the traced shape; a value in the graph lacks the leading unit axes of its traced shape (the batch axis of one, above all).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch.fx import Node

from tilewright.ir.errors import TraceError
from tilewright.ir.graph import Value
from tilewright.ir.opdef import Attr
from tilewright.ir.types import Dim

ATEN = torch.ops.aten
Shape = tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Traced:
    """A tensor of the trace: its value in the graph, and its traced shape with all unit axes."""

    value: Value
    shape: Shape

    @property
    def rank(self) -> int:
        return len(self.shape)

    def axis(self, axis: int) -> int:
        return axis % self.rank


@dataclass(frozen=True, slots=True)
class Pieces:
    """Result of a split: slices that getitem takes when they are used."""

    source: Traced
    axis: int
    bounds: tuple[tuple[int, int], ...]


class Emitter(Protocol):
    """What a rule may do. `emit` adds the op that the call is about, `prepare` one that only fits operands or result to it."""

    def emit(self, op: str, *operands: Value | None, **attrs: Attr | Shape) -> Value: ...
    def prepare(self, op: str, *operands: Value | None, **attrs: Attr | Shape) -> Value: ...
    def result_shape(self) -> Shape: ...
    def result_dtype(self) -> str: ...
    def refuse(self, problem: str) -> TraceError: ...


Rule = Callable[..., Any]  # gives a Value, or the Pieces of a split
R = TypeVar("R", bound=Rule)
RULES: dict[object, Rule] = {}


def imports(*targets: object) -> Callable[[R], R]:
    """Registers a rule: it gets the emitter and the call's arguments, nodes replaced by Traced."""

    def register(rule: R) -> R:
        for target in targets:
            assert target not in RULES, f"{target} has two rules"
            RULES[target] = rule
        return rule

    return register


def strip(shape: Shape) -> Shape:
    """Without leading unit axes."""
    first = next((i for i, d in enumerate(shape) if d != 1), len(shape))
    return shape[first:]


def with_rank(e: Emitter, x: Traced, rank: int) -> Value:
    """x with at least its last `rank` traced axes."""
    shape = x.shape[min(x.rank - rank, x.rank - x.value.type.rank) :] if rank <= x.rank else (1,) * (rank - x.rank) + x.shape
    return reshaped(e, x.value, shape)


def reshaped(e: Emitter, x: Value, shape: Shape) -> Value:
    return x if x.type.shape == shape else e.prepare("reshape", x, shape=shape)


def as_dtype(e: Emitter, x: Value, dtype: str) -> Value:
    return x if x.type.dtype == dtype else e.prepare("cast", x, dtype=dtype)


def local_axis(x: Traced, value: Value, axis: int) -> int:
    """The traced axis counted in `value`, which has the last axes of x."""
    return x.axis(axis) - (x.rank - value.type.rank)


def call_name(node: Node) -> str:
    """`aten.topk`"""
    return str(node.target).removesuffix(".default") if not callable(node.target) or hasattr(node.target, "_schema") else node.target.__name__
