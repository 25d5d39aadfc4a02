"""A build as it was recorded: its passes in order, the graph after each of them, and their events. Knows nothing of how it is shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from tilewright.engine import Engine
from tilewright.ir.errors import EngineError, ParseError
from tilewright.ir.events import Event, Miss
from tilewright.ir.graph import Graph
from tilewright.ir.manifest import MANIFEST_FILE
from tilewright.ir.opdef import suggest
from tilewright.ir.parser import parse_graph
from tilewright.ir.records import read_records
from tilewright.passes.registry import load_passes

Status = Literal["changed", "same", "failed"]
IMPORT = "00-import"
PASSES = Path("inspect") / "passes"


@dataclass(frozen=True, eq=False)
class PassRecord:
    """What one pass did. Graphs are parsed when first asked for."""

    run: Run = field(repr=False)
    number: int  # from 1; 0 is the import
    name: str
    status: Status

    @property
    def stem(self) -> str:
        return f"{self.number:02d}-{self.name}"

    @property
    def before(self) -> Graph:
        return self.run.graph(self.number - 1)

    @property
    def after(self) -> Graph:
        """Raises EngineError for a pass that failed."""
        return self.run.graph(self.number)

    @property
    def events(self) -> list[Event]:
        return self._records[0]

    @property
    def misses(self) -> list[Miss]:
        return self._records[1]

    @cached_property
    def _records(self) -> tuple[list[Event], list[Miss]]:
        file = self.run.folder / f"{self.stem}.events.jsonl"
        return read_records(file.read_text(encoding="utf-8")) if file.exists() else ([], [])


class Run:
    """`passes` are in the order in which they ran. `engine` is None for the dumps of a build that failed."""

    def __init__(self, path: Path, folder: Path, engine: Engine | None) -> None:
        self.path, self.folder, self.engine = path, folder, engine
        self.passes: tuple[PassRecord, ...] = tuple(self._read_passes())
        self._graphs: dict[int, Graph] = {}

    def __getitem__(self, key: str | int) -> PassRecord:
        """By number, by name (the last pass of that name), or as `07-fuse-qkv`. Raises EngineError for none."""
        for record in reversed(self.passes):
            if key in (record.number, str(record.number), record.name, record.stem):
                return record
        names = [name for p in self.passes for name in (p.name, p.stem)]
        raise EngineError(f"run {self.path}", f"no pass {key!r}", suggest(str(key), names))

    @property
    def final(self) -> Graph:
        """The graph after the last pass that ran to its end."""
        return self.graph(max((p.number for p in self.passes if p.status != "failed"), default=0))

    def graph(self, number: int) -> Graph:
        """The graph after pass `number`, 0 for the import. One object for passes that changed nothing. Raises EngineError."""
        record = self[number] if number else None
        if record is not None and record.status == "failed":
            raise EngineError(f"run {self.path}", f"pass {record.stem} failed", "ask for the graph before it")
        while number and self[number].status == "same":
            number -= 1
        if number not in self._graphs:
            self._graphs[number] = self._parse(self[number].stem if number else IMPORT)
        return self._graphs[number]

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
        records = [PassRecord(self, int(stem.partition("-")[0]), stem.partition("-")[2], status) for stem, status in found.items()]
        return sorted(records, key=lambda record: record.number)


def load(path: str | Path) -> Run:
    """The run behind an engine directory, or a folder of dumps (`OUT.failed`, or what `optimize(dump=…)` wrote). Raises EngineError."""
    path = Path(path)
    if (path / f"{IMPORT}.ir").is_file():
        return Run(path, path, None)
    if not (path / MANIFEST_FILE).is_file():
        raise EngineError(f"run {path}", f"has neither {MANIFEST_FILE} nor {IMPORT}.ir", "pass an engine directory or a folder of dumps")
    if not (path / PASSES / f"{IMPORT}.ir").is_file():
        raise EngineError(f"engine {path}", f"has no {PASSES}", "build it again with TILEWRIGHT_INSPECT=1")
    return Run(path, path / PASSES, Engine.open(path))
