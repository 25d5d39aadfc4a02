"""A fault as one file that runs alone: the graph, the pass, and the value that comes out wrong. Exits 1 while the fault is there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tilewright.ir.fold import fold_text
from tilewright.ir.graph import Graph
from tilewright.passes.registry import BUILT_IN, ENTRY_POINTS, Step

TIMEOUT = 600  # seconds

SCRIPT = '''\
"""{title}

Exits 1 while the fault is there, 0 once it is gone:  python {name}
"""

import importlib.util
import sys
from zlib import crc32

import torch

from tilewright.ir.interpreter import interpret
from tilewright.ir.parser import parse_graph
from tilewright.ir.reference import TORCH_DTYPES
from tilewright.ir.types import Bounds
from tilewright.passes.manager import PassManager
from tilewright.passes.registry import load_passes

PASS = {step!r}
LIMIT = {limit!r}  # rewrites of the pass: the last of them is the faulty one; None: all
VALUE = {value!r}  # the tensor that the pass must not change
SOURCE = {source!r}  # where the pass is, if it is not installed: module name, file
MODEL = {model!r}  # checkpoint; None: weights are drawn by name
NUM_TOKENS = {num_tokens!r}
GRAPH = """
{graph}"""


class Drawn:
    """Weights that are the same each time for the same name; norm scales stay near 1."""

    def __init__(self, graph):
        self.types = {{name: value.type for name, value in graph.params.items()}}

    def load(self, name):
        type_ = self.types[name]
        noise = draw(name, type_.shape)
        wide = 1 + 0.1 * noise if len(type_.shape) == 1 else noise / max(1, type_.shape[-1]) ** 0.5
        return wide.to(TORCH_DTYPES[type_.dtype])


def draw(name, shape):
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(crc32(name.encode())))


def draw_input(graph, value):
    shape = [NUM_TOKENS if isinstance(d, str) else d for d in value.type.shape]
    if value.name in ("positions", "rows"):
        return torch.arange(shape[0], dtype=TORCH_DTYPES[value.type.dtype])
    if value.type.dtype in ("i32", "i64"):
        sizes = [u.inputs[0].type.shape[0] for u in value.users if u.name in ("embedding", "gather_rows") and u.inputs[0].is_const]
        return (draw(value.name, shape).abs() * 1e6).to(TORCH_DTYPES[value.type.dtype]) % min(sizes, default=5)
    return draw(value.name, shape).to(TORCH_DTYPES[value.type.dtype])


def load_weights(graph):
    if MODEL is None:
        return Drawn(graph)
    from tilewright.compiler import trace

    kinds = [v.type.dtype for v in graph.params.values() if v.type.dtype in ("f16", "bf16")]
    return trace(MODEL, kinds[0] if kinds else "f32").weights


def error(limit):
    """How far the pass moves VALUE, relative to it; and how many rewrites it made."""
    before = parse_graph(GRAPH.strip())
    before.dims.update({{name: Bounds(1, max(NUM_TOKENS, bounds.high)) for name, bounds in before.dims.items()}})
    inputs = {{value.name: draw_input(before, value) for value in before.inputs}}
    weights, after, found = load_weights(before), before.copy(), []
    (row,) = PassManager.of(PASS, limit=limit).run(after).rows
    for graph in (before, after):
        values = {{}}
        interpret(graph, inputs, weights, observe=lambda value, result: values.__setitem__(value.name, result))
        found.append(values[VALUE].double())
    return float((found[1] - found[0]).norm() / found[0].norm().clamp_min(1e-30)), len(row.events)


def verdict():
    """How far VALUE moves, and how far it may."""
    wrong, count = error(LIMIT)
    clean = error(count - 1)[0] if count > 1 else 0.0
    return wrong, max({tolerance!r}, 4 * clean)


def main():
    if SOURCE and PASS.partition("{{")[0] not in load_passes():
        spec = importlib.util.spec_from_file_location(*SOURCE)
        sys.modules[SOURCE[0]] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    wrong, allowed = verdict()
    print(f"{{PASS}} moves %{{VALUE}} by {{wrong:.2e}} (relative); {{allowed:.2e}} is rounding")
    return 0 if wrong <= allowed else 1


if __name__ == "__main__":
    sys.exit(main())
'''


@dataclass(frozen=True, slots=True)
class Attempt:
    graph: Graph
    limit: int | None
    model: str | None


def write_repro(
    file: Path, title: str, step: Step, value: str, tolerance: float, attempts: Iterator[Attempt], *, num_tokens: int = 7
) -> Attempt | None:
    """Writes the first attempt that fails when it is run in a process of its own; None, and no file, where none does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for attempt in attempts:
        file.write_text(render(file.name, title, step, value, tolerance, attempt, num_tokens), encoding="utf-8")
        if fails(file):
            return attempt
    file.unlink(missing_ok=True)
    return None


def render(name: str, title: str, step: Step, value: str, tolerance: float, attempt: Attempt, num_tokens: int = 7) -> str:
    return SCRIPT.format(
        name=name, title=title, step=str(step), value=value, tolerance=tolerance, graph=fold_text(attempt.graph), limit=attempt.limit,
        source=source_of(step), model=attempt.model, num_tokens=num_tokens,
    )  # fmt: skip


def fails(file: Path) -> bool:
    """Whether the file finds the fault: exit code 1, told apart from a crash by what it prints."""
    ended = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=TIMEOUT)
    return ended.returncode == 1 and "is rounding" in ended.stdout


def measure(text: str) -> tuple[float, float]:
    """What the file would find, in this process: how far the value moves, and how far it may. Raises what the file raises."""
    namespace: dict[str, Any] = {"__name__": "repro"}
    exec(compile(text, "repro.py", "exec"), namespace)
    return namespace["verdict"]()


def source_of(step: Step) -> tuple[str, str] | None:
    """Module and file of a pass that a fresh process would not find."""
    module = next(name for name in _parents(step.info.module) if name in sys.modules)
    installed = {f"tilewright.passes.{name}" for name in BUILT_IN} | {point.module for point in metadata.entry_points(group=ENTRY_POINTS)}
    file = sys.modules[module].__file__
    return None if module in installed or file is None else (module, str(Path(file).resolve()))


def _parents(name: str) -> list[str]:
    words = name.split(".")
    return [".".join(words[:count]) for count in range(len(words), 0, -1)]
