"""The graph: ops and values with identity, changed in place through few verbs. Knows no op by name, and no tensor data.

A value whose operands are all parameters is a constant: it is computed once, when weights are packed, and printed with `@`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tilewright.ir.errors import GraphError
from tilewright.ir.opdef import Attr, OpDef, find_op
from tilewright.ir.types import Bounds, Loc, TensorType

Key = tuple[int, ...]  # place in the canonical order; an op made for another inherits its key and appends to it


@dataclass(eq=False, slots=True)
class Value:
    """A tensor. `producer` is None for graph inputs and parameters."""

    name: str
    type: TensorType
    producer: Op | None = None
    index: int = 0  # which result of the producer
    is_const: bool = False
    users: dict[Op, None] = field(default_factory=dict)

    @property
    def is_param(self) -> bool:
        return self.producer is None and self.is_const

    @property
    def display(self) -> str:
        return ("@" if self.is_const else "%") + self.name

    def __repr__(self) -> str:
        return f"{self.display}: {self.type}"


@dataclass(eq=False, slots=True)
class Op:
    definition: OpDef
    operands: list[Value | None]
    attrs: dict[str, Attr]
    results: list[Value]
    loc: Loc
    key: Key

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def result(self) -> Value:
        """The only result. Use `results` for ops that have more."""
        assert len(self.results) == 1, f"{self.name} has {len(self.results)} results"
        return self.results[0]

    @property
    def is_const(self) -> bool:
        return self.results[0].is_const

    @property
    def inputs(self) -> list[Value]:
        """Operands that are present."""
        return [v for v in self.operands if v is not None]

    def operand(self, name: str) -> Value | None:
        index = self.definition.operands.index(name)
        return self.operands[index] if index < len(self.operands) else None

    def __repr__(self) -> str:
        return f"<{', '.join(v.display for v in self.results)} = {self.name}(...)>"


class Graph:
    """Typed SSA over one step's flattened batch. `ops` iterates in canonical order once `sort()` has run; `emit` appends."""

    def __init__(self, name: str, dims: Mapping[str, Bounds]) -> None:
        self.name = name
        self.dims: dict[str, Bounds] = dict(dims)
        self.inputs: list[Value] = []
        self.params: dict[str, Value] = {}
        self.outputs: list[Value] = []
        self.retired: set[str] = set()  # names of tensors that are gone; never used again
        self._ops: dict[Op, None] = {}
        self._values: dict[str, Value] = {}
        self._next_key = 0

    # -- reading --------------------------------------------------------------------------------------------------------------
    @property
    def ops(self) -> list[Op]:
        return list(self._ops)

    def __len__(self) -> int:
        return len(self._ops)

    def __contains__(self, op: Op) -> bool:
        return op in self._ops

    def find(self, op_name: str) -> list[Op]:
        return [op for op in self._ops if op.name == op_name]

    def value(self, name: str) -> Value:
        """Looks a value up by name, with or without its sigil."""
        bare = name[1:] if name[:1] in "%@" else name
        if bare not in self._values:
            raise GraphError(f"graph {self.name}", f"no value named {name!r}")
        return self._values[bare]

    def find_value(self, name: str) -> Value | None:
        """By name without its sigil."""
        return self._values.get(name)

    def has_name(self, name: str) -> bool:
        return name in self._values or name in self.retired

    def values(self) -> Iterator[Value]:
        return iter(self._values.values())

    # -- building and changing ------------------------------------------------------------------------------------------------
    def add_input(self, name: str, type: TensorType) -> Value:
        value = self._register(Value(name, type))
        self.inputs.append(value)
        return value

    def add_param(self, name: str, type: TensorType) -> Value:
        if name in self.params:
            known = self.params[name]
            if known.type != type:
                raise GraphError(f"@{name}", f"is {known.type} and was asked for as {type}")
            return known
        self.params[name] = self._register(Value(name, type, is_const=True))
        return self.params[name]

    def emit(
        self, op: str | OpDef, operands: Sequence[Value | None], attrs: Mapping[str, Attr] | None = None, *,
        names: Sequence[str] = (), loc: Loc | None = None, key: Key | None = None,
    ) -> Op:  # fmt: skip
        """Appends an op; its result types are inferred. `names` default to `<first operand>.<op>`. Raises GraphError."""
        definition = find_op(op) if isinstance(op, str) else op
        present = list(operands)
        while present and present[-1] is None and len(present) > definition.required:
            present.pop()
        complete = definition.complete(attrs or {})
        types = definition.result_types(tuple(v.type if v is not None else None for v in present), complete)
        for type_ in types:
            self._check_dims(definition.name, type_)
        is_const = all(v is None or v.is_const for v in present) and all(t.is_static for t in types)
        names = list(names) or self._default_names(definition.name, present, len(types))
        if len(names) != len(types):
            raise GraphError(definition.name, f"has {len(types)} results, was given {len(names)} names: {', '.join(names)}")
        node = Op(definition, present, complete, [], loc or Loc(), key if key is not None else (self._take_key(),))
        for index, (name, type_) in enumerate(zip(names, types)):
            node.results.append(self._register(Value(name, type_, node, index, is_const)))
        for value in node.inputs:
            value.users[node] = None
        self._ops[node] = None
        return node

    def set_operand(self, op: Op, index: int, value: Value | None) -> None:
        old = op.operands[index]
        op.operands[index] = value
        if old is not None and old not in op.inputs:
            del old.users[op]
        if value is not None:
            value.users[op] = None

    def replace_uses(self, old: Value, new: Value) -> None:
        for user in list(old.users):
            for index, operand in enumerate(user.operands):
                if operand is old:
                    self.set_operand(user, index, new)
        self.outputs = [new if v is old else v for v in self.outputs]

    def take_name(self, new: Value, old: Value) -> None:
        """`new` is the same tensor as `old`: it takes over the name and every use. `old` gets a retired spare name until erased."""
        if new.type != old.type:
            raise GraphError(old.display, f"is {old.type}, its replacement is {new.type}", "a value that means something else needs a new name")
        self.replace_uses(old, new)
        name = old.name
        del self._values[new.name], self._values[name]
        new.name, old.name = name, new.name
        self._values[new.name], self._values[old.name] = new, old

    def erase(self, op: Op) -> None:
        used = [v.display for v in op.results if v.users or v in self.outputs]
        if used:
            raise GraphError(op.name, f"cannot be erased: {used[0]} is still used")
        for value in op.inputs:
            value.users.pop(op, None)
        for value in op.results:
            del self._values[value.name]
            self.retired.add(value.name)
        del self._ops[op]

    def drop_param(self, name: str) -> None:
        value = self.params[name]
        assert not value.users, f"@{name} is used"
        del self.params[name], self._values[name]

    def sort(self) -> None:
        """Canonical order: topological, ties by key. Raises GraphError on a cycle."""
        waiting = {op: len({v.producer for v in op.inputs if v.producer is not None}) for op in self._ops}
        tie = {op: i for i, op in enumerate(self._ops)}
        ready = [(op.key, tie[op], op) for op, count in waiting.items() if count == 0]
        heapq.heapify(ready)
        order: dict[Op, None] = {}
        while ready:
            _, _, op = heapq.heappop(ready)
            order[op] = None
            for user in dict.fromkeys(user for value in op.results for user in value.users):
                waiting[user] -= 1
                if waiting[user] == 0:
                    heapq.heappush(ready, (user.key, tie[user], user))
        if len(order) != len(self._ops):
            stuck = next(op for op in self._ops if op not in order)
            raise GraphError(f"graph {self.name}", f"{stuck.results[0].display} depends on itself")
        self._ops = order

    def fresh_name(self, name: str) -> str:
        """`name`, or the first of `name.1`, `name.2`, … that was never used."""
        if not self.has_name(name):
            return name
        count = 1
        while self.has_name(f"{name}.{count}"):
            count += 1
        return f"{name}.{count}"

    def become(self, other: Graph) -> None:
        """Takes over all that the other one holds, which is of no use after that."""
        self.__dict__ = other.__dict__

    def copy(self) -> Graph:
        """The same graph with ops and values of its own."""
        twin = Graph(self.name, self.dims)
        values: dict[Value, Value] = {v: twin.add_input(v.name, v.type) for v in self.inputs}
        values |= {v: twin.add_param(name, v.type) for name, v in self.params.items()}
        for op in self._ops:
            operands = [None if v is None else values[v] for v in op.operands]
            node = twin.emit(op.definition, operands, op.attrs, names=[v.name for v in op.results], loc=op.loc, key=op.key)
            values.update(zip(op.results, node.results))
        twin.outputs = [values[v] for v in self.outputs]
        twin.retired, twin._next_key = set(self.retired), self._next_key
        return twin

    # -- private --------------------------------------------------------------------------------------------------------------
    def _register(self, value: Value) -> Value:
        if self.has_name(value.name):
            raise GraphError(value.display, "the name is taken", "names belong to tensors and are never reused")
        self._values[value.name] = value
        return value

    def _default_names(self, op_name: str, operands: Sequence[Value | None], count: int) -> list[str]:
        first = next((v.name for v in operands if v is not None), self.name)
        base = f"{first}.{op_name}"
        names: list[str] = []
        for index in range(count):
            name = self.fresh_name(base if count == 1 else f"{base}.{index}")
            names.append(name)
        return names

    def _check_dims(self, where: str, type_: TensorType) -> None:
        for dim in type_.shape:
            if isinstance(dim, str) and dim not in self.dims:
                raise GraphError(where, f"type {type_} uses dim {dim!r}, the graph has {', '.join(self.dims)}")

    def _take_key(self) -> int:
        self._next_key += 1
        return self._next_key


def is_same_structure(a: Graph, b: Graph) -> bool:
    """Equality of names, types, ops, attributes, locs and order: what a text round trip must keep."""
    return _describe(a) == _describe(b)


def _describe(graph: Graph) -> tuple[Any, ...]:
    def named(values: Iterable[Value | None]) -> tuple[Any, ...]:
        return tuple(None if v is None else (v.display, v.type) for v in values)

    body = tuple(
        (
            op.name,
            named(op.operands),
            tuple(sorted(op.attrs.items(), key=lambda kv: kv[0])),
            named(op.results),
            op.loc.modules,
            op.loc.rules,
        )
        for op in graph.ops
    )
    return graph.name, tuple(graph.dims.items()), named(graph.inputs), named(graph.params.values()), body, named(graph.outputs)
