"""Why something fired, nearly fired, or was cut: remarks of a run by a glob of rules, passes, tensors or modules, grouped over layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tilewright.inspect.event_view import EventView, view_events
from tilewright.inspect.layers import Group, Layers, few, group
from tilewright.inspect.manifest import RegionRecord
from tilewright.inspect.run import PassRecord, Run
from tilewright.inspect.text import Readable, align, nearest
from tilewright.ir.errors import EngineError
from tilewright.ir.events import Event, Miss
from tilewright.passes.registry import load_passes


@dataclass(frozen=True)
class Reasons(Readable):
    """`cuts` are grouped by (program, region up to the layer, what it computes, reason)."""

    passes: tuple[tuple[PassRecord, EventView], ...]
    cuts: tuple[Group[RegionRecord], ...]
    layers: Layers

    def __str__(self) -> str:
        lines = [text for record, view in self.passes for text in (f"pass {record.title}", str(view))]
        cuts = ["regions", *align([_print_cut(g) for g in self.cuts])] if self.cuts else []
        return "\n".join(lines + cuts) or "no rule fired there, or nearly did"


def explain(run: Run, pattern: str) -> Reasons:
    """Raises EngineError where the pattern matches no rule, pass, tensor or module of the run."""
    wanted = pattern.lstrip("%@")
    views: list[tuple[PassRecord, EventView]] = []
    for record in run.passes:
        is_named = _fits(wanted, (record.name, record.stem, str(record.number)))
        events = [e for e in record.events if is_named or _fits(wanted, _names(e))]
        misses = [m for m in record.misses if is_named or _fits(wanted, _names(m))]
        if is_named or events or misses:
            views.append((record, view_events(events, misses, run.layers)))
    cuts = [r for r in run.regions if _fits(wanted, (r.name, r.template, *r.values, *r.modules))]
    if not views and not cuts and not _is_known(run, wanted):
        raise _unknown(run, pattern)
    return Reasons(tuple(views), tuple(_group_cuts(cuts, run.layers)), run.layers)


def _names(record: Event | Miss) -> Iterable[str]:
    yield from (record.rule, record.anchor, *record.modules)
    if isinstance(record, Event):
        yield from (*record.keeps, *record.makes, *record.erases, record.into)


def _fits(pattern: str, names: Iterable[str]) -> bool:
    """As a glob of the whole name, or of whole words of it: `mlp` fits model.layers.3.mlp.up_proj."""
    return any(fnmatchcase(name, pattern) or fnmatchcase(f".{name}.", f"*.{pattern}.*") for name in names if name)


def _group_cuts(cuts: list[RegionRecord], layers: Layers) -> list[Group[RegionRecord]]:
    def key(r: RegionRecord) -> tuple[str, ...]:
        ops = " ".join(op for op in r.ops if op not in ("reshape", "slice"))
        return (r.program, layers.shorten(r.name, r.name), f"{r.template}: {ops}", r.reason)

    return group(cuts, key, lambda r: layers.layer(r.name))


def _print_cut(found: Group[RegionRecord]) -> tuple[str, ...]:
    assert isinstance(found.key, tuple)
    program, name, what, reason = found.key
    return (f"cut {found.tag}", f"{program}: {name}", what, f'"{reason}"' if reason else "")


def _is_known(run: Run, pattern: str) -> bool:
    """A tensor or module that no rewrite touched."""
    graph = run.final
    return _fits(pattern, (v.name for v in graph.values())) or _fits(pattern, (m for op in graph.ops for m in op.loc.modules))


def _unknown(run: Run, pattern: str) -> EngineError:
    known = load_passes()
    if pattern in known:
        ran = few([p.name for p in run.passes])
        return EngineError(f"run {run.path}", f"pass {pattern!r} is not in its pipeline ({ran})", f"build with TILEWRIGHT_PASSES=+{pattern}")
    rules = {p.name for p in run.passes} | {e.rule for p in run.passes for e in p.events}
    names = {v.name for v in run.final.values()} | {m for op in run.final.ops for m in op.loc.modules}
    listed = f"it has the passes and rules {', '.join(sorted(rules))}"
    return EngineError(f"run {run.path}", f"nothing fits {pattern!r}", nearest(pattern, sorted(rules) + sorted(names), listed))
