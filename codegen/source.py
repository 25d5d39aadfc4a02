"""Plan to source: the templates, by name and language. A template gives one kernel or several that run one after the other (split, then reduce).

Knows neither the graph nor files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from tilewright.codegen.plan import KernelPlan, Language
from tilewright.ir.errors import CodegenError
from tilewright.ir.manifest import Extent
from tilewright.ir.regions import Template

ONE = Extent()


@dataclass(frozen=True, slots=True)
class Workspace:
    """Scratch memory that the kernels of one region share; not kept between regions. Shape holds T, S, B or ints."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class EmittedKernel:
    """One source file. `arguments` names what is passed, in order of the signature: plan parameters, workspaces, and the dims T, S, B."""

    source: str  # whole file but for the header comment; a triton file imports only triton
    entry: str
    arguments: tuple[str, ...]
    grid: tuple[Extent, Extent, Extent] = (ONE, ONE, ONE)
    suffix: str = ""  # of the kernel's name, where a plan has more than one kernel
    constants: tuple[tuple[str, int | float | bool], ...] = ()
    num_warps: int = 4
    num_stages: int = 3
    dependent_launch: bool = False


@dataclass(frozen=True, slots=True)
class Emitted:
    kernels: tuple[EmittedKernel, ...]  # in launch order
    workspaces: tuple[Workspace, ...] = ()


# notes: a comment for each op of the plan.
Emitter = Callable[[KernelPlan, Sequence[str]], Emitted]
EMITTERS: dict[tuple[Template, Language], Emitter] = {}


def template(name: Template, language: Language) -> Callable[[Emitter], Emitter]:
    """Registers what emits a template in a language. A second registration raises, naming both places."""

    def register(emitter: Emitter) -> Emitter:
        if (name, language) in EMITTERS:
            raise CodegenError(f"template {name} in {language}", f"registered by {EMITTERS[name, language]} and again by {emitter}")
        EMITTERS[name, language] = emitter
        return emitter

    return register


def emit(plan: KernelPlan, notes: Sequence[str] = ()) -> Emitted:
    """Source of a plan's kernels. Raises CodegenError for a plan that its template cannot serve."""
    name = "torch_emitter" if plan.language == "torch" else f"{plan.template}_template"
    import_module(f"tilewright.codegen.{name}")  # registers itself
    if (plan.template, plan.language) not in EMITTERS:
        raise CodegenError(f"kernel {plan.label}", f"no {plan.language} template {plan.template!r}")
    return EMITTERS[plan.template, plan.language](plan, tuple(notes) or ("",) * len(plan.ops))


TRITON_IMPORTS = "import triton\nimport triton.language as tl\n\n\n"
