"""What differs between two graphs, tensor name by tensor name over all layers, then grouped by equal shape of change. Order never counts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tilewright.inspect.layers import Group, Layers, few, group
from tilewright.inspect.text import Readable, align
from tilewright.ir.graph import Graph, Op, Value
from tilewright.ir.printer import print_attrs

Sign = Literal["+", "-", "~"]
RETURN = "return"  # stands for the graph's results


@dataclass(frozen=True, slots=True)
class Made:
    """How a tensor comes about. Names carry their sigils."""

    name: str
    op: str  # `input` and `param` for those that no op makes
    operands: tuple[str, ...]
    attrs: str
    type: str
    index: int = 0  # which result of the op

    @property
    def text(self) -> str:
        attrs = f" {self.attrs}" if self.attrs else ""
        return f"{self.op}({', '.join(self.operands)}){attrs} : {self.type}" if self.op not in ("input", "param") else f"{self.op} : {self.type}"


@dataclass(frozen=True, slots=True)
class Change:
    """A tensor that came, went, or is made in another way."""

    sign: Sign
    before: Made | None
    after: Made | None
    readers: tuple[tuple[str, str], ...] = ()  # (a tensor that changes in nothing but reading this one, what it read before or reads now)

    @property
    def made(self) -> Made:
        found = self.after or self.before
        assert found is not None
        return found

    @property
    def name(self) -> str:
        return self.made.name.lstrip("%@")


@dataclass(frozen=True)
class GraphDiff(Readable):
    """Rows in the order of the graphs. False where nothing differs."""

    groups: tuple[Group[Change], ...]
    num_ops: tuple[int, int]  # before, after
    dims: tuple[str, str] = ("", "")  # ranges of the symbols, where they differ
    layers: Layers = field(default_factory=Layers, repr=False)

    def __bool__(self) -> bool:
        return bool(self.groups) or self.dims[0] != self.dims[1]

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[Group[Change]]:
        return iter(self.groups)

    def count(self, sign: Sign) -> int:
        return sum(len(g.items) for g in self.groups if g.items[0].sign == sign)

    @property
    def stat(self) -> str:
        marks = ", ".join(f"{sign} {count}" for sign in ("+", "-", "~") if (count := self.count(sign)))
        return f"ops {self.num_ops[0]} -> {self.num_ops[1]}   " + (f"values {marks} in {len(self.groups)} rows" if marks else "no value differs")

    def __str__(self) -> str:
        rows = [(f"{g.items[0].sign} {g.tag}", _print_group(g, self.layers)) for g in self.groups]
        dims = [(f"~ dims: {self.dims[0]} -> {self.dims[1]}",)] if self.dims[0] != self.dims[1] else []
        return "\n".join([self.stat, *align(dims), *align(rows)])


def diff(before: Graph, after: Graph) -> GraphDiff:
    """Rows of `+` came, `-` went, `~` is made in another way. A tensor that only reads a new one in an old one's place is told with that one."""
    layers = Layers.of(before, after)
    changes = _attach_readers(_changes(_made(before), _made(after)))
    strict = {id(c): _shape(c, layers, loose=False) for c in changes}
    loose = group(changes, lambda c: _shape(c, layers, loose=True), lambda c: layers.layer(c.name))
    exact = [replace(g, key=strict[id(g.items[0])]) if len({strict[id(c)] for c in g.items}) == 1 else g for g in loose]
    return GraphDiff(tuple(exact), (len(before), len(after)), (_print_dims(before), _print_dims(after)), layers)


def _print_dims(graph: Graph) -> str:
    return ", ".join(f"{name} in {bounds.low}..{bounds.high}" for name, bounds in graph.dims.items())


# -- tensors --------------------------------------------------------------------------------------------------------------------
def _made(graph: Graph) -> dict[str, Made]:
    """By name without sigil, in the order of the graph."""
    found = {v.name: describe(v) for v in (*graph.inputs, *graph.params.values())}
    for op in graph.ops:
        found |= {v.name: describe(v) for v in op.results}
    return found | {RETURN: Made(RETURN, RETURN, tuple(v.display for v in graph.outputs), "", "")}


def describe(value: Value) -> Made:
    op = value.producer
    if op is None:
        return Made(value.display, "param" if value.is_const else "input", (), "", str(value.type))
    return Made(value.display, op.name, _operands(op), print_attrs(op), str(value.type), value.index)


def _operands(op: Op) -> tuple[str, ...]:
    return tuple("none" if v is None else v.display for v in op.operands)


def _changes(before: dict[str, Made], after: dict[str, Made]) -> list[Change]:
    """What went stands before what follows it in `after`."""
    order = {name: (place, 1) for place, name in enumerate(after)}
    place = 0
    for name in before:
        place = order[name][0] if name in after else place
        order.setdefault(name, (place, 0 if place else -1))
    found = [_change(before.get(name), after.get(name)) for name in sorted(order, key=order.__getitem__)]
    return [change for change in found if change is not None]


def _change(before: Made | None, after: Made | None) -> Change | None:
    if before == after:
        return None
    return Change("~" if before and after else "+" if after else "-", before, after)


# -- consequences ---------------------------------------------------------------------------------------------------------------
def _attach_readers(changes: Sequence[Change]) -> list[Change]:
    """Those that only read a new tensor in place of an old one go with the tensor that came, or with the one that went."""
    causes = {c.made.name: c for c in changes if c.sign != "~"}
    readers: dict[str, list[tuple[str, str]]] = {}
    kept: list[Change] = []
    for change in changes:
        swap = _swap(change)
        cause = next((name for name in reversed(swap) if name in causes and causes[name].sign == ("+" if name == swap[1] else "-")), None)
        if cause is None:
            kept.append(change)
        else:
            readers.setdefault(cause, []).append((change.made.name, swap[0] if cause == swap[1] else swap[1]))
    return [replace(c, readers=tuple(readers[c.made.name])) if c.made.name in readers else c for c in kept]


def _swap(change: Change) -> tuple[str, ...]:
    """(old, new) where the only difference is that `new` is read wherever `old` was."""
    a, b = change.before, change.after
    if a is None or b is None or replace(a, operands=b.operands) != b or len(a.operands) != len(b.operands):
        return ()
    pairs = {(x, y) for x, y in zip(a.operands, b.operands) if x != y}
    return next(iter(pairs)) if len(pairs) == 1 else ()


# -- grouping -------------------------------------------------------------------------------------------------------------------
def _shape(change: Change, layers: Layers, *, loose: bool) -> tuple[str, ...]:
    """The change up to its layer. loose: with `%h` for what comes from another layer, or from before the first."""
    anchor, layer = change.name, layers.layer(change.name)

    def name(text: str) -> str:
        bare = text.lstrip("%@")
        place, own = layers.split(bare), layers.split(anchor)
        if loose and own and place != own and text.startswith("%"):
            return "%h"
        if own and place and place != own:
            return f"{text[0]}{place[0]}{{L{place[1] - own[1]:+d}}}{bare[len(place[0]) + len(str(place[1])) :]}"
        return layers.shorten(text, anchor)

    def made(item: Made | None) -> str:
        if item is None:
            return ""
        attrs = re.sub(rf"\blayer={layer}\b", "layer={L}", item.attrs) if layer is not None else item.attrs
        return replace(item, operands=tuple(map(name, item.operands)), attrs=attrs).text

    notes = tuple(part for reader, other in change.readers for part in (name(reader), name(other)))
    return (change.sign, name(change.made.name), made(change.before), made(change.after), *notes)


def _print_group(found: Group[Change], layers: Layers) -> str:
    shape = found.key
    assert isinstance(shape, tuple)
    sign, name, before, after, *notes = shape
    readers = list(dict.fromkeys(notes[::2]))
    if sign == "+":
        instead = f" in place of {few(list(dict.fromkeys(notes[1::2])))}" if notes else ""
        return f"{name} = {after}" + (f"   read by {few(readers)}{instead}" if readers else "")
    if sign == "-":
        return f"{name} = {before}" + (f"   {few(readers)} reads {few(list(dict.fromkeys(notes[1::2])))} instead" if readers else "")
    if name == RETURN:
        return f"{before.partition(' : ')[0]} -> {after.partition(' : ')[0]}"
    old, _, old_type = before.rpartition(" : ")
    new, _, new_type = after.rpartition(" : ")
    return f"{name}: {old} -> {new}" if old_type == new_type else f"{name}: {before} -> {after}"
