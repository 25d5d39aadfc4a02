"""Everything the page shows, as plain data, collected from a run; a second run adds what differs. Knows nothing of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tilewright.inspect.report.heat import Heat, collect_heat
from tilewright.inspect.report.kernel_rows import KernelRow, collect_kernels, left_out
from tilewright.inspect.report.ledger import Row, Snapshot, snapshot
from tilewright.inspect.report.lenses import LensView, look_through
from tilewright.inspect.report.measured import Table, collect_numerics, collect_times
from tilewright.inspect.report.module_rows import ModuleRow, collect_modules
from tilewright.inspect.report.names import Names, Texts, fold_places
from tilewright.inspect.report.overview import Warning, collect_facts, collect_sentences, collect_warnings, name_of
from tilewright.inspect.report.pass_rows import PassRow, collect_passes
from tilewright.inspect.report.time_rows import TimedStep, collect_profiles
from tilewright.inspect.run import Run
from tilewright.ir.graph import Graph

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Other:
    """The run that this one is compared with."""

    title: str
    facts: dict[str, str]
    passes: tuple[tuple[str, int, int, int], ...]  # name, ops after, events, near misses
    kernels: tuple[KernelRow, ...]  # a name ends in the hash of the plan: equal names are equal kernels
    final: Snapshot  # its last graph, against this run's


@dataclass(frozen=True, slots=True)
class Report:
    schema: int
    title: str
    target: str
    facts: dict[str, str]
    sentences: tuple[str, ...]
    warnings: tuple[Warning, ...]
    stems: tuple[str, ...]  # module paths of lists of layers, each with its dot
    programs: tuple[str, ...]
    passes: tuple[PassRow, ...]
    snapshots: tuple[Snapshot, ...]  # the import, then after each pass that changed something
    places: tuple[tuple[int, Names, tuple[int, ...]], ...]  # since which pass values come from which lines of Python
    kernels: tuple[KernelRow, ...]
    notes: tuple[str, ...]  # what was left out
    modules: tuple[ModuleRow, ...]
    profiles: tuple[TimedStep, ...]
    times: tuple[Table, ...]  # rows of other programs
    numerics: tuple[Table, ...]
    heat: Heat | None  # errors of values by layer
    lenses: tuple[LensView, ...]  # of other packages
    other: Other | None
    texts: tuple[str, ...]  # lines that the rest points into


def collect(run: Run, vs: Run | None = None, *, lints: bool = True) -> Report:
    """lints: compile each Triton kernel once more to look at its machine code, where Triton is installed. Raises EngineError."""
    texts, names = Texts(), _tell_apart(run, vs or run)
    passes, modules = collect_passes(run), collect_modules(run)
    kernels = collect_kernels(run, texts, lints=lints)
    snapshots, final = _collect_snapshots(run, texts)
    manifest = run.engine.manifest if run.engine else None
    return Report(
        schema=SCHEMA,
        title=names[0],
        target=manifest.target if manifest else run.manifest.target if run.manifest else "",
        facts=collect_facts(run),
        sentences=collect_sentences(run, passes, kernels, modules),
        warnings=collect_warnings(passes, kernels),
        stems=run.layers.stems,
        programs=tuple(p.name for p in manifest.programs) if manifest else (),
        passes=passes,
        snapshots=snapshots,
        places=fold_places(run, texts),
        kernels=kernels,
        notes=tuple(filter(None, [left_out(run, kernels)])),
        modules=modules,
        profiles=collect_profiles(run),
        times=collect_times(run),
        numerics=collect_numerics(run),
        heat=collect_heat(run),
        lenses=look_through(run),
        other=_collect_other(vs, names[1], texts, final, lints=lints) if vs is not None else None,
        texts=texts.lines,
    )


def _tell_apart(run: Run, vs: Run) -> tuple[str, str]:
    """Names of both: the models', with the folders' where those are equal."""
    names, folders = (name_of(run), name_of(vs)), (run.path.name, vs.path.name)
    if run is vs or names[0] != names[1]:
        return names
    first, second = folders if folders[0] != folders[1] else ("A", "B")
    return f"{names[0]} ({first})", f"{names[1]} ({second})"


def _collect_snapshots(run: Run, texts: Texts) -> tuple[tuple[Snapshot, ...], tuple[Graph, list[Row]]]:
    found: list[Snapshot] = []
    before: tuple[Graph, list[Row]] | None = None
    for number in (0, *(p.number for p in run.passes if p.status == "changed")):
        graph = run.graph(number)
        shot, rows = snapshot(number, graph, texts, before)
        found.append(shot)
        before = (graph, rows)
    assert before is not None
    return tuple(found), before


def _collect_other(run: Run, title: str, texts: Texts, against: tuple[Graph, Sequence[Row]], *, lints: bool) -> Other:
    passes = tuple((p.name, p.ops_after, len(p.events), len(p.misses)) for p in run.passes)
    final, _ = snapshot(run.last, run.final, texts, (against[0], list(against[1])))
    return Other(title, collect_facts(run), passes, collect_kernels(run, texts, lints=lints), final)
