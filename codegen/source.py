"""Plan to source: the templates, by name and language. Knows neither the graph nor files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

from tilewright.codegen.emission import Emission
from tilewright.codegen.plan import KernelPlan, Language
from tilewright.ir.errors import CodegenError
from tilewright.ir.regions import Template

# notes: a comment for each op of the plan, to stand beside the line that computes it.
Emitter = Callable[[KernelPlan, Sequence[str]], Emission]
EMITTERS: dict[tuple[Template, Language], Emitter] = {}


def template(name: Template, language: Language) -> Callable[[Emitter], Emitter]:
    """Registers what emits a template in a language. A second registration raises, naming both places."""

    def register(emitter: Emitter) -> Emitter:
        if (name, language) in EMITTERS:
            raise CodegenError(f"template {name} in {language}", f"registered by {EMITTERS[name, language]} and again by {emitter}")
        EMITTERS[name, language] = emitter
        return emitter

    return register


def emit(plan: KernelPlan, notes: Sequence[str] = ()) -> Emission:
    """Source of a plan's kernels. Raises CodegenError for a plan that its template cannot serve."""
    name = "torch_emitter" if plan.language == "torch" else f"{plan.template}_template"
    import_module(f"tilewright.codegen.{name}")  # registers itself
    if (plan.template, plan.language) not in EMITTERS:
        raise CodegenError(f"kernel {plan.label}", f"no {plan.language} template {plan.template!r}")
    return EMITTERS[plan.template, plan.language](plan, tuple(notes) or ("",) * len(plan.ops))
