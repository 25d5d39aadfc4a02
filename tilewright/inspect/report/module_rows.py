"""The tree of HF modules, equal layers once: what is left of each in the final graph, which kernels compute it, and who folded the rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tilewright.inspect.blame import stages
from tilewright.inspect.blame_places import module_paths, owner
from tilewright.inspect.report.names import template_of, with_parents
from tilewright.inspect.run import Run
from tilewright.ir.graph import Graph


@dataclass(frozen=True, slots=True)
class ModuleRow:
    path: str  # {L} for the layer
    count: int  # modules that it stands for
    depth: int
    ops_imported: int  # of it and what is inside it, over all layers
    ops: int  # the same in the final graph
    weight_bytes: int  # of its parameters as imported
    kernels: tuple[str, ...]
    folded_by: str  # the pass after which no op of it was left; empty where some are


@dataclass
class _Seen:
    paths: dict[str, None] = field(default_factory=dict)
    weight_bytes: int = 0
    kernels: dict[str, None] = field(default_factory=dict)


def collect_modules(run: Run) -> tuple[ModuleRow, ...]:
    templates: dict[str, list[str]] = {}

    def lineage(path: str) -> list[str]:
        """Templates of the module and its parents."""
        if path not in templates:
            templates[path] = [template_of(parent, run.layers)[0] for parent in with_parents(path)]
        return templates[path]

    seen: dict[str, _Seen] = {}
    for path in module_paths(run):
        seen.setdefault(lineage(path)[-1], _Seen()).paths[path] = None
    for value in run.graph(0).params.values():
        for template in lineage(owner(value.name)):
            seen.setdefault(template, _Seen()).weight_bytes += value.type.num_bytes({})
    for kernel, modules in _launched(run):
        for template in dict.fromkeys(t for module in modules for t in lineage(module)):
            seen.setdefault(template, _Seen()).kernels[kernel] = None

    def count(graph: Graph) -> dict[str, int]:
        found: dict[str, int] = {}
        for op in graph.ops:
            for template in dict.fromkeys(t for module in op.loc.modules for t in lineage(module)):
                found[template] = found.get(template, 0) + 1
        return found

    counts = [(record.number if record else 0, count(graph)) for record, graph in stages(run)]
    (_, first), (_, last) = counts[0], counts[-1]
    order = _tree_order(seen)
    return tuple(
        ModuleRow(
            path, max(1, len(seen[path].paths)), path.count("."), first.get(path, 0), last.get(path, 0),
            seen[path].weight_bytes, tuple(seen[path].kernels), _folded_by(run, path, counts),
        )
        for path in order
    )  # fmt: skip


def _launched(run: Run) -> Iterable[tuple[str, tuple[str, ...]]]:
    for program in run.engine.manifest.programs if run.engine else ():
        yield from ((launch.kernel, launch.modules) for launch in program.launches)


def _folded_by(run: Run, path: str, counts: list[tuple[int, dict[str, int]]]) -> str:
    if counts[-1][1].get(path) or not any(found.get(path) for _, found in counts):
        return ""
    last = max(at for at, (_, found) in enumerate(counts) if found.get(path))
    return run[counts[last + 1][0]].stem.replace("-", " ", 1)


def _tree_order(paths: Iterable[str]) -> list[str]:
    """Parents first, siblings as they came."""
    known = dict.fromkeys(paths)
    children: dict[str, list[str]] = {}
    for path in known:
        parent = path.rpartition(".")[0]
        children.setdefault(parent if parent in known else "", []).append(path)
    order: list[str] = []
    stack = list(reversed(children.get("", [])))
    while stack:
        path = stack.pop()
        order.append(path)
        stack += reversed(children.get(path, []))
    return order
