"""Which ONNX operators are claimed, and what their rules may ask for. A rule gives IR values, or sizes that are known while importing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tilewright.ir.errors import TraceError
from tilewright.ir.graph import Value
from tilewright.ir.opdef import Attr
from tilewright.ir.types import Dim, TensorType

Shape = tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Whole numbers that are known while importing: shapes, axes, pads. Symbols stand for sizes of the step."""

    items: tuple[Dim, ...]
    rank: int = 1  # 0: one number


Result = Value | Sizes | None


class Node(Protocol):
    """One node, as its rule sees it."""

    op_type: str
    num_outputs: int
    told_op: str  # op of the IR that a file of ours says it was; '' in others
    opset: int

    def attr(self, name: str, default: Any = None) -> Any: ...
    def __len__(self) -> int: ...
    def has(self, index: int) -> bool:
        """Whether the optional input is there."""
        ...

    def value(self, index: int) -> Value:
        """Raises TraceError where the input is missing."""
        ...

    def sizes(self, index: int) -> Sizes | None:
        """What is known of the input, or None."""
        ...

    def number(self, index: int) -> int | float | None:
        """The one element of an input that is a constant and broadcasts against any other, or None."""
        ...

    def known(self, index: int) -> tuple[Dim, ...]:
        """As `sizes`; raises TraceError where the input is computed by the step."""
        ...

    def emit(self, op: str, *operands: Value | None, **attrs: Attr | Shape) -> Value: ...
    def constant(self, tensor: torch.Tensor) -> Value: ...
    def dtype(self, onnx_dtype: int) -> str: ...
    def refuse(self, problem: str) -> TraceError: ...


Rule = Callable[[Node], Result | Sequence[Result]]


@dataclass(frozen=True, slots=True)
class Claim:
    rule: Rule
    known: tuple[int, ...]  # inputs that must be known while importing


CLAIMS: dict[str, Claim] = {}


def claims(*operators: str, known: tuple[int, ...] = ()) -> Callable[[Rule], Rule]:
    """Registers the rule of operators of the standard domain. known: inputs that must not depend on the step."""

    def register(rule: Rule) -> Rule:
        for name in operators:
            if name in CLAIMS:
                raise TraceError(f"onnx {name}", "is claimed twice")
            CLAIMS[name] = Claim(rule, known)
        return rule

    return register


# -- layout as rules write it ---------------------------------------------------------------------------------------------------
def reshape(n: Node, x: Value, shape: Sequence[Dim]) -> Value:
    """Reshapes of reshapes are one; none is emitted where nothing changes."""
    while x.producer is not None and x.producer.name == "reshape":
        x = x.producer.inputs[0]
    return x if x.type.shape == tuple(shape) else n.emit("reshape", x, shape=tuple(shape))


def transpose(n: Node, x: Value, perm: Sequence[int]) -> Value:
    """Transposes of transposes are one; none is emitted where nothing changes."""
    perm = tuple(perm)
    if x.producer is not None and x.producer.name == "transpose":
        inner: Any = x.producer.attrs["perm"]
        x, perm = x.producer.inputs[0], tuple(inner[a] for a in perm)
    return x if perm == tuple(range(len(perm))) else n.emit("transpose", x, perm=perm)


def expand(n: Node, x: Value, shape: Sequence[Dim]) -> Value:
    return x if x.type.shape == tuple(shape) else n.emit("expand", x, shape=tuple(shape))


def cast(n: Node, x: Value, dtype: str) -> Value:
    return x if x.type.dtype == dtype else n.emit("cast", x, dtype=dtype)


def fixed(n: Node, dim: Dim) -> int:
    if not isinstance(dim, int):
        raise n.refuse(f"needs a fixed size where the size is {dim}")
    return dim


def product(n: Node, dims: Sequence[Dim]) -> Dim:
    """At most one symbol, and only ones beside it."""
    symbols = [d for d in dims if isinstance(d, str)]
    size = 1
    for d in dims:
        size *= d if isinstance(d, int) else 1
    if not symbols:
        return size
    if len(symbols) > 1 or size != 1:
        raise n.refuse(f"joins the axes {' x '.join(map(str, dims))}, of which one is a symbol")
    return symbols[0]


def axis_in(n: Node, axis: int, type_: TensorType, *, extra: int = 0) -> int:
    rank = type_.rank + extra
    if not -rank <= axis < max(rank, 1):
        raise n.refuse(f"axis {axis} of {type_}")
    return axis % max(rank, 1)
