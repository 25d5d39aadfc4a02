"""The `inspect/` folder of an engine: what the compiler did, as text to read, compare and run again. No weights, times or environment."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.environment import read_environment
from tilewright.inspect.kernels import TRIALS_FILE
from tilewright.inspect.manifest import REGIONS_FILE, SCHEMA, InspectManifest, PassEntry, RegionRecord, print_regions
from tilewright.ir.errors import PassError
from tilewright.ir.manifest import MANIFEST_FILE, Limits
from tilewright.ir.places import PLACES_FILE
from tilewright.ir.regions import Region, Schedule
from tilewright.passes.manager import Report

if TYPE_CHECKING:
    from tilewright.codegen.lower import Lowered
    from tilewright.codegen.tuning import Measured

Files = dict[str, "bytes | Path"]
REPRODUCE = "REPRO.sh"
TUNED_FILE = "tuned.json"
DUMPS = "[0-9]*-*"  # numbered by pass
LIBRARIES = ("torch", "transformers", "triton", "safetensors")


def inspection_files(
    level: int, report: Report, schedules: Sequence[Schedule], lowered: Lowered, *, dump: Path | None, again: str,
    measured: Mapping[str, Measured] | None = None,
) -> Files:  # fmt: skip
    """By name relative to `inspect/`. level 0: none; 1: manifest, passes, regions, tiles, how to build it again; 2: PTX too.

    measured: what this build tried of tiles, by key of plan.
    """
    if level == 0:
        return {}
    from tilewright.passes.regions import print_schedule

    regions = "\n\n".join(print_schedule(schedule) for schedule in schedules)
    files: Files = {
        "passes.txt": f"{report}\n".encode(),
        "pipeline.txt": f"{report.pipeline}\n".encode(),
        "regions.txt": f"{regions}\n".encode(),
        REGIONS_FILE: print_regions(_record(s.regime.name, region) for s in schedules for region in s.regions).encode(),
    }
    files |= _tile_files(lowered, measured or {})
    if again:
        files[REPRODUCE] = _name_tiles(again, lowered).encode()
    if dump is not None:
        files[MANIFEST_FILE] = describe_passes(report, dump, lowered.target).print().encode()
        files |= {f"passes/{file.name}": file for file in sorted(dump.glob(DUMPS))}
        files |= {file.name: file for file in dump.glob(PLACES_FILE)}
    if level >= 2 and lowered.target != "cpu":
        files |= _ptx(lowered)
    return files


def _tile_files(lowered: Lowered, measured: Mapping[str, Measured]) -> Files:
    """The choices that the engine's kernels were made with, as a file that another build reads; and for each kernel, all that was tried for it."""
    if not lowered.choices:
        return {}
    from tilewright.codegen.choices import ChoiceFile

    (device, *_) = (device for _, device in lowered.choices.values())
    files: Files = {TUNED_FILE: ChoiceFile(device, {choice.key: choice for choice, _ in lowered.choices.values()}).print().encode()}
    for name, (choice, _) in lowered.choices.items():
        if choice.key in measured:
            files[f"kernels/{name}/{TRIALS_FILE}"] = measured[choice.key].print().encode()
    return files


def _name_tiles(again: str, lowered: Lowered) -> str:
    """The command with the tiles of this engine, whatever the machine that runs it knows of others."""
    if lowered.target == "cpu":
        return again
    tiles = f'"$(dirname "$0")/{TUNED_FILE}"' if lowered.choices else "none"
    return again.replace(' "$1" ', f' "$1" --tuned {tiles} ', 1)


def describe_passes(report: Report, dump: Path, target: str) -> InspectManifest:
    imported = digest = _hash(dump / "00-import.ir")
    entries: list[PassEntry] = []
    for row in report.rows:
        text = dump / f"{row.number:02d}-{row.name.partition('{')[0]}.ir"
        digest = _hash(text) if text.exists() else digest
        status = "changed" if text.exists() else "same"
        counts = (row.ops_before, row.ops_after, len(row.events), len(row.misses))
        entries.append(PassEntry(row.number, row.name, status, digest, *counts, warnings=row.warnings))
    return InspectManifest(SCHEMA, producer(), library_versions(), target, report.pipeline, imported, tuple(entries))


def _record(program: str, region: Region) -> RegionRecord:
    values = tuple(v.name for op in region.ops for v in op.results)
    outputs = tuple(v.name for v in region.outputs)
    return RegionRecord(program, region.name, region.template, tuple(op.name for op in region.ops), values, outputs, region.reason, region.modules)


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def producer() -> str:
    return f"tilewright {importlib.metadata.version('tilewright')}"


def library_versions() -> dict[str, str]:
    installed = {name: importlib.metadata.version(name) for name in LIBRARIES if importlib.util.find_spec(name)}
    return {"python": platform.python_version(), **installed}


def _ptx(lowered: Lowered) -> Files:
    """Compiles ahead of packing, which then finds the binaries in the cache."""
    from tilewright.codegen.aot import compile_all
    from tilewright.codegen.pack import sampling_of

    sampling, sources = sampling_of(lowered)
    kernels = (*lowered.kernels, *(sampling.kernels if sampling else ()))
    compiled = compile_all(kernels, {**lowered.sources, **sources}, [lowered.target], modules=lowered.modules)
    return {f"kernels/{name}.{arch}.ptx": result.ptx.encode() for (name, arch), result in compiled.items()}


def reproduce(
    model: Any, *, dtype: Any, quantize: str | None, target: str, pipeline: str | None, limits: Limits, deterministic: bool = False
) -> str:
    """A script that builds the same engine again into its first argument. A home directory is not named."""
    if not isinstance(model, str | Path):
        return f"#!/bin/sh\necho 'this engine was compiled from a {type(model).__name__} in memory' >&2\nexit 2\n"
    options = {
        "--dtype": None if dtype is None else str(dtype).removeprefix("torch."), "--quantize": quantize, "--target": target, "--pipeline": pipeline,
        "--max-batch-size": limits.max_batch_size, "--max-input-len": limits.max_input_len, "--max-output-len": limits.max_output_len,
        "--max-tokens": limits.max_tokens, "--page-size": limits.page_size,
    }  # fmt: skip
    flags = " ".join(f"{flag} {shlex.quote(str(value))}" for flag, value in options.items() if value is not None)
    flags += " --deterministic" if deterministic else ""
    found = read_environment()
    switches = {"PASSES": found.passes, "OPT_LIMIT": found.opt_limit, "NO": ",".join(found.no)}
    env = "".join(f"TILEWRIGHT_{name}={shlex.quote(str(value))} " for name, value in switches.items() if value not in ("", None))
    program = f"env {env}tilewright" if env else "tilewright"
    return f'#!/bin/sh\n# Builds this engine again: sh REPRO.sh OUT\nexec {program} build {quote_path(str(model))} "$1" {flags}\n'


def quote_path(path: str) -> str:
    """For a shell, without naming the home directory."""
    home = f"{Path.home()}/"
    return f'"$HOME"/{shlex.quote(path.removeprefix(home))}' if path.startswith(home) else shlex.quote(path)


# -- while passes run -----------------------------------------------------------------------------------------------------------
@contextmanager
def keep_dumps(out: Path, elsewhere: str, again: str) -> Iterator[Path]:
    """A folder for dumps, written pass by pass, that says how to run again what it records.

    Without `elsewhere` it is OUT.building.xxxxxxxx, which a killed process leaves behind; a pass that fails leaves OUT.failed, and one that
    the build was to stop after leaves OUT.stopped. Otherwise it goes.
    """
    if elsewhere:
        dump = clear_dumps(Path(elsewhere) / "passes")
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        dump = Path(tempfile.mkdtemp(prefix=f"{out.name}.building.", dir=out.parent))
    try:
        (dump / REPRODUCE).write_text(again, encoding="utf-8")
        yield dump
    except Exception as error:
        if any(dump.glob("*.FAILED.ir")):
            error.add_note(f"the graph before the pass that failed is in {dump if elsewhere else _keep(dump, out, 'failed')}")
        raise
    finally:
        if not elsewhere:
            shutil.rmtree(dump, ignore_errors=True)


def clear_dumps(folder: Path) -> Path:
    """Takes what an earlier run left."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in (*folder.glob(DUMPS), *folder.glob(PLACES_FILE)):
        file.unlink()
    return folder


def stop_build(dump: Path, out: Path, report: Report, *, stays: bool) -> PassError:
    """What a build ends with that was to stop after a pass: says where the graph is and how to go on. stays: the dumps are kept anyhow."""
    kept = dump if stays else _keep(dump, out, "stopped")
    last = sorted(kept.glob("*.ir"))[-1]
    problem = f"the build ended after pass {report.rows[-1].number}, {report.rows[-1].name}"
    return PassError("TILEWRIGHT_STOP_AFTER", problem, f"go on with: tilewright opt {last} -p {shlex.quote(report.left)}")


def _keep(dump: Path, out: Path, word: str) -> Path:
    kept = out.parent / f"{out.name}.{word}"
    shutil.rmtree(kept, ignore_errors=True)
    dump.rename(kept)
    kept.chmod(0o755)
    return kept


def write_inspection(folder: Path, files: Mapping[str, bytes | Path]) -> None:
    """Into a folder of its own, which holds the dumps already."""
    for name, data in files.items():
        if isinstance(data, bytes):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        else:
            data.replace(folder / name)
