"""Where a kernel came from, as comments: module paths folded over layers, what is read and written, why it was cut there.

Depends on the order of regions alone, so that the same graph gives the same text.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

from tilewright.codegen.plan import KernelPlan, Parameter, PlanOp, short_label
from tilewright.ir.graph import Op
from tilewright.ir.places import fold_lines
from tilewright.ir.regions import Region

_GATHERS = ("embedding", "gather_rows")
_VIEWS = ("reshape", "slice", "expand", "cast")
_WIDTH = 150
_FEW = 3  # names shown in a note


def fold_paths(paths: Iterable[str]) -> list[str]:
    """`layers.0.mlp, layers.1.mlp, layers.0.norm` -> `layers.{0..1}.mlp`, `layers.0.norm`, in order of first appearance."""
    numbers: dict[tuple[str, ...], dict[int, None]] = {}
    for path in paths:
        words = path.split(".")
        place = next((i for i, word in enumerate(words) if word.isdigit()), None)
        if place is None:
            numbers.setdefault((path,), {})
        else:
            numbers.setdefault((".".join(words[:place]), ".".join(words[place + 1 :])), {})[int(words[place])] = None
    return [key[0] if len(key) == 1 else ".".join(w for w in (key[0], _range(sorted(found)), key[1]) if w) for key, found in numbers.items()]


def join_siblings(paths: Sequence[str]) -> list[str]:
    """`a.q_proj, a.k_proj` -> `a.{q_proj,k_proj}`."""
    children: dict[str, list[str]] = {}
    for path in paths:
        parent, _, child = path.rpartition(".")
        children.setdefault(parent, []).append(child)
    joined: list[str] = []
    for parent, names in children.items():
        last = names[0] if len(names) == 1 else "{" + ",".join(names) + "}"
        joined.append(f"{parent}.{last}" if parent else ", ".join(names))
    return joined


def _range(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    if list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{{{numbers[0]}..{numbers[-1]}}}"
    return "{" + ",".join(map(str, numbers)) + "}"


def op_notes(plan: KernelPlan, regions: Sequence[Region]) -> tuple[str, ...]:
    """For each op of the plan: `%name  module  file:line`, over all regions that share the kernel."""
    return tuple(_note([region.ops[i] for region in regions]) for i in range(len(plan.ops)))


def _note(ops: Sequence[Op]) -> str:
    names = list(dict.fromkeys("%" + short_label(op.results[0].name) for op in ops))
    modules = join_siblings(fold_paths(m for op in ops for m in op.loc.modules))
    lines = [line.rpartition("/")[2] for line in fold_lines(line for op in ops for line in op.loc.sources)]
    return "  ".join(part for part in (_few(names), _few(modules), _few(lines)) if part)


def _few(items: Sequence[str]) -> str:
    return ", ".join(items[:_FEW]) + (f", … {len(items) - _FEW} more" if len(items) > _FEW else "")


def header(plan: KernelPlan, regions: Sequence[Region]) -> str:
    """The comment that opens a kernel's file."""
    flow = " → ".join(_describe(plan, op) for op in plan.ops if op.op not in _VIEWS) or "views"
    modules = join_siblings(fold_paths(m for region in regions for m in region.modules))
    reads = [_show(p) for p in plan.inputs]
    pages = any(p.role == "k_cache" for p in plan.inputs) and any(op.op == "write_kv" for op in plan.ops)
    writes = [_show(p) for p in plan.outputs] + (["kv pages"] if pages else [])
    lines = [
        f"# {plan.label}: {flow}    plan {plan.digest}   regime {_regime(plan)}",
        *_wrap("from", ", ".join(modules) or "the graph"),
        *_wrap("lines", ", ".join(fold_lines(line for region in regions for op in region.ops for line in op.loc.sources))),
        *_wrap("reads", f"{', '.join(reads)}    {_bytes_text(plan)}"),
        *_wrap("writes", ", ".join(writes)),
        *_wrap("cut", "; ".join(dict.fromkeys(r.reason for r in regions if r.reason)) or "end of the graph"),
    ]
    return "\n".join(lines) + "\n"


def _wrap(word: str, text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=f"# {word:<7} ", subsequent_indent="#         ", break_long_words=False, break_on_hyphens=False)


def _regime(plan: KernelPlan) -> str:
    size = f"T<={plan.max_tokens}" if plan.max_tokens else "any T"
    return size if plan.kind == "any" else f"{plan.kind}, {size}"


def _describe(plan: KernelPlan, op: PlanOp) -> str:
    if op.op == "linear":
        weight = op.operands[1]
        assert weight is not None
        return f"linear {plan.type_of(weight).dtype}"
    return op.op


def _show(p: Parameter) -> str:
    return f"{p.name} {re.sub(', ', ',', str(p.type))}"


def _bytes_text(plan: KernelPlan) -> str:
    amount = sum(bytes_read(plan, p) for p in plan.inputs)
    unit, size = next((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3), ("B", 1)) if amount >= s or s == 1)
    text = f"{amount / size:.3g} {unit} at T=1"
    return text + (" beside the pages of the context" if plan.template == "attend" else "")


def bytes_read(plan: KernelPlan, parameter: Parameter) -> int:
    """Bytes of a parameter that one token makes the kernel read; of a table that is gathered from, one row. Pages are not counted."""
    if parameter.role in ("k_cache", "v_cache"):
        return 0
    dims = {"T": 1, "S": 1, "B": 1, "B1": 2, "P": 1}
    size = parameter.type.num_bytes(dims)
    users = plan.users(parameter.value) if parameter.role in ("weight", "buffer") else []
    is_table = bool(users) and all(op.op in _GATHERS and op.operands[0] == parameter.value for op in users)
    rows = parameter.type.shape[0] if parameter.type.shape else 1
    return size // rows if is_table and isinstance(rows, int) else size
