"""Runs generated Triton kernels on the CPU, one program after the other, beside Triton's compiler in the same process.

Numbers are those of the GPU up to the order of sums: bf16, fp8 and tf32 round as there. Programs never overlap, so kernels that wait
for one another hang.
"""

from __future__ import annotations

import functools
import inspect
import linecache
import threading
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tilewright.ir.errors import EngineError
from tilewright.runtime.triton_language import enter_language, make_argument
from tilewright.runtime.triton_memory import Memory
from tilewright.runtime.triton_rewrite import rewrite_module
from tilewright.runtime.triton_tiles import BUILDER

_LAUNCHING = threading.RLock()  # one launch at a time: the builder holds the running program


@dataclass(frozen=True, slots=True)
class TritonKernel:
    name: str  # as in the manifest
    function: Callable[..., None]  # rewritten to run on tiles
    parameters: tuple[str, ...]  # all of them, constexprs too, in the order of the signature
    defaults: dict[str, Any]


@functools.lru_cache(512)
def load_kernel(source: str, name: str, entry: str) -> TritonKernel:
    """Executes kernel source text; `entry` is the jit function to launch. The text stays visible to tracebacks."""
    filename = f"<triton {name}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    module = types.ModuleType(name)
    exec(compile(rewrite_module(source, filename), filename, "exec"), module.__dict__)
    if entry not in module.__dict__:
        raise EngineError(f"kernel {name}", f"its source has no function {entry!r}", "rebuild the engine")
    enter_language(module.__dict__)
    signature = inspect.signature(module.__dict__[entry]).parameters
    defaults = {key: p.default for key, p in signature.items() if p.default is not p.empty}
    return TritonKernel(name, module.__dict__[entry], tuple(signature), defaults)


def launch(
    kernel: TritonKernel,
    grid: tuple[int, int, int],
    args: Sequence[torch.Tensor | int | float],
    constants: dict[str, Any],
    checked: bool = False,
) -> None:
    """Runs all programs of the grid. `args` are the run-time arguments in the order of the signature, `constants` the constexprs.

    Accesses outside a tensor raise MemoryFault. `checked` also fills masked lanes without `other` with NaN, and finds races between
    programs, misaligned accesses and i32 overflow; it costs about twice the time.
    """
    memory = Memory(kernel.name, checked=checked)
    bound = _bind_arguments(kernel, memory, args, constants)
    with _LAUNCHING, np.errstate(all="ignore"):
        BUILDER.memory, BUILDER.grid = memory, grid
        BUILDER.options.debug = BUILDER.options.sanitize_overflow = checked
        for number in range(grid[0] * grid[1] * grid[2]):
            program = (number % grid[0], number // grid[0] % grid[1], number // (grid[0] * grid[1]))
            memory.enter(program, number)
            try:
                kernel.function(**bound)
            except EngineError:
                raise
            except Exception as error:
                error.add_note(f"in kernel {kernel.name}, program {program}")
                raise


def _bind_arguments(kernel: TritonKernel, memory: Memory, args: Sequence[Any], constants: dict[str, Any]) -> dict[str, Any]:
    unknown = [name for name in constants if name not in kernel.parameters]
    positional = [name for name in kernel.parameters if name not in constants]
    required = [name for name in positional if name not in kernel.defaults]
    if unknown or not len(required) <= len(args) <= len(positional):
        given = f"got {len(args)} arguments and the constants {', '.join(constants) or 'none'}"
        raise EngineError(f"kernel {kernel.name}", f"its parameters are {', '.join(kernel.parameters)}; {given}", "rebuild the engine")
    return {**constants, **{name: make_argument(memory, name, value) for name, value in zip(positional, args)}}
