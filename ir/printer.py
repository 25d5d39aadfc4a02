"""Graph to text, one op per line, types always written. `parser.py` reads it back; `fold.py` shortens repeated layers for people."""

from __future__ import annotations

import json

from tilewright.ir.graph import Graph, Op, Value
from tilewright.ir.opdef import Attr

HEADER = "// tilewright-ir 1"


def print_graph(graph: Graph, *, note: str = "") -> str:
    """The whole graph, flat. `note` goes into the header line (model, pass, how to run it again)."""
    lines = [f"{HEADER}{'   ' + note if note else ''}", print_signature(graph)]
    lines += [f"  param {v.display} : {v.type}" for v in graph.params.values()]
    lines += [f"  {print_op(op)}" for op in graph.ops]
    lines += [f"  return {', '.join(v.display for v in graph.outputs)}", "}", ""]
    return "\n".join(lines)


def print_signature(graph: Graph) -> str:
    inputs = ", ".join(f"%{v.name}: {v.type}" for v in graph.inputs)
    dims = ", ".join(f"{name} in {b.low}..{b.high}" for name, b in graph.dims.items())
    return f"graph @{graph.name}({inputs}) dims({dims}) {{"


def print_op(op: Op) -> str:
    """`%a, %b = name(%x, @w) {attr=1} : type, type  loc(module path) by(rule, rule)`"""
    return f"{print_body(op, [v.display for v in op.results], [_display(v) for v in op.operands])}{print_loc(op)}"


def print_body(op: Op, results: list[str], operands: list[str]) -> str:
    attrs = print_attrs(op)
    types = ", ".join(str(v.type) for v in op.results)
    return f"{', '.join(results)} = {op.name}({', '.join(operands)}){' ' + attrs if attrs else ''} : {types}"


def print_attrs(op: Op) -> str:
    """Attributes that differ from their defaults, sorted."""
    if not op.attrs:
        return ""
    usual = op.definition.attrs
    shown = [f"{k}={print_attr(v)}" for k, v in sorted(op.attrs.items()) if v is not usual[k] and (v != usual[k] or type(v) is not type(usual[k]))]
    return f"{{{', '.join(shown)}}}" if shown else ""


def print_attr(value: Attr) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(print_attr(item) for item in value) + "]"
    if isinstance(value, str):
        return value if value.isidentifier() and value not in ("true", "false", "none", "inf", "nan") else json.dumps(value)
    return "none" if value is None else repr(value)


def print_loc(op: Op) -> str:
    modules = f"  loc({', '.join(op.loc.modules)})" if op.loc.modules else ""
    rules = f" by({', '.join(op.loc.rules)})" if op.loc.rules else ""
    return modules + rules


def _display(value: Value | None) -> str:
    return "none" if value is None else value.display
