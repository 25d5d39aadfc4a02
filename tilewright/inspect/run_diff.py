"""What differs between two builds: their graphs, tensor by tensor, and the kernels that only one of them has."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tilewright.inspect.diff import GraphDiff, diff
from tilewright.inspect.run import Run
from tilewright.inspect.text import Readable

_COMMENT = re.compile(r"[ \t]*#.*")


@dataclass(frozen=True)
class RunDiff(Readable):
    """`kernels` are those that only the first (-) or only the second (+) has, or that differ (~), with how often each program launches them."""

    title: str
    graphs: GraphDiff
    kernels: tuple[tuple[str, str, str], ...] = ()  # sign, name, launches

    def __bool__(self) -> bool:
        return bool(self.graphs) or bool(self.kernels)

    @property
    def stat(self) -> str:
        marks = ", ".join(f"{sign} {count}" for sign in "+-~" if (count := sum(k[0] == sign for k in self.kernels)))
        return f"{self.title}   {self.graphs.stat}" + (f"   kernels {marks}" if marks else "")

    def __str__(self) -> str:
        rows = str(self.graphs).partition("\n")[2]
        width = max((len(name) for _, name, _ in self.kernels), default=0)
        kernels = [f"  {sign} kernel {name:{width}}  {launches}".rstrip() for sign, name, launches in self.kernels]
        return "\n".join([self.stat, *([rows] if rows else []), *kernels])


def diff_runs(a: Run, b: Run, stage: str | int | None = None) -> RunDiff:
    """Final graphs and kernels; with a stage, the graphs after that pass of each. Raises EngineError where one has no such pass."""
    title = f"{a.path} -> {b.path}"
    if stage is None:
        return RunDiff(title, diff(a.final, b.final), _kernels(a, b))
    if str(stage) in ("0", "import", "00-import"):
        return RunDiff(f"{title} after the import", diff(a.graph(0), b.graph(0)))
    return RunDiff(f"{title} after {a[stage].stem}", diff(a[stage].after, b[stage].after))


def _kernels(a: Run, b: Run) -> tuple[tuple[str, str, str], ...]:
    """A kernel's name ends in the hash of its plan; one of the same name may have been exchanged, or sample in another way."""
    first, second = _launches(a), _launches(b)
    gone = [("-", name, uses) for name, uses in first.items() if name not in second]
    mended = [("~", name, uses) for name, uses in second.items() if name in first and _source(a, name) != _source(b, name)]
    return tuple(gone + mended + [("+", name, uses) for name, uses in second.items() if name not in first])


def _source(run: Run, name: str) -> str:
    """Without comments, which name the modules that it computes."""
    return _COMMENT.sub("", run.kernel(name).source)


def _launches(run: Run) -> dict[str, str]:
    if run.engine is None:
        return {}
    manifest = run.engine.manifest
    counts = {
        k.name: [(program, sum(launch.kernel == k.name for launch in launches)) for program, launches in manifest.launch_lists.items()]
        for k in manifest.all_kernels
    }
    return {name: ", ".join(f"{program} x{count}" for program, count in uses if count) for name, uses in counts.items()}
