"""A build as it was recorded: its passes in order, the graph after each of them, and their events. Knows nothing of how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tilewright.engine import Engine
from tilewright.inspect.layers import Layers
from tilewright.inspect.manifest import REGIONS_FILE, InspectManifest, PassEntry, RegionRecord, Status, read_regions
from tilewright.inspect.rows import Rows
from tilewright.inspect.text import Readable
from tilewright.ir.errors import EngineError, ParseError
from tilewright.ir.events import Event, Miss
from tilewright.ir.graph import Graph
from tilewright.ir.manifest import MANIFEST_FILE
from tilewright.ir.opdef import suggest
from tilewright.ir.parser import parse_graph
from tilewright.ir.places import PLACES_FILE, Places, put_places, read_places
from tilewright.ir.records import read_records
from tilewright.passes.registry import load_passes

if TYPE_CHECKING:
    from tilewright.inspect.blame import Tensor
    from tilewright.inspect.check import Numerics
    from tilewright.inspect.event_view import EventView
    from tilewright.inspect.finding import Finding
    from tilewright.inspect.kernels import KernelView
    from tilewright.inspect.pass_diff import PassDiff
    from tilewright.inspect.run_diff import RunDiff
    from tilewright.inspect.view import View
    from tilewright.inspect.why import Reasons

T = TypeVar("T")
IMPORT = "00-import"
PASSES = Path("inspect") / "passes"


@dataclass(frozen=True, eq=False)
class PassRecord(Readable):
    """What one pass did. Graphs are parsed when first asked for."""

    run: Run = field(repr=False)
    number: int  # from 1; 0 is the import
    name: str
    status: Status
    entry: PassEntry | None = field(default=None, repr=False)  # None for dumps without a manifest

    @property
    def stem(self) -> str:
        return f"{self.number:02d}-{self.name}"

    @property
    def title(self) -> str:
        """Number, and name with options where they are known."""
        return f"{self.number:02d} {self.entry.name if self.entry else self.name}"

    @property
    def before(self) -> Graph:
        return self.run.graph(self.number - 1)

    @property
    def after(self) -> Graph:
        """Raises EngineError for a pass that failed."""
        return self.run.graph(self.number)

    @property
    def events(self) -> Rows[Event]:
        return Rows(self._records[0])

    @property
    def misses(self) -> Rows[Miss]:
        return Rows(self._records[1])

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.entry.warnings if self.entry else ()

    @property
    def ops_before(self) -> int:
        return self.entry.ops_before if self.entry else len(self.before)

    @property
    def ops_after(self) -> int:
        return self.entry.ops_after if self.entry else len(self.before if self.status == "failed" else self.after)

    def as_row(self) -> dict[str, Any]:
        counts = {"ops_before": self.ops_before, "ops_after": self.ops_after, "events": len(self.events), "near_misses": len(self.misses)}
        return {"number": self.number, "name": self.name, "status": self.status, **(counts if self.status != "failed" else {})}

    def view(self) -> EventView:
        """What fired and what nearly fired, grouped over layers."""
        from tilewright.inspect.event_view import view_events

        return view_events(self.events, self.misses, self.run.layers)

    def diff(self) -> PassDiff:
        """Events, near misses, and the tensors that changed. Raises EngineError for a pass that failed."""
        from tilewright.inspect.pass_diff import PassDiff

        return PassDiff.of(self.title, self, self.before, self.after)

    def find(self, op: str = "*", *, layer: int | None = None, name: str = "*") -> list[Tensor]:
        """Tensors after the pass, by globs of the op that makes them and of their name."""
        return self.run.find(op, layer=layer, name=name, at=self.number)

    @cached_property
    def _records(self) -> tuple[list[Event], list[Miss]]:
        return self.run.read(self.run.folder / f"{self.stem}.events.jsonl", read_records) or ([], [])

    def __str__(self) -> str:
        if self.status == "failed":
            return f"{self.title:36s} FAILED"
        counts = f"ops {self.ops_before:5d} -> {self.ops_after:5d}   events {len(self.events):4d}"
        missed = f", {len(self.misses)} nearly" if self.misses else ""
        return "\n".join([f"{self.title:36s} {counts}{missed}", *(f"   warning: {w}" for w in self.warnings)])


class Run(Readable):
    """`passes` are in the order in which they ran. `engine` is None for the dumps of a build that failed."""

    def __init__(self, path: Path, folder: Path, engine: Engine | None) -> None:
        self.path, self.folder, self.engine = path, folder, engine
        described = folder.parent / MANIFEST_FILE
        is_inside = folder.name == "passes" and described.is_file()
        self.manifest: InspectManifest | None = InspectManifest.read(described) if is_inside else None
        self.passes: Rows[PassRecord] = Rows(self._read_passes())
        self._graphs: dict[int, Graph] = {}

    def __getitem__(self, key: str | int) -> PassRecord:
        """By number, by name (the last pass of that name), or as `07-fuse-qkv`. Raises EngineError for none."""
        for record in reversed(self.passes):
            is_number = isinstance(key, int) or key.isdigit()
            if (int(key) == record.number) if is_number else key in (record.name, record.stem):
                return record
        if isinstance(key, int) or key.isdigit():
            raise EngineError(f"run {self.path}", f"no pass {key}", f"they are numbered 0 (the import) to {max(p.number for p in self.passes)}")
        raise EngineError(f"run {self.path}", f"no pass {key!r}", suggest(key, list(dict.fromkeys(p.name for p in self.passes))))

    def __iter__(self) -> Iterator[PassRecord]:
        return iter(self.passes)

    def __len__(self) -> int:
        return len(self.passes)

    def __repr__(self) -> str:
        return f"<run {self.path} of {len(self.passes)} passes>"

    def __str__(self) -> str:
        head = f"run {self.path}: {len(self.passes)} passes, ops {len(self.graph(0))} -> {len(self.final)}"
        return "\n".join([head, *(f"  {p}" for p in self.passes)])

    @property
    def final(self) -> Graph:
        """The graph after the last pass that ran to its end."""
        return self.graph(self.last)

    @property
    def last(self) -> int:
        """Number of the last pass that ran to its end."""
        return max((p.number for p in self.passes if p.status != "failed"), default=0)

    @cached_property
    def layers(self) -> Layers:
        return Layers.of(self.graph(0))

    @cached_property
    def regions(self) -> tuple[RegionRecord, ...]:
        """Empty for dumps without a manifest."""
        return self.read(self.folder.parent / REGIONS_FILE, read_regions) or ()

    @cached_property
    def place_changes(self) -> tuple[tuple[int, str, tuple[str, ...]], ...]:
        """(pass, value, lines): after which pass a value comes from other lines than before."""
        folder = self.folder.parent if self.manifest is not None else self.folder
        return self.read(folder / PLACES_FILE, lambda text: tuple(read_places(text))) or ()

    def graph(self, number: int) -> Graph:
        """The graph after pass `number`, 0 for the import. One object for passes that changed nothing. Raises EngineError."""
        record = self[number] if number else None
        if record is not None and record.status == "failed":
            raise EngineError(f"run {self.path}", f"pass {record.stem} failed", "ask for the graph before it")
        while number and self[number].status == "same":
            number -= 1
        if number not in self._graphs:
            self._graphs[number] = self._parse(self[number].stem if number else IMPORT)
            put_places(self._graphs[number], self.places(number))
        return self._graphs[number]

    def places(self, number: int) -> Places:
        """Lines of Python that each value comes from, after pass `number`; empty where the build kept none."""
        return {name: lines for since, name, lines in self.place_changes if since <= number}

    def diff(self, other: Run, stage: str | int | None = None) -> RunDiff:
        """Between this run and another: final graphs and kernels, or the graphs after a pass."""
        from tilewright.inspect.run_diff import diff_runs

        return diff_runs(self, other, stage)

    def tensor(self, name: str) -> Tensor:
        """With or without its sigil, at whatever stage it is. Raises EngineError for none."""
        from tilewright.inspect.blame import find_tensor

        return find_tensor(self, name)

    def find(self, op: str = "*", *, layer: int | None = None, name: str = "*", at: int | None = None) -> list[Tensor]:
        """Tensors of the final graph (or after pass `at`), by globs of the op that makes them and of their name."""
        from tilewright.inspect.blame import Tensor

        ops = [o for o in self.graph(self.last if at is None else at).ops if fnmatchcase(o.name, op)]
        return [
            Tensor(self, v.name)
            for o in ops
            for v in o.results
            if fnmatchcase(v.name, name) and (layer is None or layer in (self.layers.layer(v.name), *map(self.layers.layer, o.loc.modules)))
        ]

    def blame(self, name: str) -> Readable:
        """The history of a tensor, a kernel or a module. Raises EngineError for a name that is none."""
        from tilewright.inspect.blame import blame

        return blame(self, name)

    def why(self, pattern: str) -> Reasons:
        """What fired and nearly fired at rules, passes, tensors or modules, and why kernels were cut. Raises EngineError for no match."""
        from tilewright.inspect.why import explain

        return explain(self, pattern)

    def read(self, file: Path, decode: Callable[[str], T]) -> T | None:
        """None for a file that is not there. Raises EngineError for one that cannot be read."""
        try:
            return decode(file.read_text(encoding="utf-8")) if file.is_file() else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineError(str(file), f"cannot be read ({error})", "build the engine again") from error

    def check(self, **options: Any) -> Numerics:
        """Errors of passes, values and kernels; options as in `tilewright.inspect.check.check`. Raises TilewrightError."""
        from tilewright.inspect.check import check

        return check(self, **options)

    def bisect(self, judge: str | Callable[[Path], bool], *, out: Path = Path("bisect"), model: str | None = None) -> Finding | None:
        """What breaks a gate (`kl<1e-3`), or makes `judge` say False of an engine; None where nothing does. Raises TilewrightError."""
        from tilewright.inspect.blackbox import bisect

        return bisect(self, judge, out=out, model=model)

    def kernel(self, name: str) -> KernelView:
        """By name or by its beginning: source, ptx, sass, what it takes of the machine. Raises EngineError for dumps and for no such kernel."""
        from tilewright.inspect.kernels import KernelView

        if self.engine is None:
            raise EngineError(f"run {self.path}", "is a folder of dumps, which has no kernels", "load an engine directory")
        return KernelView.find(self.engine, name)

    def report(self, path: str | Path, vs: Run | None = None, *, lints: bool = True) -> Path:
        """One HTML file that is read offline. vs: another run, to compare with."""
        from tilewright.inspect.report import write_report

        return write_report(self, path, vs, lints=lints)

    def view(self, tab: str = "overview", **state: object) -> View:
        """The report in a notebook's output, at a tab: `run.view("passes", pass_="fuse-qkv", tensor="model.norm")`."""
        from tilewright.inspect.view import View

        if "pass_" in state:
            state["pass_"] = self[str(state["pass_"])].number
        return View(self, tab, state)

    def _parse(self, stem: str) -> Graph:
        load_passes()  # ops of other packages are declared with their passes
        file = self.folder / f"{stem}.ir"
        try:
            return parse_graph(file.read_text(encoding="utf-8"), file=str(file))
        except OSError as error:
            raise ParseError(str(file), f"cannot be read ({error.strerror})", "build the engine again") from error

    def _read_passes(self) -> list[PassRecord]:
        found: dict[str, Status] = {}
        suffixes: dict[str, Status] = {".ir": "changed", ".same": "same", ".FAILED.ir": "failed"}
        for suffix, status in suffixes.items():
            for file in self.folder.glob(f"[0-9]*{suffix}"):
                stem = file.name.removesuffix(suffix)
                if stem != IMPORT and not stem.endswith(".FAILED"):
                    found[stem] = status
        entries = {entry.number: entry for entry in self.manifest.passes} if self.manifest else {}
        names: dict[int, tuple[str, Status]] = {int(s.partition("-")[0]): (s.partition("-")[2], status) for s, status in found.items()}
        return [PassRecord(self, number, *names[number], entry=entries.get(number)) for number in sorted(names)]


def load(path: str | Path) -> Run:
    """The run behind an engine directory, its `inspect` folder, or a folder of dumps (`OUT.failed`, or what `optimize(dump=…)` wrote).

    Raises EngineError.
    """
    path = Path(path)
    if (path / f"{IMPORT}.ir").is_file():
        return Run(path, path, None)
    if (path / "passes" / f"{IMPORT}.ir").is_file():
        return Run(path, path / "passes", None)
    if not (path / MANIFEST_FILE).is_file():
        raise EngineError(f"run {path}", f"has neither {MANIFEST_FILE} nor {IMPORT}.ir", "pass an engine directory or a folder of dumps")
    if not (path / PASSES / f"{IMPORT}.ir").is_file():
        raise EngineError(f"engine {path}", f"has no {PASSES}", "build it again with TILEWRIGHT_INSPECT=1")
    return Run(path, path / PASSES, Engine.open(path))
