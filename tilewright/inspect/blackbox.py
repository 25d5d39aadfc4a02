"""Bisection with a command (or a function) for a judge: engines are built from the graphs between passes, and between rewrites."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from tilewright.inspect.bisect import Bisection, describe_event, refuse_flaky
from tilewright.inspect.check import Bench, load_weights
from tilewright.inspect.finding import Finding
from tilewright.inspect.metrics import Gate, GateError
from tilewright.inspect.numerics import changed_numbers
from tilewright.inspect.resume import NEEDED, build_engine, find_first, num_questions, run_again
from tilewright.inspect.run import PassRecord, Run
from tilewright.ir.errors import EngineError, TilewrightError
from tilewright.ir.graph import Graph
from tilewright.ir.weights import Weights

Judge = Callable[[Path], str]  # why an engine is bad; empty where it is good
SKIP = 125  # exit code of a command that cannot tell, as git bisect has it


@dataclass
class BlackBox:
    """`ladder` has the run, and says what is wrong once the event is known. Answers are kept in OUT/verdicts.json, so that a search resumes."""

    ladder: Bisection
    judge: Judge
    num_runs: int = field(default=0, init=False)

    @property
    def run(self) -> Run:
        return self.ladder.bench.run

    @property
    def most_runs(self) -> int:
        """Two of the engine itself, then one for each halving of the passes and of the events of the guilty one."""
        numbers = changed_numbers(self.run)
        events = max((len(self.run[number].events) for number in numbers[1:]), default=1)
        return 2 + num_questions(len(numbers)) + num_questions(events)

    def find(self) -> Finding | None:
        """None where the engine is good. Raises GateError for a judge that answers differently each time."""
        if self.run.engine is None:
            raise EngineError(f"run {self.run.path}", "is a folder of dumps, a command judges engines", "pass an engine directory, or --gate")
        answers = [self._ask(self.run.engine.path) for _ in range(2)]
        refuse_flaky("the command", answers)
        if not answers[0]:
            return None
        numbers = changed_numbers(self.run)
        first = find_first(len(numbers), lambda index: bool(self._ask_graph(f"{numbers[index]}", self.run.graph(numbers[index]))))
        if first == 0:
            return Finding("import", answers[0], self.num_runs, note="it is bad before any pass: the trace, the kernels or the runtime is at fault")
        return self._search_events(self.run[numbers[first]], answers[0])

    def _search_events(self, record: PassRecord, reason: str) -> Finding:
        where = f"pass {record.stem.replace('-', ' ', 1)}"
        if record.name == NEEDED:
            return Finding(where, reason, self.num_runs, record.number, note="no engine can be without it: its events cannot be told apart")
        events = run_again(record)[1].rows[0].events
        if not events:
            return Finding(where, reason, self.num_runs, record.number, note="it changed the graph without recording an event")
        last = find_first(len(events), lambda index: bool(self._ask_graph(f"{record.number}:{index + 1}", run_again(record, index + 1)[0])))
        self.ladder.num_runs = self.num_runs
        return describe_event(self.ladder, record, events, last, where, reason)

    # -- asking -------------------------------------------------------------------------------------------------------------------
    def _ask(self, engine: Path) -> str:
        self.num_runs += 1
        return self.judge(engine)

    def _ask_graph(self, key: str, graph: Graph) -> str:
        """Raises TilewrightError where no engine can be made of the graph."""
        file = self.ladder.out / "verdicts.json"
        known: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if key not in known:
            with TemporaryDirectory(prefix="tilewright-bisect-") as folder:
                known[key] = self._ask(self._build(key, graph, Path(folder) / "engine"))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(known, indent=1), encoding="utf-8")
        return known[key]

    def _build(self, key: str, graph: Graph, out: Path) -> Path:
        try:
            return build_engine(self.run, graph, self.ladder.bench.study.references.weights, out)
        except TilewrightError as error:
            error.add_note(f"no engine can be built after pass {key}, so it cannot be asked; bisect with --gate, which needs none")
            raise


def bisect(run: Run, judge: str | Callable[[Path], bool], *, out: Path, model: str | None = None, weights: Weights | None = None) -> Finding | None:
    """judge: a gate, or a function of an engine that is True for a good one. Raises TilewrightError."""
    bench = Bench.of(run, weights or load_weights(run, model))
    if isinstance(judge, str):
        return Bisection(bench, Gate.parse(judge), out, model).find()
    return BlackBox(Bisection(bench, Gate(()), out, model), lambda engine: "" if judge(engine) else "the function says False").find()


def judge_by(command: Sequence[str]) -> Judge:
    """Runs a command with the engine in place of `{engine}` and in the variable ENGINE: exit code 0 is good, 125 refuses to tell."""

    def judge(engine: Path) -> str:
        words = [word.replace("{engine}", str(engine)) for word in command]
        try:
            code = subprocess.run(words, env={**os.environ, "ENGINE": str(engine)}).returncode
        except OSError as error:
            raise GateError(words[0], f"cannot be run ({error.strerror})", "write a command after --") from error
        if code == SKIP:
            raise GateError(" ".join(command), f"ended with {SKIP} for {engine}: it cannot tell", "make it decide")
        return f"{words[0]} ends with {code}" if code else ""

    return judge
