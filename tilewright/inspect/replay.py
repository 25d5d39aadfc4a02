"""A pipeline resumed from any of its snapshots, as it was or edited."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from tilewright.codegen.pack import check_destination
from tilewright.inspect.check import load_weights
from tilewright.inspect.resume import build_engine, steps_after
from tilewright.inspect.run import IMPORT, Run, load
from tilewright.inspection import quote_path
from tilewright.ir.errors import PassError, TilewrightError
from tilewright.ir.fold import fold_text
from tilewright.ir.graph import Graph
from tilewright.ir.opdef import suggest
from tilewright.ir.parser import parse_graph
from tilewright.ir.places import put_places
from tilewright.ir.weights import Weights
from tilewright.passes.manager import PassManager
from tilewright.passes.registry import Step


def replay(
    run: Run, start: int, out: Path, *, graph: Graph | None = None, only: str = "", model: str | None = None, weights: Weights | None = None
) -> Run:
    """Runs the passes after `start` (0: the import) and returns what they made: an engine, where the run has one and no pass is left out.

    graph: in place of the snapshot. only: one of the passes after it, alone; no engine then. Raises TilewrightError.
    """
    graph = (run.graph(start) if graph is None else graph).copy()
    put_places(graph, run.places(start))
    steps = choose_steps(run, start, only)
    check_destination(out)
    with tempfile.TemporaryDirectory(prefix="tilewright-replay-") as folder:
        dump = Path(folder)
        report = PassManager(steps, dump=dump).run(graph)
        if run.engine is None or only:
            keep_dumps(dump, out)
        else:
            loaded = weights or load_weights(run, model)
            build_engine(run, graph, loaded, out, report=report, dump=dump, again=again(run, start))
    return load(out)


def choose_steps(run: Run, start: int, only: str) -> tuple[Step, ...]:
    """Raises PassError where `only` names no pass behind `start`, EngineError where there is no such snapshot."""
    run.graph(start)
    steps = steps_after(run, start)
    if not only:
        return steps
    chosen = next((step for step in steps if only in (step.info.name, str(step))), None)
    if chosen is None:
        raise PassError("replay", f"--only {only!r} is no pass after {start}", suggest(only, [step.info.name for step in steps]))
    return (chosen,)


def keep_dumps(dump: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(dump.iterdir()):
        shutil.copy(file, out / file.name)


def again(run: Run, start: int) -> str:
    """A script for ENGINE/inspect. The snapshot that was resumed, edited or not, lies beside it."""
    snapshot = f'"$(dirname "$0")/passes/{IMPORT}.ir"'
    command = f'tilewright replay {quote_path(str(run.path))} --from {start} --graph {snapshot} -o "$1"'
    return f"#!/bin/sh\n# Builds this engine again: sh REPRO.sh OUT\nexec {command}\n"


def edit(graph: Graph, file: Path) -> Graph:
    """Opens the graph's text in $EDITOR; the text stays in `file`. Raises TilewrightError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(fold_text(graph), encoding="utf-8")
    editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    try:
        code = subprocess.run([*editor, str(file)]).returncode
    except OSError as error:
        raise TilewrightError(f"editor {editor[0]!r}", f"cannot be run ({error.strerror})", "set EDITOR") from error
    if code:
        raise TilewrightError(f"editor {editor[0]!r}", f"ended with {code}", f"the text is in {file}; go on with --graph {file}")
    return read_graph(file)


def read_graph(file: Path) -> Graph:
    """Raises ParseError, and TilewrightError for a file that cannot be read."""
    try:
        return parse_graph(file.read_text(encoding="utf-8"), file=str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise TilewrightError(str(file), f"cannot be read ({error})", "pass a file that holds a graph") from error
