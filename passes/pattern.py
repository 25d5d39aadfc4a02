"""Patterns over the graph as text: `mul(weight, cast?(mul(x, rsqrt(add{scalar=eps}(mean(pow{exponent=2.0}(x)))))))`.

A bare word captures a value (the same word, the same value; `_` anything); `op{attr=word}` captures an attribute, `op{attr=1.5}` demands it;
`op?(p)` matches with or without the op. Operands of commutative ops are tried in both orders. Says why a match was refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

from tilewright.ir.errors import GraphError, PassError
from tilewright.ir.graph import Graph, Op, Value
from tilewright.ir.opdef import OpDef, find_op

WORD = re.compile(r"[A-Za-z_]\w*")
TOKEN = re.compile(r"\s*([A-Za-z_][\w.]*|-?\d+(?:\.\d+)?(?:e-?\d+)?|[(){}=,?])")


@dataclass(frozen=True, slots=True)
class Node:
    """An op with operand patterns, or a capture where `op` is empty."""

    op: str
    capture: str = ""
    operands: tuple[Node, ...] = ()
    attrs: tuple[tuple[str, Any], ...] = ()  # value, or Capture(word)
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Capture:
    word: str


@dataclass(frozen=True, slots=True)
class Match:
    """What a pattern found: captured values and attributes by word, the ops that it covers with the root first."""

    root: Value
    values: dict[str, Value] = field(default_factory=dict)
    attrs: dict[str, Any] = field(default_factory=dict)
    ops: tuple[Op, ...] = ()

    def __getattr__(self, word: str) -> Any:
        for table in (self.values, self.attrs):
            if word in table:
                return table[word]
        raise AttributeError(f"the pattern captures no {word!r}; it has {', '.join([*self.values, *self.attrs])}")

    def leak(self, graph: Graph) -> str:
        """Says which value made inside is read outside too, and by whom: replacing the match would leave its ops alive. Empty: none is."""
        inside = set(self.ops)
        for value in (v for op in self.ops[1:] for v in op.results if not v.is_const and v is not self.root):
            reader = next((user.results[0].display for user in value.users if user not in inside), "")
            if value in graph.outputs:
                return f"{value.display} is returned by the graph too"
            if reader:
                return f"{value.display} is read elsewhere too, by {reader}"
        return ""


def parse_pattern(text: str) -> Node:
    """Raises PassError with the place at which the pattern cannot be read."""
    reader = _Reader(text)
    node = reader.term()
    reader.end()
    if not node.op:
        raise PassError(f"pattern `{text}`", "its root is a capture", "start with an op")
    return node


def match(pattern: Node, root: Value) -> Match | None:
    """The first way in which the pattern fits at `root`."""
    return next(_match(pattern, root, Match(root)), None)


def _match(node: Node, value: Value, so_far: Match) -> Iterator[Match]:
    if not node.op:
        bound = so_far.values.get(node.capture)
        if node.capture == "_" or bound is value:
            yield so_far
        elif bound is None:
            yield Match(so_far.root, {**so_far.values, node.capture: value}, so_far.attrs, so_far.ops)
        return
    op = value.producer
    if op is not None and op.name == node.op:
        yield from _match_op(node, op, so_far)
    if node.optional:
        yield from _match(node.operands[0], value, so_far)


def _match_op(node: Node, op: Op, so_far: Match) -> Iterator[Match]:
    attrs = _match_attrs(node, op, so_far.attrs)
    if attrs is None or len(op.inputs) != len(node.operands):
        return
    orders = permutations(op.inputs) if op.definition.commutative and len(op.inputs) == 2 else [tuple(op.inputs)]
    for order in orders:
        found = [Match(so_far.root, so_far.values, attrs, (*so_far.ops, op))]
        for pattern, operand in zip(node.operands, order):
            found = [longer for shorter in found for longer in _match(pattern, operand, shorter)]
        yield from found


def _match_attrs(node: Node, op: Op, bound: dict[str, Any]) -> dict[str, Any] | None:
    attrs = dict(bound)
    for name, wanted in node.attrs:
        value = op.attrs.get(name)
        if isinstance(wanted, Capture):
            if value is None or attrs.setdefault(wanted.word, value) != value:
                return None
        elif value != wanted and not (isinstance(wanted, float) and isinstance(value, (int, float)) and abs(value - wanted) <= 1e-6 * abs(wanted)):
            return None
    return attrs


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def peek(self) -> str:
        found = TOKEN.match(self.text, self.at)
        return found.group(1) if found else ""

    def take(self, expected: str = "") -> str:
        found = TOKEN.match(self.text, self.at)
        if found is None or (expected and found.group(1) != expected):
            rest = self.text[self.at :].strip()
            raise PassError(f"pattern `{self.text}`", f"expected {expected or 'a word'!r} at {f'`{rest}`' if rest else 'its end'}")
        self.at = found.end()
        return found.group(1)

    def take_word(self, what: str, *, numbers: bool = False) -> str:
        place, word = self.at, self.take()
        if not WORD.fullmatch(word) and not (numbers and word[-1].isdigit()):
            remedy = "a number belongs in braces, as in mul{scalar=0.5}(x)" if word[-1].isdigit() else ""
            raise PassError(f"pattern `{self.text}`", f"expected {what} at `{self.text[place:].strip()}`", remedy)
        return word

    def skip(self, text: str) -> bool:
        if self.peek() == text:
            self.take()
            return True
        return False

    def end(self) -> None:
        if self.text[self.at :].strip():
            raise PassError(f"pattern `{self.text}`", f"cannot read `{self.text[self.at :].strip()}`")

    def term(self) -> Node:
        word = self.take_word("an op or a capture")
        optional = self.skip("?")
        attrs: list[tuple[str, Any]] = []
        if self.skip("{"):
            while not self.skip("}"):
                name = self.take_word("an attribute")
                self.take("=")
                attrs.append((name, _attr(self.take_word("a value", numbers=True))))
                self.skip(",")
        if not self.skip("("):
            if attrs or optional:
                raise PassError(f"pattern `{self.text}`", f"{word} has attributes or `?` but no operands")
            return Node("", capture=word)
        operands: list[Node] = []
        while not self.skip(")"):
            operands.append(self.term())
            if self.peek() != ")":
                self.take(",")
        return self.node(word, operands, attrs, optional=optional)

    def node(self, word: str, operands: list[Node], attrs: list[tuple[str, Any]], *, optional: bool) -> Node:
        """A node that some op can match. Raises PassError for an op, an attribute or a number of operands that does not exist."""
        definition = self.op(word)
        for name, _ in attrs:
            if name not in definition.attrs:
                raise PassError(f"pattern `{self.text}`", f"{word} has no attribute {name!r}", "it has " + (", ".join(definition.attrs) or "none"))
        most = len(operands) if definition.variadic else len(definition.operands)
        if not definition.required <= len(operands) <= most or (optional and len(operands) != 1):
            takes = "1 where it is optional" if optional else f"{definition.required} to {most}: {', '.join(definition.operands)}"
            raise PassError(f"pattern `{self.text}`", f"{word} has {len(operands)} operands, takes {takes}")
        return Node(definition.name, operands=tuple(operands), attrs=tuple(attrs), optional=optional)

    def op(self, name: str) -> OpDef:
        try:
            return find_op(name)
        except GraphError as error:
            raise PassError(f"pattern `{self.text}`", error.problem, error.remedy) from error


def _attr(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return {"true": True, "false": False}.get(text, Capture(text)) if text[0].islower() else text
