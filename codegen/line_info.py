"""Machine code that knows the lines of its source, for tools that show both. Its instructions are those of the kernel as it is shipped."""

from __future__ import annotations

import re
from typing import Any

from tilewright.codegen.aot_kernel import compile_kernel, triton_options
from tilewright.ir.manifest import Kernel

_INLINE_ASSEMBLY = re.compile(r"// begin inline asm.*?// end inline asm", re.DOTALL)
_LOCATION = re.compile(r"\n\t\.loc\t[^\n]*")


def compile_with_lines(kernel: Kernel, source: str, arch: str, modules: tuple[str, ...] = ()) -> bytes:
    """A cubin with line info. Raises CodegenError."""
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend

    ptx = correct_lines(compile_kernel(kernel, source, arch, modules, line_info=True).ptx)
    capability = int(arch.removeprefix("sm_"))
    backend: Any = make_backend(GPUTarget("cuda", capability, 32))
    with knobs.compilation.scope():
        knobs.compilation.disable_line_info = False
        return backend.make_cubin(ptx, {}, backend.parse_options(triton_options(kernel, capability)), capability)


def correct_lines(ptx: str) -> str:
    """LLVM counts the lines of inline assembly (which is what Triton's loads are) as lines of the source: those locations are taken out."""
    return _INLINE_ASSEMBLY.sub(lambda block: _LOCATION.sub("", block[0]), ptx)
