"""Compiles one Triton kernel for one architecture, with neither GPU nor driver: source text in, cubin and its resources out.

Knows nothing of plans or engines. The same text, options and Triton version give the same bytes in any directory and process.
"""

from __future__ import annotations

import linecache
import re
import subprocess
import tempfile
import threading
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilewright.ir.errors import CodegenError
from tilewright.ir.manifest import Binary, Kernel

SHARED_LIMITS = {  # bytes of shared memory that one block may ask for
    "sm_80": 166912,
    "sm_86": 101376,
    "sm_89": 101376,
    "sm_90": 232448,
    "sm_100": 232448,
    "sm_120": 101376,
}
_TRITON_TYPES = {"f16": "fp16", "f32": "fp32", "f64": "fp64", "bool": "i1", "e4m3": "fp8e4nv", "e5m2": "fp8e5"}  # ours that differ
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")
_COMPILING = threading.Lock()  # Triton's knobs belong to the process


@dataclass(frozen=True, slots=True)
class Compiled:
    cubin: bytes
    ptx: str
    binary: Binary  # its file is kernels/<kernel name>.<architecture>.cubin


def compile_kernel(kernel: Kernel, source: str, arch: str, modules: tuple[str, ...] = (), *, line_info: bool = False) -> Compiled:
    """Raises CodegenError when Triton refuses the source, or when the block would not fit the architecture's shared memory.

    Pointers are compiled as 16-byte aligned, which the runtime guarantees; integers are assumed to be nothing. line_info puts the lines of
    the source into the cubin, for tools that show both; the instructions are the same.
    """
    _require_arch(kernel, arch)
    compiled = _run_triton(kernel, source, arch, modules, line_info)
    limit, shared = SHARED_LIMITS[arch], compiled.metadata.shared
    if shared > limit:
        remedy = f"use smaller tiles or fewer stages than {kernel.num_stages} (constants {kernel.constants})"
        raise CodegenError(_where(kernel, arch, modules), f"needs {shared} bytes of shared memory, {arch} has {limit} for a block", remedy)
    cubin = compiled.asm["cubin"]
    registers, stack = _read_resources(cubin)
    binary = Binary(
        file=f"kernels/{kernel.name}.{arch}.cubin",
        symbol=compiled.metadata.name,
        num_warps=compiled.metadata.num_warps,
        shared_bytes=shared,
        num_registers=registers,
        stack_bytes=stack,
        global_scratch_bytes=compiled.metadata.global_scratch_size or 0,
    )
    return Compiled(cubin, compiled.asm["ptx"], binary)


def _require_arch(kernel: Kernel, arch: str) -> None:
    if arch not in SHARED_LIMITS:
        raise CodegenError(f"target {arch}", f"kernel {kernel.name} cannot be compiled for it; known: {', '.join(SHARED_LIMITS)}")


def _where(kernel: Kernel, arch: str, modules: tuple[str, ...]) -> str:
    of = f" of {', '.join(modules)}" if modules else ""
    return f"kernel {kernel.name}{of} for {arch}"


def triton_options(kernel: Kernel, capability: int) -> dict[str, Any]:
    """capability: 90 for sm_90."""
    return {
        "num_warps": kernel.num_warps,
        "num_stages": kernel.num_stages,
        "enable_fp_fusion": True,  # Triton's default changes in 3.10
        "launch_pdl": kernel.dependent_launch and capability >= 90,
    }


def _run_triton(kernel: Kernel, source: str, arch: str, modules: tuple[str, ...], line_info: bool) -> Any:
    from triton import __version__, knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    function = _load_function(kernel, source)
    signature = _make_signature(kernel, function.arg_names)
    aligned = {(i,): [["tt.divisibility", 16]] for i, type_name in enumerate(signature.values()) if type_name.startswith("*")}
    capability = int(arch.removeprefix("sm_"))
    with _COMPILING, tempfile.TemporaryDirectory() as scratch, knobs.cache.scope(), knobs.compilation.scope():
        knobs.cache.dir = scratch  # our own cache knows better when an entry is good
        knobs.compilation.disable_line_info = not line_info  # lines would make cubins of equal kernels differ
        try:
            target = GPUTarget("cuda", capability, 32)
            return compile(ASTSource(function, signature, kernel.constants, aligned), target, triton_options(kernel, capability))
        except Exception as error:  # CompilationError, PTXASError, RuntimeError from MLIR passes, AssertionError: all mean the same here
            problem = f"Triton {__version__} refuses it: {type(error).__name__}: {str(error).strip()[-2000:]}"
            raise CodegenError(_where(kernel, arch, modules), problem, f"see {kernel.file}") from error


def _load_function(kernel: Kernel, source: str) -> Any:
    """The jit function, executed from text; Triton reads its source back through linecache."""
    filename = f"<triton {kernel.name}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    module = types.ModuleType(kernel.name)
    exec(compile(source, filename, "exec"), module.__dict__)
    function = module.__dict__.get(kernel.entry)
    if not hasattr(function, "arg_names"):
        raise CodegenError(f"kernel {kernel.name}", f"{kernel.entry!r} in {kernel.file} is no @triton.jit function")
    return function


def _make_signature(kernel: Kernel, arg_names: list[str]) -> dict[str, str]:
    parameters = {name: _name_type(type_name) for name, type_name in kernel.parameters}
    run_time = [name for name in arg_names if name not in kernel.constants]
    if run_time != list(parameters):
        described = f"{kernel.entry} takes {', '.join(run_time)} besides its constants; the manifest lists {', '.join(parameters)}"
        raise CodegenError(f"kernel {kernel.name}", described, "list Kernel.parameters in the order of the signature")
    return {name: parameters.get(name, "constexpr") for name in arg_names}


def _name_type(type_name: str) -> str:
    star, name = ("*", type_name[1:]) if type_name.startswith("*") else ("", type_name)
    return star + _TRITON_TYPES.get(name, name)


def _read_resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread and bytes of its stack (spills and local arrays), as the bundled cuobjdump tells them."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = _RESOURCES.search(text)
    if found is None:
        raise CodegenError("cuobjdump", f"tells no resources of a cubin: {text.strip()!r:.300}")
    return int(found[1]), int(found[2])
