"""Tiles that were measured to be the best, as readable JSON: one file for each kind of GPU, one line for each plan. Measures nothing.

A choice belongs to a plan and to the code that was measured, the default's and its own: where one of them has changed, the choice is stale.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from tilewright.codegen.candidates import Candidate
from tilewright.codegen.plan import KernelPlan
from tilewright.codegen.tile_moves import TEMPLATES, Move
from tilewright.codegen.tiles import AttendTile, LinearTile
from tilewright.ir.errors import CodegenError, EngineError
from tilewright.ir.opdef import suggest
from tilewright.ir.plain_json import decode, schema_of

SCHEMA = 1
SHIPPED = Path(__file__).parent / "tuned"
_VIEWS = ("reshape", "slice", "expand")
_FIELDS = {"linear": [f.name for f in fields(LinearTile)], "attend": [f.name for f in fields(AttendTile)]}


@dataclass(frozen=True, slots=True)
class Device:
    """What times hold for."""

    arch: str  # sm_90
    gpu: str  # as the driver names it; empty: no GPU of the architecture is here
    triton: str  # version of the compiler

    @property
    def file_name(self) -> str:
        return f"{re.sub(r'[^a-z0-9]+', '-', self.gpu.lower()).strip('-')}.{self.arch}.triton-{self.triton}.json"


@dataclass(frozen=True, slots=True)
class Choice:
    key: str  # what of a plan decides its speed, as `key_of` writes it
    code: str  # digest of the code that was measured, as `code_of` gives it
    tile: Move  # fields of the default tile that are changed; none: the default is the fastest
    us: float  # of one launch, inside a CUDA graph, with operands from memory
    default_us: float  # the same with the default tile, measured beside it


def key_of(plan: KernelPlan) -> str:
    """What of a plan decides its speed, in words: template, step, ops, dtypes and shapes. Neither names of layers nor constants."""
    flow = " -> ".join(op.op for op in plan.ops if op.op not in _VIEWS)
    attrs = " ".join(f"{name}={value}" for name, value in plan.anchor_op.attrs if isinstance(value, int))
    tensors = ", ".join(f"{p.role} {p.type}" for p in plan.parameters if p.role != "step" or p.name == "block_table")
    order = " deterministic" if dict(plan.config).get("deterministic") else ""
    return f"{plan.template} {plan.kind} T<={plan.max_tokens}{order}: {flow}{f' {{{attrs}}}' if attrs else ''}: {tensors}"


def code_of(plan: KernelPlan, tile: Mapping[str, int]) -> str:
    """Digests of the code with the default tile, and with these fields of it changed. Raises CodegenError for fields that the template refuses."""
    codes = [Candidate.of(plan, move).code for move in ({}, tile)[: 2 if tile else 1]]
    return "-".join(codes)


@dataclass(frozen=True)
class ChoiceFile:
    device: Device
    choices: dict[str, Choice]  # by key

    def print(self) -> str:
        """Keys sorted, one choice a line: files of equal choices are equal, and a diff of two is readable."""
        lines = ",\n".join("  " + json.dumps(dataclasses.asdict(self.choices[key]), sort_keys=True) for key in sorted(self.choices))
        device = self.device
        return (
            f'{{\n "arch": {json.dumps(device.arch)},\n "choices": [\n{lines}\n ],\n "gpu": {json.dumps(device.gpu)},\n'
            f' "schema": {SCHEMA},\n "triton": {json.dumps(device.triton)}\n}}\n'
        )

    @staticmethod
    def read(path: Path) -> ChoiceFile:
        """Raises CodegenError that names file, choice and field, and says what was found and what is expected."""
        where = f"tuned tiles {path}"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or f"it is not JSON: {error}"
            raise CodegenError(where, f"cannot be read ({reason})", "pass a file that `tilewright build --tune` wrote") from error
        schema = schema_of(data)
        if schema != SCHEMA:
            raise CodegenError(where, f"has schema {schema!r}, this version reads schema {SCHEMA}", "tune again")
        try:
            head = decode(_Head, {name: value for name, value in data.items() if name != "choices"}, where)
            found = [_read_choice(entry, f"{where}: choices[{i}]") for i, entry in enumerate(decode(list, data.get("choices"), f"{where}: choices"))]
        except EngineError as error:
            raise CodegenError(error.where, error.problem, "tune again, or mend the file") from error
        return ChoiceFile(Device(head.arch, head.gpu, head.triton), {choice.key: choice for choice in found})

    def write(self, path: Path) -> None:
        """Whole or not at all. Raises CodegenError where that cannot be."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False) as aside:
                aside.write(self.print())
            os.replace(aside.name, path)
        except OSError as error:
            raise CodegenError(f"tuned tiles {path}", f"cannot be written ({error.strerror})", "set XDG_CACHE_HOME to another directory") from error


@dataclass(frozen=True, slots=True)
class _Head:
    arch: str
    gpu: str
    schema: int
    triton: str


def _read_choice(entry: Any, where: str) -> Choice:
    key = entry.get("key") if isinstance(entry, dict) else None
    choice: Choice = decode(Choice, entry, f"{where} ({key})" if key else where)
    template = choice.key.partition(" ")[0]
    if template not in TEMPLATES:
        raise CodegenError(f"{where}.key", f"is {choice.key!r:.80}", f"it begins with {' or '.join(TEMPLATES)}")
    for name in choice.tile:
        if name not in _FIELDS[template]:
            known = _FIELDS[template]
            raise CodegenError(f"{where}.tile ({key})", f"has the field {name!r}", suggest(name, known) + f"; tiles have {', '.join(known)}")
    return choice


class Choices:
    """Files in the order in which they are asked. The first that has a plan's key, measured with today's code, decides."""

    def __init__(self, files: Iterable[ChoiceFile] = ()) -> None:
        self.files = list(files)

    def find(self, plan: KernelPlan) -> tuple[Choice, Device] | None:
        """None for a plan that was never measured, or whose code has changed since."""
        if plan.language != "triton" or plan.template not in TEMPLATES:
            return None
        key = key_of(plan)
        found = [(file.choices[key], file.device) for file in self.files if key in file.choices]
        return next(((choice, device) for choice, device in found if _is_fresh(choice, plan)), None)

    def __bool__(self) -> bool:
        return any(file.choices for file in self.files)


def _is_fresh(choice: Choice, plan: KernelPlan) -> bool:
    try:
        return choice.code == code_of(plan, choice.tile)
    except CodegenError:  # today's template knows no such tile
        return False


# -- files ----------------------------------------------------------------------------------------------------------------------
def default_folder() -> Path:
    """Beside the kernel cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tilewright" / "tuned"


def read_given(path: Path, device: Device) -> ChoiceFile:
    """A file that the user names: it serves any GPU of its architecture. Raises CodegenError for another architecture or compiler."""
    file = ChoiceFile.read(path)
    for what, theirs, ours in (("for", file.device.arch, device.arch), ("with Triton", file.device.triton, device.triton)):
        if theirs != ours:
            problem = f"measured {what} {theirs}, this build is {what} {ours}"
            raise CodegenError(f"tuned tiles {path}", problem, "tune again with: tilewright build --tune")
    return file


def read_own(path: Path, device: Device) -> ChoiceFile:
    """What this user measured on such a GPU; nothing where another version wrote it. Raises CodegenError for a file that is broken."""
    empty = ChoiceFile(device, {})
    if not path.is_file():
        return empty
    try:
        file = ChoiceFile.read(path)
    except CodegenError as error:
        if "has schema" in error.problem:
            return empty
        raise CodegenError(error.where, error.problem, "delete it: builds with --tune write it anew") from error
    return file if file.device == device else empty


def read_shipped(device: Device, folder: Path = SHIPPED) -> list[ChoiceFile]:
    """Those for this GPU; where none is known, for any GPU of the architecture."""
    files = [ChoiceFile.read(path) for path in sorted(folder.glob("*.json"))]
    return [f for f in files if (f.device if device.gpu else replace(f.device, gpu="")) == device]


def keep(path: Path, device: Device, choices: Sequence[Choice]) -> None:
    """Adds choices to a file, or replaces those of their keys."""
    file = read_own(path, device)
    ChoiceFile(device, {**file.choices, **{choice.key: choice for choice in choices}}).write(path)
