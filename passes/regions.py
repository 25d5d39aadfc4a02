"""The cut of an optimized graph into kernels, once for each regime of T. Grouping decides what belongs together; this makes it regions in order."""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.ir.errors import PassError
from tilewright.ir.graph import Graph, Op
from tilewright.ir.regions import Regime, Region, Schedule
from tilewright.passes.grouping import NORMS, Group, Grouping, base_of, is_view
from tilewright.passes.memory_plan import plan_memory


def default_regimes(target: str, *, max_tokens: int, max_batch_size: int, deterministic: bool = False) -> tuple[Regime, ...]:
    """Sizes of steps that get kernels of their own. The CPU's code does not depend on the size.

    deterministic: decodes run in the same programs as prompts, since kernels of their own would add up in another order.
    """
    if target == "cpu":
        return Regime("decode", "decode", max_batch_size), Regime("ragged", "ragged", max_tokens)
    decodes = [] if deterministic else sorted({min(size, max_batch_size) for size in (1, 16, 32, 64, 128, max_batch_size)})
    mixtures = sorted({min(size, max_tokens) for size in (64, 512, max_tokens)})
    return (
        *(Regime(f"decode_{size}", "decode", size) for size in decodes),
        *(Regime(f"ragged_{size}", "ragged", size) for size in mixtures),
    )


def build_schedules(graph: Graph, regimes: Sequence[Regime]) -> list[Schedule]:
    """One schedule for each regime. The graph must be at the paged level. Raises PassError for ops that no kernel can hold."""
    unsplit = graph.find("attention")
    if unsplit:
        raise PassError("regions", f"{unsplit[0].result.display} is still `attention`", "run the pass split-attention before")
    return [build_schedule(graph, regime) for regime in regimes]


def build_schedule(graph: Graph, regime: Regime) -> Schedule:
    groups = _in_order(Grouping(graph, regime))
    regions = tuple(_region(graph, group, groups) for group in groups)
    dims = {name: min(bounds.high, regime.max_tokens) for name, bounds in graph.dims.items()}
    placements, arena_bytes = plan_memory(graph, regions, dims)
    return Schedule(regime, regions, placements, arena_bytes)


def print_schedule(schedule: Schedule) -> str:
    """One line a region: name, what it computes, why it was cut there."""
    rows = [
        (r.name, f"{r.template}: {' → '.join(op.name for op in r.ops if op.name not in ('reshape', 'slice'))}", r.reason) for r in schedule.regions
    ]
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    regime = schedule.regime
    head = f"{regime.name}: steps of 1..{regime.max_tokens} tokens, {len(rows)} kernels, {schedule.arena_bytes:,} bytes of activations"
    return "\n".join([head, *(f"  {name:{widths[0]}}  {what:{widths[1]}}  {why}" for name, what, why in rows)])


def _in_order(grouping: Grouping) -> list[Group]:
    """Groups so that each comes after those whose results it reads; ties by canonical order. Rows groups that wait for one another are cut."""
    waiting = list(grouping.groups)
    ordered: list[Group] = []
    done: set[Op] = set()
    while waiting:
        group = next((g for g in waiting if _ready_ops(grouping, g, done) == g.ops), None)
        if group is None:
            group = _cut(grouping, waiting, done)
        waiting.remove(group)
        ordered.append(group)
        done.update(group.ops)
    return ordered


def _ready_ops(grouping: Grouping, group: Group, done: set[Op]) -> list[Op]:
    """Those of a group's ops that can run after `done`: all of them, unless it waits for another group."""
    able: set[Op] = set()
    for op in group.every:
        if all(source in done or source in able for source in grouping.sources(op)):
            able.add(op)
    return [op for op in group.ops if op in able]


def _cut(grouping: Grouping, waiting: list[Group], done: set[Op]) -> Group:
    """Parts the first rows group of which something is ready from what waits for others, which stays behind it in `waiting`."""
    group = next((g for g in waiting if g.template == "rows" and _ready_ops(grouping, g, done)), None)
    assert group is not None, "products leave by their last op alone, so a circle of kernels goes through one of rows"
    ready = _ready_ops(grouping, group, done)
    rest = [op for op in group.ops if op not in ready]
    late = next(source for source in grouping.sources(rest[0]) if source not in done and source not in ready)
    reason = f"reads {late.results[0].display}, which is made after {ready[-1].results[0].display}"
    waiting.insert(waiting.index(group) + 1, Group("rows", rest[0], rest, reason=reason))
    group.ops = ready
    return group


def _region(graph: Graph, group: Group, groups: Sequence[Group]) -> Region:
    members = group.every
    ops = _with_views(graph, members)
    made = {value for op in ops for value in op.results}
    inputs = dict.fromkeys(v for op in ops for v in op.inputs if v not in made)
    needed = {base_of(graph, v) for other in groups if other is not group for op in other.every for v in op.inputs if not v.is_const}
    outputs = [v for op in group.ops for v in op.results if v in needed or v in graph.outputs or v.type.dtype == "kv"]
    anchor = group.anchor if group.template != "rows" else _main_op(group.ops)
    return Region(anchor.results[0].name, group.template, tuple(ops), anchor, tuple(inputs), tuple(outputs), group.reason)


def _with_views(graph: Graph, members: list[Op]) -> list[Op]:
    """The members and the views through which they read, in canonical order."""
    wanted = set(members)
    waiting = list(members)
    while waiting:
        for value in waiting.pop().inputs:
            if value.producer is not None and not value.is_const and is_view(graph, value.producer) and value.producer not in wanted:
                wanted.add(value.producer)
                waiting.append(value.producer)
    return [op for op in graph.ops if op in wanted]


def _main_op(ops: list[Op]) -> Op:
    """What names a rows kernel: the write to the cache, else the last norm, else the last op."""
    for names in (("write_kv",), NORMS):
        found = [op for op in ops if op.name in names]
        if found:
            return found[-1]
    return ops[-1]
