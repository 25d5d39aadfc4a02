"""Runs a pipeline: verifies after each pass, times, counts, validates numerically, dumps snapshots, and leaves a crash file that runs again."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tilewright.ir.errors import PassError, TilewrightError
from tilewright.ir.events import Event, EventLog, Miss
from tilewright.ir.fold import fold_flat
from tilewright.ir.graph import Graph
from tilewright.ir.places import PLACES_FILE, Places, places_of, print_places
from tilewright.ir.printer import print_graph
from tilewright.ir.records import print_records
from tilewright.ir.verifier import verify
from tilewright.passes.instrument import Instrument
from tilewright.passes.registry import Step, parse_pipeline, print_pipeline
from tilewright.passes.rewriter import Rewriter
from tilewright.passes.validation import Validator


@dataclass(frozen=True, slots=True)
class PassRow:
    """What one pass did."""

    number: int
    name: str  # with its options
    ops_before: int
    ops_after: int
    events: tuple[Event, ...]
    misses: tuple[Miss, ...]
    seconds: float
    error: float | None = None  # relative error of the outputs that it added; None where validation is off
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        error = f"   error {self.error:.1e}" if self.error is not None else ""
        line = f"{self.number:2d} {self.name:36s} ops {self.ops_before:5d} -> {self.ops_after:5d}   events {len(self.events):4d}{error}"
        return "\n".join([line, *(f"   warning: {w}" for w in self.warnings)])


@dataclass(frozen=True, slots=True)
class Report:
    """Rows of a whole pipeline, in order."""

    pipeline: str
    rows: tuple[PassRow, ...]
    left: str = ""  # text of the passes that `stop_after` left out

    def __str__(self) -> str:
        return "\n".join(map(str, self.rows))


@dataclass
class PassManager:
    """Runs passes in order. The graph is changed in place and verifies after each of them, or the run raises."""

    steps: Sequence[Step]
    dump: Path | None = None  # folder for NN-name.ir, NN-name.events.jsonl; made where it is missing
    validator: Validator | None = None  # runs the graph before and after each pass
    limit: int | None = None  # rewrites allowed over all passes
    stop_after: str = ""  # name of the last pass to run
    on_pass: Callable[[PassRow], None] = lambda row: None
    instrument: Instrument | None = None
    log: EventLog = field(default_factory=EventLog)
    _places: Places = field(default_factory=dict)  # as dumped last
    _places_text: str = ""

    @staticmethod
    def of(pipeline: str, **options: object) -> PassManager:
        """From pipeline text; options are the fields."""
        return PassManager(parse_pipeline(pipeline), **options)  # type: ignore[arg-type]

    def run(self, graph: Graph) -> Report:
        """Raises PassError for a pass that fails, GraphError for one that leaves a graph that does not verify."""
        if self.stop_after and self.stop_after not in [s.info.name for s in self.steps]:
            raise PassError("pipeline", f"stop_after={self.stop_after!r} names none of its passes", print_pipeline(self.steps))
        self.log.limit = self.limit
        graph.sort()
        verify(graph)
        text = self._dump_import(graph)
        if self.validator is not None:
            self.validator.start(graph)
        rows: list[PassRow] = []
        for number, step in enumerate(self.steps, 1):
            row, text = self._run_one(graph, number, step, text)
            rows.append(row)
            self.on_pass(row)
            if step.info.name == self.stop_after:
                break
        return Report(print_pipeline(self.steps), tuple(rows), print_pipeline(self.steps[len(rows) :]))

    def _run_one(self, graph: Graph, number: int, step: Step, before: str) -> tuple[PassRow, str]:
        """The row, and the flat text of the graph after the pass (empty without `dump`, as `before` is)."""
        name = f"{number:02d}-{step.info.name}"
        num_events, num_misses = len(self.log.events), len(self.log.misses)
        num_ops, num_anchors = len(graph), len(graph.find(step.info.per_layer)) if step.info.per_layer else 0
        started = time.perf_counter()
        try:
            self._apply(graph, step)
            graph.sort()
            verify(graph, **({"levels": step.info.levels} if step.info.levels else {}))
            added = self.validator.check(graph, step.info.name, step.info.tolerance) if self.validator is not None else None
        except Exception as failure:
            self._dump_crash(name, before, step, failure)
            if self.instrument is not None:
                self.instrument.on_error(step.info.name, failure)
            error = failure if isinstance(failure, TilewrightError) else _describe_failure(step, failure)
            error.add_note(f"in pass {number}, {step}")
            raise error from (failure.__cause__ if error is failure else failure)
        events, misses = tuple(self.log.events[num_events:]), tuple(self.log.misses[num_misses:])
        warnings = _count_warnings(step, num_anchors, events, misses)
        row = PassRow(number, str(step), num_ops, len(graph), events, misses, time.perf_counter() - started, added, warnings)
        return row, self._dump_row(name, before, graph, row)

    def _apply(self, graph: Graph, step: Step) -> None:
        hooks, name = self.instrument, step.info.name
        if hooks is None:
            step.make().run(graph, Rewriter(graph, self.log, name))
        elif hooks.should_run(name):
            hooks.before_pass(name, graph)
            self._apply_with(hooks, graph, step)
            hooks.after_pass(name, graph)

    def _apply_with(self, hooks: Instrument, graph: Graph, step: Step) -> None:
        """Again from the start, without the places of rewrites that were refused, until none is."""
        num_events, num_misses = len(self.log.events), len(self.log.misses)
        held_back: dict[str, None] = {}
        while True:
            before = graph.copy()
            step.make().run(graph, Rewriter(graph, self.log, step.info.name, held_back))
            refused = [event for event in self.log.events[num_events:] if hooks.on_rewrite(event) is False]
            if not refused:
                return
            stubborn = next((event for event in refused if event.anchor in held_back), None)
            if stubborn is not None:
                raise PassError(f"{step.info.name} at %{stubborn.anchor}", "the pass rewrites there though on_rewrite said no", "leave the pass out")
            held_back |= dict.fromkeys(event.anchor for event in refused)
            del self.log.events[num_events:], self.log.misses[num_misses:]
            graph.become(before)

    # -- dumps ------------------------------------------------------------------------------------------------------------------
    def _dump_import(self, graph: Graph) -> str:
        if self.dump is None:
            return ""
        flat = print_graph(graph)
        self.dump.mkdir(parents=True, exist_ok=True)
        self._places_text = ""
        self._dump_places(0, {}, graph)
        _write(self.dump / "00-import.ir", fold_flat(flat))
        return flat

    def _dump_row(self, name: str, before: str, graph: Graph, row: PassRow) -> str:
        if self.dump is None:
            return ""
        after = print_graph(graph)
        if row.events or row.misses:
            _write(self.dump / f"{name}.events.jsonl", print_records(row.events, row.misses))
        if after == before:
            _write(self.dump / f"{name}.same", "")
        else:
            self._dump_places(row.number, self._places, graph)
            _write(self.dump / f"{name}.ir", fold_flat(after))
        return after

    def _dump_places(self, number: int, before: Places, graph: Graph) -> None:
        assert self.dump is not None
        self._places = places_of(graph)
        new = print_places(number, before, self._places)
        if new:
            self._places_text += new
            _write(self.dump / PLACES_FILE, self._places_text)

    def _dump_crash(self, name: str, before: str, step: Step, failure: Exception) -> None:
        if self.dump is None:
            return
        _write(self.dump / f"{name}.FAILED.ir", f"// run again: tilewright opt {name}.FAILED.ir -p '{step}'\n{fold_flat(before)}")
        _write(self.dump / f"{name}.traceback.txt", "".join(traceback.format_exception(failure)))


def _describe_failure(step: Step, failure: Exception) -> PassError:
    place = traceback.extract_tb(failure.__traceback__)[-1]
    return PassError(f"pass {step}", f"failed: {failure!r}", f"raised in {place.filename}:{place.lineno}")


def _count_warnings(step: Step, num_anchors: int, events: Sequence[Event], misses: Sequence[Miss]) -> tuple[str, ...]:
    """A pass that fires once per layer and fired less says where and why; one that fires nowhere is left in peace."""
    if not step.info.per_layer or not events or len(events) >= num_anchors:
        return ()
    reasons = "; ".join(f"{m.anchor}: {m.reason}" for m in misses[:3]) or "no place looked like its pattern"
    return (f"{step.info.name} fired {len(events)} times for {num_anchors} layers ({reasons})",)


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)
