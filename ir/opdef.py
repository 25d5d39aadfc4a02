"""Declaring ops: one typed function each, from which builder, printer, parser, verifier and documentation derive.

Positional parameters are operands (`TensorType | None` where optional, `*parts` where variadic), keyword-only ones are attributes; the body
infers the result types; the docstring is the formula. Torch references live in `reference.py`, code generation elsewhere, under the same name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from tilewright.ir.errors import GraphError
from tilewright.ir.types import TensorType

Attr = int | float | bool | str | tuple[int | float | str, ...] | None
# core: as traced; semantic: raised, what the model means; paged: split on the KV pages, ready for regions.
Level = Literal["core", "semantic", "paged"]
Types = tuple[TensorType, ...]


@dataclass(frozen=True, slots=True)
class Cost:
    """What an op must do at least: bytes moved (operands read once, results written once) and arithmetic operations."""

    bytes: int
    operations: int


@dataclass(frozen=True)
class OpDef:
    name: str
    infer: Callable[..., TensorType | Types]
    operands: tuple[str, ...]
    required: int  # number of operands that cannot be left out
    variadic: bool
    attrs: Mapping[str, Attr]  # name -> default; REQUIRED where there is none
    level: Level
    doc: str
    reads: str | None = None  # effect: state that it reads ("kv")
    writes: str | None = None  # effect: state that it writes
    pointwise: bool = False  # each result element depends on the operands' elements of the same index
    commutative: bool = False
    operations: Callable[..., int] | None = field(default=None, compare=False)

    def result_types(self, operands: tuple[TensorType | None, ...], attrs: Mapping[str, Attr]) -> Types:
        """Inferred types. Raises GraphError naming the op, with both sides quoted."""
        self.check_signature(len(operands), attrs)
        types = self.infer(*operands, **attrs)
        return types if isinstance(types, tuple) else (types,)

    def check_signature(self, num_operands: int, attrs: Mapping[str, Attr]) -> None:
        most = len(self.operands)
        if num_operands < self.required or (num_operands > most and not self.variadic):
            raise GraphError(self.name, f"has {num_operands} operands, takes {self.required} to {most}: {', '.join(self.operands)}")
        for name in attrs:
            if name not in self.attrs:
                raise GraphError(self.name, f"no attribute {name!r}", "it has " + (", ".join(self.attrs) or "none"))
        for name, default in self.attrs.items():
            if default is REQUIRED and name not in attrs:
                raise GraphError(self.name, f"attribute {name!r} is missing")

    def complete(self, attrs: Mapping[str, Attr]) -> dict[str, Attr]:
        """Attributes with their defaults filled in, in declared order."""
        merged = {**self.attrs, **attrs}
        missing = [name for name, value in merged.items() if value is REQUIRED]
        if missing:
            raise GraphError(self.name, f"attribute {missing[0]!r} is missing")
        return {name: _plain(merged[name]) for name in merged}

    def cost(self, operands: tuple[TensorType | None, ...], results: Types, dims: Mapping[str, int], attrs: Mapping[str, Attr]) -> Cost:
        moved = sum(t.num_bytes(dims) for t in (*operands, *results) if t is not None)
        if self.operations is not None:
            return Cost(moved, self.operations(dims, *operands, **attrs))
        return Cost(moved, sum(t.num_elements(dims) for t in results))


MOST_LISTED = 30  # names in an error
REQUIRED: Any = type("Required", (), {"__repr__": lambda self: "REQUIRED"})()
OPS: dict[str, OpDef] = {}


def op(
    level: Level = "core", *, reads: str | None = None, writes: str | None = None, pointwise: bool = False, commutative: bool = False,
    operations: Callable[..., int] | None = None,
) -> Callable[[Callable[..., Any]], OpDef]:  # fmt: skip
    """Declares the decorated function as the op of its name and returns the OpDef. A second declaration raises, naming both places."""

    def declare(function: Callable[..., Any]) -> OpDef:
        name = function.__name__.rstrip("_")
        if name in OPS:
            first = OPS[name].infer.__code__
            raise GraphError(f"op {name}", f"declared at {first.co_filename}:{first.co_firstlineno} and again at {function.__code__.co_filename}")
        parameters = list(inspect.signature(function).parameters.values())
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        attrs = {p.name: REQUIRED if p.default is p.empty else p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        names = tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)
        definition = OpDef(
            name=name, infer=function, operands=names, required=sum(p.default is p.empty for p in positional), variadic=variadic,
            attrs=attrs, level=level, doc=inspect.getdoc(function) or "", reads=reads, writes=writes,
            pointwise=pointwise, commutative=commutative, operations=operations,
        )  # fmt: skip
        OPS[name] = definition
        return definition

    return declare


def find_op(name: str) -> OpDef:
    import_module("tilewright.ir.ops")  # declares ours
    if name not in OPS:
        raise GraphError("graph", f"no op named {name!r}", suggest(name, OPS))
    return OPS[name]


def suggest(name: str, known: Mapping[str, Any] | list[str]) -> str:
    """`did you mean 'x'?` where something is near, else the list."""
    from difflib import get_close_matches

    near = get_close_matches(name, list(known), n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    names = sorted(known)
    return "there are: " + ", ".join(names[:MOST_LISTED]) + (f", … {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else "")


def _plain(value: Attr) -> Attr:
    return tuple(value) if isinstance(value, list) else value  # type: ignore[return-value]
