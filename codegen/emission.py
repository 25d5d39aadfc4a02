"""What a template makes of a plan: the source of one kernel, or of a few launched one after the other, and how to launch each. Holds no code."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir.manifest import Extent

HEADER = "import triton\nimport triton.language as tl\n"


@dataclass(frozen=True, slots=True)
class Workspace:
    """Scratch of one emission: needs no initial value, and nothing after its last kernel. Counters are the exception, see `is_counters`."""

    name: str  # as a kernel parameter
    dtype: str
    shape: tuple[int | str, ...]  # T (tokens of the regime), B, or ints; row-major
    is_counters: bool = False  # i32 that are zero before each launch, and zero again after it


@dataclass(frozen=True, slots=True)
class KernelText:
    entry: str  # the @triton.jit function in `source`
    source: str  # stands alone: imports and all
    parameters: tuple[str, ...]  # run-time arguments in the order of the signature: of the plan, workspaces, then dims (T, S, B) as i32
    constants: dict[str, int]
    num_warps: int
    num_stages: int
    grid: tuple[Extent, Extent, Extent]
    dependent_launch: bool = False  # waits for the kernel before it by itself: may be launched early


@dataclass(frozen=True, slots=True)
class Emission:
    kernels: tuple[KernelText, ...]  # in launch order
    workspaces: tuple[Workspace, ...] = ()
