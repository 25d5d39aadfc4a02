"""Which ops share a kernel: products take prologue and epilogue, what is left joins by rows. Decides membership only; regions.py cuts.

Views (`reshape`, `slice` of the last axis with step 1) are no members: whoever reads through one takes it along.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tilewright.ir.graph import Graph, Op, Value
from tilewright.ir.regions import Regime, Template
from tilewright.ir.types import Dim

# A norm is recomputed by each block of the product that reads it where that costs less than a launch and a round trip through memory.
PROLOGUE_MAX_TOKENS = 1
PROLOGUE_MAX_READERS = 3
NORMS = ("rms_norm", "layer_norm")
# What attention cannot compute for one head at a time: products, and rows picked by an index.
OF_OTHER_ROWS = ("linear", "matmul", "attend", "embedding", "gather_rows")


@dataclass(eq=False, slots=True)
class Group:
    """Ops of one kernel, in canonical order; `shared` ops are recomputed here and may stand in other groups too."""

    template: Template
    anchor: Op
    ops: list[Op]
    shared: list[Op] = field(default_factory=list)
    reason: str = ""

    @property
    def every(self) -> list[Op]:
        return [*self.shared, *self.ops]


def is_view(graph: Graph, op: Op) -> bool:
    if op.is_const or op.result in graph.outputs:
        return False
    if op.name == "reshape":
        return True
    rank = op.result.type.rank
    return op.name == "slice" and op.attrs["axis"] in (-1, rank - 1) and op.attrs["step"] == 1


def base_of(graph: Graph, value: Value) -> Value:
    """What a value is a view of: itself, where it is none."""
    while value.producer is not None and is_view(graph, value.producer):
        value = value.producer.inputs[0]
    return value


class Grouping:
    """The groups of a graph for one regime, in canonical order of their first ops."""

    def __init__(self, graph: Graph, regime: Regime) -> None:
        self.graph, self.regime = graph, regime
        self._members = [op for op in graph.ops if not op.is_const and not is_view(graph, op)]
        self._place = {op: i for i, op in enumerate(self._members)}
        self._ancestors = self._find_ancestors()
        self._readers = self._find_readers()
        self._group: dict[Op, Group] = {}
        self._add_products()
        if regime.kind == "decode":
            self._feed_attention()
        self._add_rows()
        self._join_siblings()
        if regime.max_tokens <= PROLOGUE_MAX_TOKENS:
            self._move_norms_into_products()
        self.groups = list(dict.fromkeys(self._group[op] for op in self._members if op in self._group))

    # -- reading the graph, views looked through -------------------------------------------------------------------------------
    def sources(self, op: Op) -> list[Op]:
        """Members whose results an op reads."""
        bases = (base_of(self.graph, value).producer for value in op.inputs if not value.is_const)
        return list(dict.fromkeys(p for p in bases if p is not None))

    def _find_ancestors(self) -> dict[Op, int]:
        """For each member the set of members that it depends on, as bits."""
        found: dict[Op, int] = {}
        for op in self._members:
            bits = 0
            for source in self.sources(op):
                bits |= found[source] | 1 << self._place[source]
            found[op] = bits
        return found

    def _find_readers(self) -> dict[Op, list[Op]]:
        readers: dict[Op, list[Op]] = {op: [] for op in self._members}
        for op in self._members:
            for source in self.sources(op):
                readers[source].append(op)
        return readers

    def _bits(self, ops: list[Op]) -> int:
        return sum(1 << self._place[op] for op in ops)

    def _depends(self, op: Op, on: list[Op]) -> bool:
        return bool(self._ancestors[op] & self._bits(on))

    # -- products ---------------------------------------------------------------------------------------------------------------
    def _add_products(self) -> None:
        for op in self._members:
            if op.name == "attend":
                self._start(op, "attend", "reads other tokens' keys and values")
            elif op.name in ("linear", "matmul") and op not in self._group:
                self._take_epilogue(self._start(op, "linear", ""))

    # -- attention in a step of one token a sequence -----------------------------------------------------------------------------
    def _feed_attention(self) -> None:
        """A token attends to what earlier steps wrote, and to itself: its kernel can make that last key and value, and write them.

        Of several kernels that read the same pages the first writes them.
        """
        for group in [g for g in dict.fromkeys(self._group.values()) if g.template == "attend"]:
            write = self._write_of(group.anchor)
            if write is None or write in self._group:
                group.reason += f", its own token's among them: {self._why_apart(write)}"
                self._take_feeds(group)
                continue
            group.ops.append(write)
            self._group[write] = group
            self._take_feeds(group)
            group.reason += "; with one token a sequence it makes and writes the newest itself"

    def _write_of(self, attend: Op) -> Op | None:
        """What writes the pages of an attention, where nothing but attention reads them."""
        write = attend.inputs[1].producer
        is_free = write is not None and write.result not in self.graph.outputs and all(r.name == "attend" for r in self._readers[write])
        return write if is_free else None

    def _why_apart(self, write: Op | None) -> str:
        return "something else needs the pages" if write is None else f"{self._group[write].anchor.result.display} wrote them"

    def _take_feeds(self, group: Group) -> None:
        """Ops that work on heads of a token and that nothing outside of the group reads."""
        for op in reversed(self._members[: self._place[group.anchor]]):
            readers = self._readers[op]
            is_inner = bool(readers) and all(self._group.get(r) is group for r in readers) and not any(v in self.graph.outputs for v in op.results)
            if is_inner and op not in self._group and op.name not in OF_OTHER_ROWS and _row_space(op)[0] == "T":
                group.ops.append(op)
                self._group[op] = group
        group.ops.sort(key=self._place.__getitem__)

    def _start(self, op: Op, template: Template, reason: str) -> Group:
        group = Group(template, op, [op], reason=reason)
        self._group[op] = group
        return group

    def _take_epilogue(self, group: Group) -> None:
        last = group.anchor
        while (following := self._next_in_epilogue(last)) is not None:
            group.ops.append(following)
            self._group[following] = group
            last = following
        names = " → ".join(op.name for op in group.ops[1:])
        group.reason = f"epilogue {names}: needs no other row" if names else "the next reader needs whole rows of the product"

    def _next_in_epilogue(self, last: Op) -> Op | None:
        """The only reader of the last result, where it works on the same elements. What else it reads cannot come after the product."""
        result = last.result
        if result in self.graph.outputs or len(result.users) != 1:
            return None
        (user,) = result.users
        return user if user not in self._group and _fits_epilogue(user, result) else None

    def _move_norms_into_products(self) -> None:
        for group in [g for g in dict.fromkeys(self._group.values()) if g.template == "rows"]:
            if len(group.ops) != 1 or group.anchor.name not in NORMS:
                continue
            norm = group.anchor
            readers = self._readers[norm]
            fits = [r.name == "linear" and r.operands[0] is norm.result and self._group[r].anchor is r for r in readers]
            if not all(fits) or len(readers) > PROLOGUE_MAX_READERS or norm.result in self.graph.outputs:
                continue
            for reader in readers:
                self._group[reader].shared.append(norm)
                self._group[reader].reason += f"; prologue {norm.name}: recomputed in each block, saves a launch and a round trip"
            del self._group[norm]

    # -- rows -------------------------------------------------------------------------------------------------------------------
    def _add_rows(self) -> None:
        for op in self._members:
            if op in self._group:
                continue
            home = next((g for g in self._homes(op) if self._can_join(op, g)), None)
            if home is None:
                self._start(op, "rows", _rows_reason(op))
                continue
            home.ops.append(op)
            self._group[op] = home

    def _homes(self, op: Op) -> list[Group]:
        groups = [self._group[source] for source in self.sources(op) if source in self._group]
        return [g for g in dict.fromkeys(groups) if g.template == "rows"]

    def _can_join(self, op: Op, group: Group) -> bool:
        """Same rows, and nothing between: no other operand depends on the group."""
        if op.name == "gather_rows" or _row_space(op) != _row_space(group.ops[-1]):
            return False
        others = [source for source in self.sources(op) if source not in group.ops]
        return not any(self._depends(other, group.ops) for other in others)

    def _join_siblings(self) -> None:
        """Rows groups that read the same activation and do not wait for one another become one launch."""
        by_input: dict[tuple[Value, object], Group] = {}
        for group in [g for g in dict.fromkeys(self._group[op] for op in self._members if op in self._group) if g.template == "rows"]:
            for key in self._sibling_keys(group):
                first = by_input.setdefault(key, group)
                if first is not group and self._are_independent(first, group):
                    self._merge(first, group)
                    break

    def _sibling_keys(self, group: Group) -> list[tuple[Value, object]]:
        """What joins groups: an activation that they read, or the rows that they look up in tables."""
        inside = {value for op in group.ops for value in op.results}
        read = [base_of(self.graph, v) for op in group.ops for v in op.inputs if not v.is_const]
        shared = [v for v in dict.fromkeys(read) if v not in inside and v.producer is not None and v.type.rank > 1]
        looked_up = [op.inputs[1] for op in group.ops if op.name == "gather_rows" and op.inputs[0].is_const] if len(group.ops) == 1 else []
        return [(v, _row_space(group.ops[0])) for v in (*shared, *looked_up)]

    def _are_independent(self, a: Group, b: Group) -> bool:
        if any(op not in self._group for op in (*a.ops, *b.ops)):
            return False
        return not any(self._depends(op, b.ops) for op in a.ops) and not any(self._depends(op, a.ops) for op in b.ops)

    def _merge(self, a: Group, b: Group) -> None:
        a.ops = sorted([*a.ops, *b.ops], key=self._place.__getitem__)
        for op in b.ops:
            self._group[op] = a


def _fits_epilogue(user: Op, result: Value) -> bool:
    """Pointwise on [T, N] (or the halves of gate and up), its other operands [T, N], [N] or a scalar."""
    if user.name == "gated":
        return len(user.inputs) == 1
    if not user.definition.pointwise or user.result.type.shape != result.type.shape:
        return False
    shapes = [v.type.shape for v in user.inputs if v is not result]
    return all(s in (result.type.shape, result.type.shape[-1:], (1,), ()) for s in shapes)


def _row_space(op: Op) -> tuple[Dim | None, str]:
    """Whose rows an op works on, and whether they are whole tokens or heads of a token."""
    type_ = op.inputs[0].type if op.name == "write_kv" else op.result.type
    symbol = next((d for d in type_.shape if isinstance(d, str)), None)
    by_head = op.name in ("rotary", "write_kv") or type_.rank > 2
    return symbol, "heads" if by_head else "tokens"


def _rows_reason(op: Op) -> str:
    if op.name in NORMS:
        return "the norm needs whole rows"
    if op.name in ("rotary", "write_kv"):
        return "needs whole heads; attention reads what it writes"
    return "works row by row"
