"""What `inspect/` says about itself: `manifest.json` and `regions.jsonl` as frozen dataclasses. No times, no absolute paths: builds are equal."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tilewright.ir.errors import EngineError
from tilewright.ir.manifest import MANIFEST_FILE
from tilewright.ir.plain_json import decode, schema_of
from tilewright.ir.records import as_tuple, fold_records, unfold_records

SCHEMA = 1
REGIONS_FILE = "regions.jsonl"
Status = Literal["changed", "same", "failed"]


@dataclass(frozen=True, slots=True)
class PassEntry:
    number: int  # from 1
    name: str  # with its options
    status: Status
    sha256: str  # of the text after it, which is that before it where nothing changed
    ops_before: int
    ops_after: int
    num_events: int
    num_misses: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InspectManifest:
    schema: int
    producer: str  # tilewright version that wrote it
    versions: dict[str, str]  # of python and the libraries that the compiler stands on
    target: str  # cpu, sm_80, sm_90, ...
    pipeline: str  # text of all passes
    imported: str  # sha256 of the text of the import
    passes: tuple[PassEntry, ...]

    def print(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @staticmethod
    def read(file: Path) -> InspectManifest:
        """Raises EngineError for one that cannot be read, or has another schema."""
        where = f"run {file.parent}"
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EngineError(where, f"{MANIFEST_FILE} cannot be read ({error})", "build the engine again") from error
        schema = schema_of(data)
        if schema != SCHEMA:
            problem = f"has inspection schema {schema!r}, this version reads schema {SCHEMA}"
            raise EngineError(where, problem, "build the engine again, or read it with the version that wrote it")
        return decode(InspectManifest, data, f"{where}: {MANIFEST_FILE}")


@dataclass(frozen=True, slots=True)
class RegionRecord:
    """A region as it was cut: one launch of a program."""

    program: str
    name: str  # unique in its program
    template: str
    ops: tuple[str, ...]  # names of ops, in order
    values: tuple[str, ...]  # what they compute, without sigils
    outputs: tuple[str, ...]  # those that later regions read
    reason: str = ""  # why the cut is here
    modules: tuple[str, ...] = ()


def print_regions(regions: Iterable[RegionRecord]) -> str:
    return fold_records("region", ((i, r.name, dataclasses.asdict(r)) for i, r in enumerate(regions)))


def read_regions(text: str) -> tuple[RegionRecord, ...]:
    """What `print_regions` wrote, in its order."""
    empty: dict[str, Any] = {"ops": (), "values": (), "outputs": ()}
    found = [{key: as_tuple(value) for key, value in fields.items()} for _, _, fields in unfold_records(text)]
    return tuple(RegionRecord(**{**empty, **fields}) for fields in found)
