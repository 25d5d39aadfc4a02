"""What a pass promises, tried: its cases, whether a second run finds nothing left, and where in the pipeline it fires on a real model."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilewright.ir.errors import PassError, TilewrightError
from tilewright.ir.events import EventLog
from tilewright.ir.graph import Graph
from tilewright.ir.opdef import suggest
from tilewright.ir.parser import parse_graph
from tilewright.pass_cases import Case, read_cases, run_case, write_outcomes
from tilewright.passes.manager import PassManager
from tilewright.passes.registry import PassInfo, load_passes


@dataclass(frozen=True, slots=True)
class Finding:
    passed: bool
    text: str

    def __str__(self) -> str:
        return f"{'ok    ' if self.passed else 'FAILED'}  {self.text}"


def try_pass(name: str, *, cases: Path | None = None, model: Any = None, bless: bool = False) -> Iterator[Finding]:
    """Findings as they are made. cases: by default `<name>.ir` beside the file of the pass. Raises PassError."""
    known = load_passes()
    if name not in known:
        raise PassError("test-pass", f"no pass named {name!r}", suggest(name, known))
    file = cases or file_of(known[name]).with_name(f"{name}.ir")
    if not file.is_file():
        raise PassError(f"test-pass {name}", f"there is no {file}", "write cases there, or pass --cases FILE.ir; tests/passes shows how they look")
    if bless:
        write_outcomes(file, name)
        yield Finding(True, f"{file} holds what comes out now: read it before you accept it")
    found = read_cases(file, name)
    for case in found:
        yield _try_case(case)
        yield from _try_again(case)
    if all(case.expected == "unchanged" for case in found):
        yield Finding(False, f"it neither changes nor remarks anything in {file}")
    if model is not None:
        yield _try_model(found[0].pipeline if found else name, model)


def file_of(info: PassInfo) -> Path:
    """Where the pass is defined."""
    words = info.module.split(".")
    modules = (sys.modules.get(".".join(words[:n])) for n in range(len(words), 0, -1))
    return Path(next(str(module.__file__) for module in modules if module is not None and module.__file__))


def _try_case(case: Case) -> Finding:
    """Numbers, text round trip, events and outcome, on two steps of fresh data."""
    try:
        outcome = run_case(case)
    except AssertionError as error:
        return Finding(False, f"{case.title}: {error}")
    if outcome == case.expected:
        return Finding(True, case.title)
    changes = difflib.unified_diff(case.expected.splitlines(), outcome.splitlines(), "expected", "found", lineterm="")
    return Finding(False, "\n".join([case.title, *(f"          {line}" for line in changes)]))


def _try_again(case: Case) -> Iterator[Finding]:
    if not case.expected.startswith("changed"):
        return
    graph, log = parse_graph(case.graph, file=case.file.name), EventLog()
    try:
        PassManager.of(case.pipeline).run(graph)
        PassManager.of(case.pipeline, log=log).run(graph)
    except TilewrightError as error:
        yield Finding(False, f"{case.title}: a second run fails: {error}")
        return
    if log.events:
        yield Finding(False, f"{case.title}: a second run changes {log.events[0].anchor} again")


def _try_model(pipeline: str, model: Any) -> Finding:
    """Runs the pass, as in its first case, after every stage of the default pipeline; where it fires most is where it belongs."""
    from tilewright.compiler import optimize, trace

    traced = trace(model)
    stages: list[tuple[str, Graph]] = [("import", traced.graph.copy())]
    optimize(traced, after_each=lambda stage, graph: stages.append((stage, graph.copy())))
    counts = [(stage, *_count_records(pipeline, graph)) for stage, graph in stages]
    stage, num_events, num_misses = max(counts, key=lambda row: row[1:])  # of equal counts, the earliest
    if not num_events and not num_misses:
        return Finding(False, f"{pipeline} finds nothing in {model}, after no stage of the default pipeline")
    return Finding(True, f"in {model}, after {stage}, {pipeline} fires {num_events} times and remarks {num_misses}")


def _count_records(pipeline: str, graph: Graph) -> tuple[int, int]:
    log = EventLog()
    try:
        PassManager.of(pipeline, log=log).run(graph)
    except TilewrightError:
        return 0, 0
    return len(log.events), len(log.misses)
