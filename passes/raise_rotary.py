"""Raises rotary embeddings (Su et al. 2021) written with rotate-half or rotate-pairs, on whole heads or their first columns."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from tilewright.ir.graph import Op, Value
from tilewright.passes.pattern import Match
from tilewright.passes.registry import rewrite
from tilewright.passes.rewriter import Change, Rewriter

HALF = "add(mul(x, cos), mul(concat(neg(slice{start=high}(x)), slice{stop=low}(x)), sin))"
PAIRS = "add(mul(x, cos), mul(reshape(concat(reshape(neg(slice{start=odd step=2}(x))), reshape(slice{start=even step=2}(x)))), sin))"


@rewrite("raise-rotary", f"concat({HALF}, rest)", f"concat({PAIRS}, rest)", HALF, PAIRS, per_layer="attention")
def raise_rotary(m: Match, rw: Rewriter) -> str | None:
    """x cos + turn(x) sin per head -> rotary on [T, heads * head_dim]."""
    whole = _whole_heads(m)
    if isinstance(whole, str):
        return whole
    layout = "half" if "low" in m.attrs else "interleaved"
    wrong = _why_not_turned(m, layout)
    if wrong:
        return wrong
    tables = [_table(v, m.x.type.shape[-1]) for v in (m.cos, m.sin)]
    if any(isinstance(t, str) for t in tables):
        return next(t for t in tables if isinstance(t, str))
    by_token = whole.type.shape[0] == "T"
    with rw.change(m.root, [*m.ops, *_slices([m.x, m.values.get("rest")])]) as change:
        heads = whole if by_token else change.emit("transpose", [whole], {"perm": (1, 0, 2)})
        _, *num_heads, head_dim = (int(d) if isinstance(d, int) else 1 for d in heads.type.shape)
        flat = change.emit("reshape", [heads], {"shape": ("T", prod(num_heads) * head_dim)})
        cos, sin = (_flatten(change, t) for t in tables if isinstance(t, Value))
        turned = change.emit("rotary", [flat, cos, sin], {"head_dim": head_dim, "layout": layout}, name=f"{m.root.name}.rotary")
        result = change.emit("reshape", [turned], {"shape": heads.type.shape})
        change.take_over(result if by_token else change.emit("transpose", [result], {"perm": (1, 0, 2)}), m.root)
    return None


def _whole_heads(m: Match) -> Value | str:
    """The tensor [T, heads, head_dim] or [heads, T, head_dim] that is turned, with the columns that are kept; or why there is none."""
    x = m.x
    if "rest" in m.values:
        pieces = _slices([m.x, m.rest])
        if len(pieces) != 2 or pieces[0].inputs[0] is not pieces[1].inputs[0]:
            return "the parts that are turned and kept are not slices of one tensor"
        outer = m.ops[0]  # the concat of both
        if not _are_on_last_axis(outer, *pieces) or pieces[0].attrs["start"] != 0 or pieces[0].attrs["stop"] != pieces[1].attrs["start"]:
            return "the parts that are turned and kept are not its first and last columns"
        x = pieces[0].inputs[0]
    if x.type != m.root.type:
        return f"it turns {x.type} into {m.root.type}"
    is_heads = (x.type.shape[0] == "T" and x.type.rank in (2, 3)) or (x.type.rank == 3 and x.type.shape[1] == "T")
    return x if is_heads else f"x is {x.type}, not [T, heads, head_dim], [heads, T, head_dim] or, with one head, [T, head_dim]"


def _why_not_turned(m: Match, layout: str) -> str:
    """Why what is multiplied by sin is not the turn of all of x's columns in this layout; empty if it is."""
    slices = [op for op in m.ops if op.name == "slice"]
    joined = next(op for op in reversed(m.ops) if op.name == "concat")
    if not _are_on_last_axis(joined, *slices):
        return "it turns other axes than the columns of a head"
    width = int(m.x.type.shape[-1])
    expected = [range(width // 2, width), range(width // 2)] if layout == "half" else [range(1, width, 2), range(0, width, 2)]
    found = [range(*(op.attrs[word] for word in ("start", "stop", "step"))) for op in slices]  # type: ignore[arg-type]
    if found != expected:
        (negated, kept), (high, low) = (map(_print_range, columns) for columns in (found, expected))
        return f"columns {negated} of {m.x.display} are negated and {kept} kept; rotary negates {high} and keeps {low}"
    if layout == "interleaved" and joined.result.type.shape != (*slices[1].result.type.shape, 2):
        return f"the pairs are joined as {joined.result.type}"
    return ""


def _print_range(columns: range) -> str:
    return f"{columns.start}:{columns.stop}" + (f":{columns.step}" if columns.step > 1 else "")


def _are_on_last_axis(*ops: Op) -> bool:
    return all(int(op.attrs["axis"]) % op.result.type.rank == op.result.type.rank - 1 for op in ops)  # type: ignore[arg-type]


def _table(value: Value, width: object) -> Value | str:
    """cos or sin, if it has one row for each token: [T, R], with axes of one in between."""
    shape = [d for d in value.type.shape if d != 1]
    return value if shape == ["T", width] else f"{value!r} is no table [T, {width}]"


def _flatten(change: Change, table: Value) -> Value:
    shape = tuple(d for d in table.type.shape if d != 1)
    return table if table.type.shape == shape else change.emit("reshape", [table], {"shape": shape})


def _slices(values: Iterable[Value | None]) -> list[Op]:
    return [v.producer for v in values if v is not None and v.producer is not None and v.producer.name == "slice" and v.producer.attrs["step"] == 1]
