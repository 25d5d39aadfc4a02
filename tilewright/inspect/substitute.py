"""An engine with the source of a kernel exchanged. The rest of it is copied; launches stay as they are, so the signature must."""

from __future__ import annotations

import ast
import dataclasses
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tilewright.codegen.aot import compile_all
from tilewright.codegen.pack import check_destination
from tilewright.inspect.run import Run, load
from tilewright.ir.errors import EngineError, TilewrightError
from tilewright.ir.manifest import Kernel, Manifest
from tilewright.ir.opdef import suggest
from tilewright.runtime.engine_files import hash_file


def substitute(engine: Path, out: Path, sources: Mapping[str, Path]) -> Run:
    """A copy of the engine with other sources for some kernels, compiled anew for the architectures that it has. Raises TilewrightError."""
    manifest = Manifest.read(engine)
    found = [(find_kernel(manifest, name), file) for name, file in sources.items()]
    texts = {kernel.name: read_source(engine, kernel, file) for kernel, file in found}
    check_destination(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        partial = Path(folder) / "engine"
        shutil.copytree(engine, partial, ignore=leave_measured)
        changed = {kernel.name: write_kernel(partial, kernel, texts[kernel.name]) for kernel, _ in found}
        kernels = tuple(changed.get(kernel.name, kernel) for kernel in manifest.kernels)
        sampling = manifest.sampling
        if sampling is not None:
            sampling = dataclasses.replace(sampling, kernels=tuple(changed.get(kernel.name, kernel) for kernel in sampling.kernels))
        files = [name for kernel in changed.values() for name in (kernel.file, *(b.file for b in kernel.binaries.values()))]
        hashes = manifest.files | {name: hash_file(partial / name) for name in files}
        dataclasses.replace(manifest, kernels=kernels, sampling=sampling, files=hashes).write(partial)
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    return load(out)


def leave_measured(folder: str, names: list[str]) -> list[str]:
    """What was measured of the engine as it was, and a report that shows it."""
    return [name for name in names if Path(folder).name == "inspect" and name in ("perf", "numerics", "report.html")]


def find_kernel(manifest: Manifest, name: str) -> Kernel:
    kernel = next((kernel for kernel in manifest.all_kernels if kernel.name == name), None)
    if kernel is None:
        raise EngineError("replay", f"the engine has no kernel {name!r}", suggest(name, [kernel.name for kernel in manifest.all_kernels]))
    return kernel


def read_source(engine: Path, kernel: Kernel, file: Path) -> str:
    """The new text, once its entry takes what the launches pass."""
    expected = parameters_of((engine / kernel.file).read_text(encoding="utf-8"), kernel.entry, kernel.file)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TilewrightError(str(file), f"cannot be read ({error})", "pass NAME=FILE.py") from error
    found = parameters_of(text, kernel.entry, str(file))
    if found != expected:
        problem = f"{kernel.entry} takes ({', '.join(found)}), the launches of {kernel.name} pass ({', '.join(expected)})"
        raise EngineError(str(file), problem, "keep the signature")
    return text


def parameters_of(text: str, entry: str, where: str) -> list[str]:
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise EngineError(f"{where}:{error.lineno}", f"is no Python: {error.msg}", "mend it") from error
    function = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == entry), None)
    if function is None:
        raise EngineError(where, f"has no function {entry!r}", "start from the file that the engine has")
    return [parameter.arg for parameter in (*function.args.args, *function.args.kwonlyargs)]


def write_kernel(partial: Path, kernel: Kernel, text: str) -> Kernel:
    (partial / kernel.file).write_text(text, encoding="utf-8", newline="\n")
    compiled = compile_all([kernel], {kernel.name: text}, sorted(kernel.binaries))
    for result in compiled.values():
        (partial / result.binary.file).write_bytes(result.cubin)
    return dataclasses.replace(kernel, binaries={arch: result.binary for (_, arch), result in sorted(compiled.items())})
