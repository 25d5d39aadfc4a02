"""Brings an exported program to a small functional form: no mutation, asserts, strides or ops that change nothing. Knows ATen, not our graph."""

from __future__ import annotations

from pathlib import Path
from re import findall
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, Node
from torch.fx.node import map_arg

ATEN = torch.ops.aten

# No op keeps strides: a view is a reshape, a clone is its operand.
_RESHAPES = (ATEN.view.default, ATEN._unsafe_view.default)
_CASTS = (ATEN.to.dtype, ATEN.to.device, ATEN.to.dtype_layout, ATEN.type_as.default)
_COPIES = (ATEN.clone.default, ATEN.contiguous.default, ATEN.alias.default, ATEN.lift_fresh_copy.default, ATEN.detach.default)
_NO_OPS_WHEN_SAME_TYPE = (
    ATEN._to_copy.default,
    ATEN.expand.default,
    ATEN.slice.Tensor,
    ATEN.reshape.default,
    ATEN.flatten.using_ints,
    ATEN.repeat.default,
)
_AXIS_OPS = (ATEN.reshape.default, ATEN.flatten.using_ints, ATEN.unsqueeze.default, ATEN.squeeze.dim, ATEN.squeeze.dims, ATEN.squeeze.default)


def normalize(program: ExportedProgram) -> ExportedProgram:
    """The same function as a functional graph. Every remaining call keeps its module path and source line in `meta`."""
    if any(_mutates(node) for node in program.graph.nodes):
        program = program.run_decompositions({})  # functionalises; takes longer than the export, so only where it is needed
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is ATEN._assert_tensor_metadata.default:
            graph.erase_node(node)
        else:
            _canonicalize(node)
    for node in list(graph.nodes):
        if changes_nothing(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    drop_dead_nodes(graph)
    return program


def _mutates(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _canonicalize(node: Node) -> None:
    """One spelling for calls that have several."""
    if node.target in _RESHAPES:
        node.target = ATEN.reshape.default
    elif node.target in _CASTS:
        node.target, node.args, node.kwargs = ATEN._to_copy.default, node.args[:1], {"dtype": node.meta["val"].dtype}
    elif node.target is ATEN.numpy_T.default:
        node.target, node.args = ATEN.permute.default, (node.args[0], list(range(node.meta["val"].dim()))[::-1])
    elif node.target is ATEN.broadcast_to.default:
        node.target = ATEN.expand.default
    elif node.target is ATEN.cat.default:
        _drop_empty_parts(node)


def _drop_empty_parts(cat: Node) -> None:
    parts = [part for part in cat.args[0] if 0 not in part.meta["val"].shape]  # type: ignore[union-attr]  # a list of nodes
    if len(parts) == 1:
        cat.replace_all_uses_with(parts[0])  # type: ignore[arg-type]  # a node
    cat.args = (parts, *cat.args[1:])


def changes_nothing(node: Node) -> bool:
    """Whether a call returns its first operand: a copy, or a cast, view, slice or broadcast to the type that it already has."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return False
    if node.target in _COPIES:
        return True
    if node.target is ATEN.dropout.default:
        return not node.args[2]
    return node.target in _NO_OPS_WHEN_SAME_TYPE and has_same_type(node, node.args[0])


def has_same_type(a: Node, b: Node) -> bool:
    """Equal dtype and shape, symbols compared by name."""
    x, y = a.meta.get("val"), b.meta.get("val")
    if not isinstance(x, torch.Tensor) or not isinstance(y, torch.Tensor):
        return False
    return x.dtype == y.dtype and [str(d) for d in x.shape] == [str(d) for d in y.shape]


def changes_shape_only(node: Node) -> bool:
    """Whether a call only adds or removes unit axes, or names its operand's elements anew."""
    return node.target in _AXIS_OPS


def drop_dead_nodes(graph: Graph) -> None:
    """Erases calls without users; asserts on sizes, which guard but compute nothing, go too."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)


def module_path(node: Node) -> str:
    """The innermost module that made a call, without the traced root: `model.layers.0.mlp.gate_proj`."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = list(stack.values())[-1][0]
    return path.partition(".")[2]


def root_class(node: Node) -> str:
    """The class of the model where a call stands in its own `forward`, outside of every part of it: `Gemma2ForCausalLM`; else ''."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path, kind = list(stack.values())[-1]
    name = kind if isinstance(kind, str) else kind.__qualname__
    return name.rpartition(".")[2] if path and "." not in path else ""


def source_line(node: Node) -> str:
    """`transformers/models/llama/modeling_llama.py:259`: the deepest line of a modeling file, or ''."""
    frames = findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    places = [(Path(file), line) for file, line in frames if "transformers" in file]
    modeling = [place for place in places if place[0].name.startswith("modeling_") and place[0].name != "modeling_rope_utils.py"]
    found = modeling or places
    return f"{_from_package(found[-1][0])}:{found[-1][1]}" if found else ""


def _from_package(file: Path) -> str:
    """The path from the package on, as it is on every machine."""
    start = max((at for at, part in enumerate(file.parts) if part in ("transformers", "transformers_modules")), default=len(file.parts) - 1)
    return "/".join(file.parts[start:])


def insert_call(graph: Graph, before: Node, target: object, *args: object, **kwargs: object) -> Node:
    """A new call ahead of `before`, typed by running the op on fake tensors, with the provenance of `before`."""
    with graph.inserting_before(before):
        node = graph.call_function(target, args, kwargs)  # type: ignore[arg-type]  # an ATen overload
    values: Any = map_arg((args, kwargs), lambda n: n.meta["val"])  # type: ignore[arg-type]  # nodes, numbers, and lists of them
    node.meta["val"] = target(*values[0], **values[1])  # type: ignore[operator]  # an ATen overload
    node.meta["nn_module_stack"] = before.meta.get("nn_module_stack")
    node.meta["stack_trace"] = before.meta.get("stack_trace")
    return node
