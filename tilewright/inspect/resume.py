"""A recorded pass run again: from the graph before it, with as many of its rewrites as are wanted, and on to an engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from tilewright.inspect.run import PassRecord, Run
from tilewright.ir.errors import EngineError
from tilewright.ir.graph import Graph
from tilewright.ir.weights import Weights
from tilewright.passes.manager import PassManager, Report
from tilewright.passes.registry import Step, parse_pipeline

NEEDED = "split-attention"  # without it there are no regions


def step_of(record: PassRecord) -> Step:
    """The pass with its options. Raises PassError where no such pass is installed any more."""
    (step,) = parse_pipeline(record.entry.name if record.entry else record.name)
    return step


def steps_after(run: Run, number: int) -> tuple[Step, ...]:
    return tuple(step_of(record) for record in run.passes if record.number > number)


def run_again(record: PassRecord, limit: int | None = None) -> tuple[Graph, Report]:
    """What the pass makes of the graph before it, stopped after `limit` of its own rewrites."""
    graph = record.before.copy()
    report = PassManager([step_of(record)], limit=limit).run(graph)
    return graph, report


def build_engine(
    run: Run, graph: Graph, weights: Weights, out: Path, *, report: Report | None = None, dump: Path | None = None, again: str = ""
) -> Path:
    """An engine of a graph at any stage, for the run's target and limits; what no engine can be without is added. Raises TilewrightError.

    report, dump and again: of the passes that made the graph, for its inspect folder.
    """
    from tilewright.compiler import Optimized, build
    from tilewright.frontend.checkpoint import TOKENIZER_FILES

    if run.engine is None:
        raise EngineError(f"run {run.path}", "is a folder of dumps, which says neither target nor limits", "pass an engine directory")
    manifest, graph = run.engine.manifest, graph.copy()
    needed = PassManager(parse_pipeline(NEEDED) if graph.find("attention") else ()).run(graph)
    files = tuple(file for name in TOKENIZER_FILES if (file := run.engine.path / name).is_file())
    limits = manifest.limits
    build(
        Optimized(graph, report or needed, weights, manifest.model, files), out, target=manifest.target, max_batch_size=limits.max_batch_size,
        max_input_len=limits.max_input_len, max_output_len=limits.max_output_len, max_tokens=limits.max_tokens, page_size=limits.page_size,
        dump=dump, again=again,
    )  # fmt: skip
    return out


def find_first(count: int, is_bad: Callable[[int], bool]) -> int:
    """The first bad one of 0 .. count - 1, of which the last is known to be bad and none is good behind a bad one: ceil(log2 count) questions."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        if is_bad(middle):
            high = middle
        else:
            low = middle + 1
    return low


def num_questions(count: int) -> int:
    """What `find_first` asks at most."""
    return math.ceil(math.log2(count)) if count > 1 else 0
