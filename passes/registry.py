"""Passes by name, and pipelines as text: `raise-norms,quantize{skip=lm_head},fuse-qkv`. A pass is a function or a frozen dataclass of options.

`@register_pass` and `@rewrite` register; so do modules named by entry points of the group `tilewright.passes`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any, Protocol

from tilewright.ir.errors import PassError
from tilewright.ir.graph import Graph
from tilewright.ir.opdef import Level, suggest
from tilewright.passes.pattern import Match, match, parse_pattern
from tilewright.passes.rewriter import Rewriter

ENTRY_POINTS = "tilewright.passes"
BUILT_IN = ("clean_up", "raise_norms", "raise_activations", "raise_linear", "raise_rotary", "tabulate_positions", "split_linear", "fuse_qkv",
            "fuse_gate_up", "gather_rows_early", "quantize", "split_attention")  # fmt: skip

Run = Callable[[Graph, Rewriter], None]


class PassObject(Protocol):
    """A configured pass: changes the graph through the rewriter, whose events count what it did."""

    def run(self, graph: Graph, rw: Rewriter) -> None: ...


@dataclass(frozen=True, slots=True)
class PassInfo:
    name: str
    make: Callable[..., PassObject]
    options: tuple[dataclasses.Field[Any], ...]
    doc: str
    tolerance: float | None  # relative error of the logits that the pass may add; None: rounding only
    levels: tuple[Level, ...]  # levels of ops that may stand after it; empty: as before
    per_layer: str  # "fuse-qkv fires once for each `attention`": the op name it is counted against; empty: any number
    module: str  # where it is defined


@dataclass(frozen=True, slots=True)
class Step:
    """A pass with its options, as a pipeline names it."""

    info: PassInfo
    options: tuple[tuple[str, Any], ...] = ()

    def make(self) -> PassObject:
        return self.info.make(**dict(self.options))

    def __str__(self) -> str:
        options = " ".join(f"{k}={_option_text(v)}" for k, v in self.options)
        return f"{self.info.name}{{{options}}}" if options else self.info.name


PASSES: dict[str, PassInfo] = {}


@dataclass(frozen=True)
class _FunctionPass:
    function: Run

    def run(self, graph: Graph, rw: Rewriter) -> None:
        self.function(graph, rw)


def register_pass(name: str, *, tolerance: float | None = None, levels: tuple[Level, ...] = (), per_layer: str = "") -> Callable[[Any], Any]:
    """Registers a function `(graph, rw)` or a frozen dataclass with `run(graph, rw)`. A second of the same name raises, naming both places."""

    def register(thing: Any) -> Any:
        place = f"{thing.__module__}.{thing.__qualname__}"
        if name in PASSES and PASSES[name].module != place:
            raise PassError(f"pass {name!r}", f"is registered by {PASSES[name].module} and again by {place}", "choose another name")
        is_class = isinstance(thing, type)
        options = dataclasses.fields(thing) if is_class else ()
        make = thing if is_class else lambda: _FunctionPass(thing)
        PASSES[name] = PassInfo(name, make, options, (thing.__doc__ or "").strip(), tolerance, levels, per_layer, place)
        return thing

    return register


Replace = Callable[[Match, Rewriter], "str | None"]


def rewrite(name: str, *patterns: str, tolerance: float | None = None, per_layer: str = "") -> Callable[[Replace], Replace]:
    """Registers a pass of one rule: where a pattern fits, the function rewrites through `rw` and returns None, or returns why not.

    Patterns are tried in order, each over the whole graph. Matches whose inner values are read from outside are refused before the
    function is asked, with that as the reason.
    """
    nodes = [parse_pattern(text) for text in patterns]

    def register(function: Replace) -> Replace:
        def run(graph: Graph, rw: Rewriter) -> None:
            for node in nodes:
                for op in rw.each(node.op):
                    found = match(node, op.results[0])
                    if found is not None:
                        _apply(found, function, rw)

        run.__module__, run.__qualname__, run.__doc__ = function.__module__, function.__qualname__, function.__doc__
        register_pass(name, tolerance=tolerance, per_layer=per_layer)(run)
        return function

    return register


def _apply(found: Match, function: Replace, rw: Rewriter) -> None:
    reason = found.leak(rw.graph) or function(found, rw)
    if reason:
        rw.missed(found.root, reason)


# -- pipelines ------------------------------------------------------------------------------------------------------------------
def load_passes() -> dict[str, PassInfo]:
    """Every pass: ours, then those of entry points."""
    for name in BUILT_IN:
        import_module(f"tilewright.passes.{name}")
    for point in metadata.entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except PassError:
            raise
        except Exception as error:
            raise PassError(f"entry point {point.name} = {point.value}", f"cannot be loaded: {error!r}", "fix or uninstall it") from error
    return PASSES


def parse_pipeline(text: str) -> tuple[Step, ...]:
    """Reads `name{option=value …},name,…`; newlines and `# comments` are allowed. Raises PassError."""
    passes = load_passes()
    plain = re.sub(r"#.*", "", text)
    steps: list[Step] = []
    for item in re.findall(r"[^,{]+(?:\{[^}]*\}?)?", plain):
        item = item.strip()
        if not item:
            continue
        parsed = re.fullmatch(r"([\w-]+)\s*(?:\{([^}]*)\})?", item)
        if parsed is None:
            raise PassError("pipeline", f"cannot read {item!r}", "write pass-name{option=value}")
        name = parsed[1]
        if name not in passes:
            raise PassError("pipeline", f"no pass named {name!r}", suggest(name, passes))
        steps.append(Step(passes[name], _parse_options(passes[name], parsed[2] or "")))
    return tuple(steps)


def print_pipeline(steps: Sequence[Step]) -> str:
    return ",".join(map(str, steps))


def _parse_options(info: PassInfo, text: str) -> tuple[tuple[str, Any], ...]:
    known = {f.name: f for f in info.options}
    options: list[tuple[str, Any]] = []
    for item in text.split():
        name, equals, value = item.partition("=")
        if not equals or name not in known:
            remedy = "it has no options" if not known else suggest(name, known) if name not in known else f"write {name}=value"
            raise PassError(f"pipeline: {info.name}", f"no option {name!r}" if equals else f"cannot read {item!r}", remedy)
        options.append((name, _parse_option(info, known[name], value)))
    return tuple(options)


def _parse_option(info: PassInfo, field: dataclasses.Field[Any], value: str) -> Any:
    kind = field.type if isinstance(field.type, str) else field.type.__name__
    readers: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str, "bool": {"true": True, "false": False}.__getitem__}
    try:
        return readers[kind](value)
    except (ValueError, KeyError):
        raise PassError(f"pipeline: {info.name}", f"{field.name}={value!r} is not {kind}") from None


def _option_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
