"""The one way in which passes change a graph: each rewrite is a `Change`, which becomes one numbered event with joined locs and kept names.

Knows no op by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import TracebackType

from tilewright.ir.errors import PassError
from tilewright.ir.events import Event, EventLog, Miss
from tilewright.ir.graph import Graph, Op, Value
from tilewright.ir.opdef import Attr, OpDef
from tilewright.ir.types import Loc


class Rewriter:
    """Handed to every pass. `log.limit` bounds the rewrites of the whole pipeline: past it, `each` gives nothing more."""

    def __init__(self, graph: Graph, log: EventLog, pass_name: str, held_back: Collection[str] = ()) -> None:
        """held_back: names of values at which nothing is to be rewritten."""
        self.graph, self.log, self.pass_name, self.held_back = graph, log, pass_name, held_back

    def each(self, *op_names: str) -> Iterator[Op]:
        """Ops of these names (all, if none is given) in canonical order, as long as they are in the graph and rewrites are allowed."""
        for op in self.graph.ops:
            if self.log.is_exhausted:
                return
            if op in self.graph and (not op_names or op.name in op_names) and op.results[0].name not in self.held_back:
                yield op

    def only_reader(self, value: Value) -> Op | None:
        """The op that alone reads a value; None where several do, or the graph returns it."""
        return next(iter(value.users)) if len(value.users) == 1 and value not in self.graph.outputs else None

    def change(self, anchor: Value, removed: Iterable[Op], *, rule: str = "", reason: str = "") -> Change:
        """Starts a rewrite at `anchor`; `removed` are the ops that it means to make unnecessary. Use as a context."""
        return Change(self, anchor, list(removed), rule or self.pass_name, reason)

    def replace(
        self, old: Value, op: str | OpDef, operands: Sequence[Value | None], attrs: Mapping[str, Attr] | None = None, *,
        removed: Iterable[Op] = (), rule: str = "", reason: str = "",
    ) -> Value:  # fmt: skip
        """The same tensor by another op: the new result takes over name and uses of `old`."""
        assert old.producer is not None
        with self.change(old, [old.producer, *removed], rule=rule, reason=reason) as change:
            new = change.emit(op, operands, attrs)
            change.take_over(new, old)
        return new

    def forward(self, old: Value, new: Value, *, rule: str = "", reason: str = "") -> None:
        """`old` is `new`: every use reads `new` from now on. Raises PassError where their types differ."""
        assert old.producer is not None
        if new.type != old.type:
            raise PassError(f"{self.pass_name} at {old.display}", f"{old!r} cannot be forwarded to {new!r}", "their types differ")
        with self.change(old, [old.producer], rule=rule, reason=reason) as change:
            change.forward(old, new)

    def insert_after(self, value: Value, op: str | OpDef, attrs: Mapping[str, Attr] | None = None, *, rule: str = "", reason: str = "") -> Value:
        """Whatever reads `value` reads op(value) from now on; returns that."""
        assert value.producer is not None
        with self.change(value, [], rule=rule, reason=reason) as change:
            new = change.emit(op, [value], attrs, loc=value.producer.loc.made_by(rule or self.pass_name))
            self.graph.replace_uses(value, new)
            assert new.producer is not None
            self.graph.set_operand(new.producer, 0, value)
        return new

    def erase(self, op: Op, *, rule: str = "", reason: str = "") -> None:
        with self.change(op.results[0], [op], rule=rule, reason=reason):
            pass

    def missed(self, anchor: Value, reason: str, *, rule: str = "") -> None:
        """Remarks that a rule nearly fired here, and why it did not."""
        modules = anchor.producer.loc.modules if anchor.producer else ()
        miss = Miss(self.pass_name, rule or self.pass_name, anchor.name, reason, modules)
        if miss not in self.log.misses:
            self.log.misses.append(miss)


class Change:
    """One rewrite. On leaving, the ops of `removed` that nothing uses are erased and the event is recorded."""

    def __init__(self, rewriter: Rewriter, anchor: Value, removed: list[Op], rule: str, reason: str) -> None:
        self._rewriter, self._graph = rewriter, rewriter.graph
        self._anchor_name, self._removed, self._rule, self._reason = anchor.name, removed, rule, reason
        base = anchor.producer or next(iter(anchor.users))
        self._key = base.key
        self._loc = Loc().join(*(op.loc for op in removed)).made_by(rule)
        self._added: list[Op] = []
        self._kept: list[str] = []
        self._related: list[tuple[str, str, str]] = []
        self._spares: set[Value] = set()  # values whose name another one took over
        self._into = ""

    def emit(
        self, op: str | OpDef, operands: Sequence[Value | None], attrs: Mapping[str, Attr] | None = None, *, name: str = "", loc: Loc | None = None
    ) -> Value:
        """A new op with the joined locs of what the change removes; `name` for a new tensor, none where it will take over one."""
        key = (*self._key, len(self._added))
        names = [self._graph.fresh_name(name)] if name else []
        node = self._graph.emit(op, operands, attrs, names=names, loc=loc or self._loc, key=key)
        self._added.append(node)
        return node.results[0]

    def take_over(self, new: Value, old: Value) -> None:
        self._kept.append(old.name)
        self._spares.add(old)
        self._graph.take_name(new, old)

    def forward(self, old: Value, new: Value) -> None:
        """Readers of `old` read `new`, which is the same tensor under a name of its own."""
        self._into = new.name
        self._graph.replace_uses(old, new)

    def relate(self, new: Value, function: str, old: Value) -> None:
        """Says that new = function(old): another tensor, made of the old one."""
        self._related.append((new.name, function, old.name))

    def __enter__(self) -> Change:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            return
        gone = self._erase_unused()
        made = tuple(v.name for op in self._added for v in op.results if v.name not in self._kept)
        erased = tuple(v.name for op in gone for v in op.results if v not in self._spares)
        log = self._rewriter.log
        log.events.append(
            Event(
                number=len(log.events) + 1, pass_name=self._rewriter.pass_name, rule=self._rule, anchor=self._anchor_name,
                removed=tuple(op.name for op in gone), added=tuple(op.name for op in self._added), keeps=tuple(self._kept),
                related=tuple(self._related), reason=self._reason, modules=self._loc.modules, makes=made, erases=erased, into=self._into,
            )
        )  # fmt: skip

    def _erase_unused(self) -> list[Op]:
        gone: list[Op] = []
        waiting = list(dict.fromkeys(self._removed))
        progress = True
        while progress:
            progress = False
            for op in list(waiting):
                if not any(v.users or v in self._graph.outputs for v in op.results):
                    self._graph.erase(op)
                    waiting.remove(op)
                    gone.append(op)
                    progress = True
        if not gone and not self._added and not self._kept:
            raise PassError(f"{self._rewriter.pass_name} at %{self._anchor_name}", "the rewrite changed nothing", "return the reason instead")
        return gone
