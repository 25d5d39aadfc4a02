"""Clean-up: ops that nothing uses, ops computed twice, ops that change nothing. Every rule keeps each remaining tensor as it was."""

from __future__ import annotations

from collections.abc import Callable

from tilewright.ir.graph import Graph, Op, Value
from tilewright.passes.registry import register_pass
from tilewright.passes.rewriter import Rewriter


@register_pass("drop-dead-ops")
def drop_dead_ops(graph: Graph, rw: Rewriter) -> None:
    """Erases ops whose results nothing reads, and parameters that are left without use."""
    for op in reversed(graph.ops):
        if rw.log.is_exhausted:
            return
        if not any(v.users or v in graph.outputs for v in op.results):
            rw.erase(op, rule="drop-dead-op")
    for name, value in list(graph.params.items()):
        if not value.users and value not in graph.outputs:
            graph.drop_param(name)


@register_pass("merge-equal-ops")
def merge_equal_ops(graph: Graph, rw: Rewriter) -> None:
    """Ops with equal operands and attributes become one (common subexpressions)."""
    seen: dict[object, Op] = {}
    for op in rw.each():
        key = (op.name, tuple(op.operands), tuple(op.attrs.items()))
        first = seen.setdefault(key, op)
        if first is not op and not op.definition.writes and len(op.results) == 1:
            rw.forward(op.result, first.result, rule="merge-equal-op", reason=f"same as {first.result.display}")


@register_pass("simplify")
def simplify(graph: Graph, rw: Rewriter) -> None:
    """Removes what changes nothing: layout ops that cancel, whole slices, casts to the same type, multiplication by one."""
    _until_quiet(graph, rw, (_forward_identity, _join_reshapes, _join_transposes))


@register_pass("cut-early")
def cut_early(graph: Graph, rw: Rewriter) -> None:
    """Moves slices up to what they cut: before transposes, and into one slice where two follow each other."""
    _until_quiet(graph, rw, (_join_slices, _slice_before_transpose))


def _until_quiet(graph: Graph, rw: Rewriter, rules: tuple[Callable[[Op, Rewriter], bool], ...]) -> None:
    while True:
        before = len(rw.log.events)
        for op in rw.each():
            any(rule(op, rw) for rule in rules)
        graph.sort()
        if len(rw.log.events) == before:
            return


def _forward_identity(op: Op, rw: Rewriter) -> bool:
    if not op.inputs:
        return False
    x = op.inputs[0]
    if op.name == "transpose":
        same = op.attrs["perm"] == tuple(range(x.type.rank)) or _moves_only_ones(op)
        if same and op.result.type != x.type:
            return _replace_by_reshape(op, x, rw)
    elif op.name in ("reshape", "expand", "cast", "slice"):
        same = op.result.type == x.type
    elif op.name in ("mul", "div"):
        same = op.attrs["scalar"] == 1 and not op.attrs.get("reverse", False)
    elif op.name == "concat":
        same = len(op.inputs) == 1
    else:
        same = False
    if same:
        rw.forward(op.result, x, rule=f"drop-identity-{op.name}")
    return same


def _moves_only_ones(op: Op) -> bool:
    """A transpose that keeps the order of all axes longer than one."""
    x = op.inputs[0]
    perm = op.attrs["perm"]
    assert isinstance(perm, tuple)
    kept = [a for a in perm if x.type.shape[int(a)] != 1]
    return kept == sorted(kept)


def _replace_by_reshape(op: Op, x: Value, rw: Rewriter) -> bool:
    rw.replace(op.result, "reshape", [x], {"shape": op.result.type.shape}, rule="transpose-of-ones")
    return True


def _join_reshapes(op: Op, rw: Rewriter) -> bool:
    inner = op.inputs[0].producer if op.name == "reshape" else None
    if inner is None or inner.name != "reshape":
        return False
    rw.replace(op.result, "reshape", [inner.inputs[0]], {"shape": op.attrs["shape"]}, removed=[inner], rule="join-reshapes")
    return True


def _join_transposes(op: Op, rw: Rewriter) -> bool:
    inner = op.inputs[0].producer if op.name == "transpose" else None
    if inner is None or inner.name != "transpose":
        return False
    outer_perm, inner_perm = op.attrs["perm"], inner.attrs["perm"]
    assert isinstance(outer_perm, tuple) and isinstance(inner_perm, tuple)
    perm = tuple(inner_perm[int(a)] for a in outer_perm)
    rw.replace(op.result, "transpose", [inner.inputs[0]], {"perm": perm}, removed=[inner], rule="join-transposes")
    return True


def _join_slices(op: Op, rw: Rewriter) -> bool:
    inner = op.inputs[0].producer if op.name == "slice" else None
    if inner is None or inner.name != "slice" or inner.attrs["step"] != 1:
        return False
    rank = op.result.type.rank
    if int(op.attrs["axis"]) % rank != int(inner.attrs["axis"]) % rank:  # type: ignore[arg-type]
        return False
    start = int(inner.attrs["start"])  # type: ignore[arg-type]
    attrs = {**op.attrs, "start": start + int(op.attrs["start"]), "stop": start + int(op.attrs["stop"])}  # type: ignore[arg-type]
    rw.replace(op.result, "slice", [inner.inputs[0]], attrs, removed=[inner], rule="join-slices")
    return True


def _slice_before_transpose(op: Op, rw: Rewriter) -> bool:
    """slice(transpose(x)) -> transpose(slice(x)): so that slices meet what they cut, and transposes meet each other."""
    inner = op.inputs[0].producer if op.name == "slice" else None
    if inner is None or inner.name != "transpose":
        return False
    perm = inner.attrs["perm"]
    assert isinstance(perm, tuple)
    axis = int(perm[int(op.attrs["axis"]) % len(perm)])  # type: ignore[arg-type]
    with rw.change(op.result, [op, inner], rule="slice-before-transpose") as change:
        cut = change.emit("slice", [inner.inputs[0]], {**op.attrs, "axis": axis})
        change.take_over(change.emit("transpose", [cut], {"perm": perm}), op.result)
    return True
