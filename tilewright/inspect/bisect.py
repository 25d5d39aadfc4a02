"""Which stage, pass, event and op break a gate. Passes need no search: the reference interpreter runs every snapshot; events do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from tilewright.inspect.check import Bench
from tilewright.inspect.finding import Finding
from tilewright.inspect.kernel_repro import write_kernel_repro
from tilewright.inspect.metrics import Gate, GateError
from tilewright.inspect.numerics import OpError, Study, changed_numbers, signature
from tilewright.inspect.repro import Attempt, write_repro
from tilewright.inspect.resume import find_first, run_again, step_of
from tilewright.inspect.run import PassRecord
from tilewright.inspect.slices import cut_out
from tilewright.ir.errors import TilewrightError
from tilewright.ir.events import Event
from tilewright.ir.graph import Graph, Value


@dataclass
class Bisection:
    """The ladder for one gate on one run. `out` is where repro.py goes; `model` is the checkpoint, for a repro that needs its weights."""

    bench: Bench
    gate: Gate
    out: Path
    model: str | None = None
    num_runs: int = field(default=0, init=False)

    def find(self) -> Finding | None:
        """None where the gate holds. Raises GateError for one that answers differently each time."""
        self._refuse_flaky()
        imported = self._failure(self.bench.run.graph(0))
        if imported:
            return Finding("import", imported, self.num_runs, note="the gate fails before any pass, in the dtypes of the trace alone")
        record = self._first_bad_pass()
        return self._search_events(record) if record is not None else self._search_kernels()

    # -- rungs 0 to 2 -------------------------------------------------------------------------------------------------------------
    def _refuse_flaky(self) -> None:
        """The first and the last graph and the kernels, twice each, must give the same answer."""
        run = self.bench.run
        for graph in (run.graph(0), run.final):
            answers = [self._failure(graph) for _ in range(2)]
            refuse_flaky(self.gate, answers)
        if self.bench.steps is not None:
            refuse_flaky(self.gate, [self._engine_failure() for _ in range(2)])

    def _failure(self, graph: Graph) -> str:
        self.num_runs += 1
        return self.gate.failure(self.bench.study.fork(graph).metrics(graph, values=self.gate.needs_values))

    def _engine_failure(self) -> str:
        self.num_runs += 1
        error = self.bench.engine_logits()
        known = [term for term in self.gate.terms if error is not None and term[0] in error.as_dict()]
        return Gate(tuple(known)).failure(error.as_dict()) if error is not None else ""

    def _first_bad_pass(self) -> PassRecord | None:
        run = self.bench.run
        bad = (number for number in changed_numbers(run)[1:] if self._failure(run.graph(number)))
        return next((run[number] for number in bad), None)

    # -- rungs 3 to 6: an event of a pass -----------------------------------------------------------------------------------------
    def _search_events(self, record: PassRecord) -> Finding:
        where, reason = f"pass {record.stem.replace('-', ' ', 1)}", self._failure(record.after)
        now, report = run_again(record)
        events = report.rows[0].events
        if not self._failure(now):
            return Finding(where, reason, self.num_runs, record.number, note="run again it holds: the pass or its ops are not what they were")
        if not events:
            return Finding(where, reason, self.num_runs, record.number, note="it changed the graph without recording an event")
        last = find_first(len(events), lambda index: bool(self._failure(run_again(record, index + 1)[0])))
        return describe_event(self, record, events, last, where, reason)

    # -- kernels ------------------------------------------------------------------------------------------------------------------
    def _search_kernels(self) -> Finding | None:
        reason = self._engine_failure()
        rows = self.bench.launches() if reason or self.gate.needs_values else ()
        red = [row for row in rows if row.severity > 1]
        if not reason and not red:
            return None
        if not red:
            return Finding("engine", reason, self.num_runs, note="each launch alone is clean: look at the arena, the cache and the order of launches")
        worst = max(red, key=lambda row: row.severity)
        program = [row for row in rows if (row.program, row.step) == (worst.program, worst.step)]
        found = Finding(
            f"kernel {' '.join(worst.kernels)}", reason, self.num_runs, None, program.index(worst) + 1, len(program), "launch",
            self.place(worst.region), worst.value, worst.isolated, worst.floor, sum(row.severity <= 1 for row in program),
        )  # fmt: skip
        return with_repro(found, write_kernel_repro(self.out / "repro.py", str(found), self.bench, worst, self.model))

    def place(self, name: str) -> str:
        """`L=20 post_attention_layernorm`"""
        found = self.bench.run.layers.split(name)
        return f"L={found[1]} {name.removeprefix(f'{found[0]}{found[1]}.')}" if found else name


def refuse_flaky(gate: Gate | str, answers: list[str]) -> None:
    if len({bool(answer) for answer in answers}) > 1:
        shown = " and then ".join(answer or "holds" for answer in answers)
        raise GateError("gate", f"{gate} is flaky: on the same input it {shown}", "loosen it, or take out what is random")


def describe_event(ladder: Bisection, record: PassRecord, events: tuple[Event, ...], last: int, where: str, reason: str) -> Finding:
    """The guilty event with its worst op, and a file that shows it alone."""
    before = run_again(record, last)[0] if last else record.before
    after, _ = run_again(record, last + 1)
    value, error = worst_change(ladder.bench.study, before, after, record)
    place = ladder.place(events[last].anchor)
    found = Finding(
        where, reason, ladder.num_runs, record.number, last + 1, len(events), "event", place, value.display, error.isolated, error.floor, last
    )
    observed = observable(record.before, after, value, events[last])
    file = ladder.out / "repro.py"
    if observed:
        attempts = plan_attempts(ladder, record, after, observed, last + 1)
        kept = write_repro(file, str(found), step_of(record), observed, 4 * error.floor, attempts)
        return with_repro(found, file if kept else None)
    return with_repro(found, None)


def with_repro(found: Finding, file: Path | None) -> Finding:
    return replace(found, repro=file, note="" if file else "no repro: alone it does not fail")


def plan_attempts(ladder: Bisection, record: PassRecord, after: Graph, observed: str, limit: int) -> Iterator[Attempt]:
    """The changed part alone, then the whole graph, then with the checkpoint's weights; the first that fails is kept."""
    with suppress(TilewrightError):  # a part that is no graph of its own: the whole graph is next
        yield Attempt(cut_out(record.before, after, observed), None, None)
    yield Attempt(record.before, limit, None)
    if ladder.model is not None:
        yield Attempt(record.before, limit, ladder.model)


def worst_change(study: Study, before: Graph, after: Graph, record: PassRecord) -> tuple[Value, OpError]:
    """The value with the largest isolated error over its floor among those that an event of the pass made anew."""
    study, known = study.fork(after), {signature(op) for op in before.ops}
    values = [value for op in after.ops if signature(op) not in known for value in op.results] or [after.outputs[0]]
    errors = {value: (study.error_against_import if record.name in study.budgets else study.error_of)(value) for value in values}
    return max(errors.items(), key=lambda found: found[1].ratio)


def observable(before: Graph, after: Graph, value: Value, event: Event) -> str:
    """A tensor that both graphs have and the event moves: the value, what the event keeps, or what the graph returns."""
    names = [value.name, *event.keeps, event.anchor, before.outputs[0].name]
    return next((name for name in names if before.has_name(name) and after.has_name(name) and name not in after.retired), "")
