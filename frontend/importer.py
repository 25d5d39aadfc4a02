"""From a normalized trace to a Graph: names, types, provenance and parameters. Which op an ATen call becomes is in aten_table.

The unit batch axis goes: tensors become [T, ...], each dim an int or T (tokens of a step) or S (rows whose logits are wanted).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.export.graph_signature import InputKind
from torch.fx import Node
from torch.fx.node import map_arg

import tilewright.frontend.aten_layout
import tilewright.frontend.aten_math
import tilewright.ir.ops  # noqa: F401  # these three are imported for what they register
from tilewright.frontend.aten_table import RULES, Pieces, Shape, Traced, call_name, imports, reshaped, strip
from tilewright.frontend.capture import MAX_TOKENS, Capture
from tilewright.frontend.normalize import changes_shape_only, module_path, root_class, source_line
from tilewright.ir.errors import GraphError, TraceError
from tilewright.ir.graph import Graph, Value
from tilewright.ir.opdef import Attr
from tilewright.ir.types import Bounds, Dim, Loc, TensorType

# 64-bit integers of a trace are token ids and positions; 32 bits hold them.
DTYPES = {
    torch.float64: "f64", torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16",
    torch.int64: "i32", torch.int32: "i32", torch.int8: "i8", torch.bool: "i1",
}  # fmt: skip
INPUT_NAMES = {"input_ids": "ids", "positions": "positions", "rows": "rows"}


@dataclass(frozen=True, slots=True)
class Imported:
    graph: Graph
    constants: dict[str, Tensor]  # tensors that no checkpoint holds: rotary frequencies, ALiBi slopes
    num_attentions: int


def import_graph(capture: Capture, name: str) -> Imported:
    """Raises TraceError naming op, module path and source line where the graph has no op for a call."""
    importer = _Importer(capture, name)
    for node in capture.program.graph.nodes:
        importer.visit(node)
    graph = importer.graph
    _drop_dead(graph)
    graph.sort()
    constants = {name: tensor for name, tensor in importer.constants.items() if name in graph.params}
    return Imported(graph, constants, len(graph.find("attention")))


def _drop_dead(graph: Graph) -> None:
    for op in reversed(graph.ops):
        if not any(v.users or v in graph.outputs for v in op.results):
            graph.erase(op)
    for name in [name for name, value in graph.params.items() if not value.users]:
        graph.drop_param(name)


@dataclass(slots=True)
class _Importer:
    """Visits nodes in order; is the Emitter of the rules for the node that it is at."""

    capture: Capture
    name: str
    graph: Graph = field(init=False)
    constants: dict[str, Tensor] = field(default_factory=dict)
    _symbols: dict[str, Dim] = field(default_factory=dict)
    _traced: dict[Node, Any] = field(default_factory=dict)
    _results: set[Node] = field(default_factory=set)  # nodes that give the result of a module without submodules
    _node: Node = field(init=False)

    def __post_init__(self) -> None:
        limit = Bounds(1, MAX_TOKENS)
        self.graph = Graph(self.name, {"T": limit, "S": limit})
        program = self.capture.program
        self._results = _module_results(program.graph.nodes)
        for node in program.graph.find_nodes(op="placeholder"):
            if node.name in INPUT_NAMES:
                self._symbols[str(node.meta["val"].shape[0])] = "S" if node.name == "rows" else "T"

    # -- nodes ----------------------------------------------------------------------------------------------------------------
    def visit(self, node: Node) -> None:
        self._node = node
        if node.op == "placeholder":
            self._visit_placeholder(node)
        elif node.op == "get_attr":
            self._traced[node] = self._constant(node.meta["constant"], self.capture.constants[node.meta["constant"]])
        elif node.op == "output":
            self.graph.outputs = [self._as_f32(self._traced[n].value) for n in node.args[0]]  # type: ignore[union-attr]  # a tuple of nodes
        elif isinstance(node.meta["val"], Tensor | tuple | list):
            self._visit_call(node)

    def _as_f32(self, logits: Value) -> Value:
        """Engines sample from f32, whatever the model computes in."""
        if logits.type.dtype == "f32" or logits.producer is None:
            return logits
        return self.graph.emit("cast", [logits], {"dtype": "f32"}, names=[f"{logits.name}.f32"], loc=logits.producer.loc).result

    def _visit_placeholder(self, node: Node) -> None:
        spec = next(s for s in self.capture.program.graph_signature.input_specs if s.arg.name == node.name)
        if spec.kind == InputKind.USER_INPUT:
            value = self.graph.add_input(INPUT_NAMES[node.name], self._type(node))
            self._traced[node] = Traced(value, value.type.shape)
            return
        name = str(spec.target).partition(".")[2]
        if not node.users:
            return
        if spec.kind == InputKind.CONSTANT_TENSOR:
            raise TraceError(name, "the model makes a tensor constant while it runs, which a trace without data cannot keep")
        if name in self.capture.skeleton.constants:
            self._traced[node] = self._constant(name, self.capture.skeleton.buffers[name])
            return
        shape = tuple(int(d) for d in node.meta["val"].shape)
        name = self.capture.skeleton.tied.get(name, name)
        self._traced[node] = Traced(self.graph.add_param(name, TensorType(self._dtype(node.meta["val"]), shape)), shape)

    def _constant(self, name: str, tensor: Tensor) -> Traced:
        """Equal tensors become one parameter, under the first name."""
        tensor = tensor.to(torch.int32) if tensor.dtype == torch.int64 else tensor
        for known, other in self.constants.items():
            if other.dtype == tensor.dtype and other.shape == tensor.shape and torch.equal(other, tensor):
                return Traced(self.graph.params[known], tuple(tensor.shape))
        self.constants[name] = tensor.contiguous()
        return Traced(self.graph.add_param(name, TensorType(DTYPES[tensor.dtype], tuple(tensor.shape))), tuple(tensor.shape))

    def _visit_call(self, node: Node) -> None:
        rule = RULES.get(node.target)
        if rule is None:
            raise self.refuse("is not in the table of supported ops")
        args, kwargs = map_arg((node.args, node.kwargs), self._traced.get)
        args = tuple(list(a) if isinstance(a, tuple | list) else a for a in args)
        try:
            result = rule(self, *args, **kwargs)
            self._traced[node] = result if isinstance(result, Pieces) else self._conform(result)
        except (GraphError, TypeError) as error:
            raise self.refuse(str(error)) from error

    def _conform(self, value: Value) -> Traced:
        shape, dtype = self.result_shape(), self.result_dtype()
        if value.type.dtype != dtype:
            raise self.refuse(f"became {value.type}, traced as {dtype}[{', '.join(map(str, shape))}]")
        return Traced(reshaped(self, value, strip(shape)), shape)

    # -- the Emitter of the rules ---------------------------------------------------------------------------------------------
    def emit(self, op: str, *operands: Value | None, **attrs: Attr | Shape) -> Value:
        path = module_path(self._node)
        is_result = self._node in self._results and path and not self.graph.has_name(path)
        return self._emit(op, operands, attrs, path if is_result else None)

    def prepare(self, op: str, *operands: Value | None, **attrs: Attr | Shape) -> Value:
        return self._emit(op, operands, attrs, None)

    def _emit(self, op: str, operands: tuple[Value | None, ...], attrs: Mapping[str, Attr | Shape], name: str | None) -> Value:
        path, line = module_path(self._node), source_line(self._node)
        name = name or self.graph.fresh_name(f"{path}.{op}" if path else op)
        module = path or root_class(self._node)
        loc = Loc((module,) if module else (), (line,) if line else ())
        return self.graph.emit(op, operands, attrs, names=[name], loc=loc).result  # type: ignore[arg-type]  # shapes may hold symbols

    def result_shape(self) -> Shape:
        return self._shape(self._node.meta["val"])

    def result_dtype(self) -> str:
        return self._dtype(self._node.meta["val"])

    def refuse(self, problem: str) -> TraceError:
        place = ", ".join(x for x in (module_path(self._node), source_line(self._node)) if x)
        return TraceError(f"op {call_name(self._node)} at {place}", problem, "this architecture cannot be compiled yet")

    # -- types ----------------------------------------------------------------------------------------------------------------
    def _type(self, node: Node) -> TensorType:
        return TensorType(self._dtype(node.meta["val"]), self._shape(node.meta["val"]))

    def _dtype(self, tensor: Tensor) -> str:
        if tensor.dtype not in DTYPES:
            raise self.refuse(f"makes a tensor of {tensor.dtype}")
        return DTYPES[tensor.dtype]

    def _shape(self, tensor: Tensor) -> Shape:
        return tuple(self._dim(d) for d in tensor.shape)

    def _dim(self, size: int | torch.SymInt) -> Dim:
        if isinstance(size, int):
            return size
        if str(size) not in self._symbols:
            raise self.refuse(f"has an axis of size {size}, neither fixed nor the number of tokens")
        return self._symbols[str(size)]


def _module_results(nodes: Any) -> set[Node]:
    """The last call of each module that has no submodules, passing over calls that only rename axes."""
    last: dict[str, Node] = {}
    for node in nodes:
        if node.op == "call_function" and isinstance(node.meta.get("val"), Tensor) and not changes_shape_only(node):
            last[module_path(node)] = node
    containers = {path.rpartition(".")[0] for path in last}
    for path in list(containers):
        while path := path.rpartition(".")[0]:
            containers.add(path)
    return {node for path, node in last.items() if path not in containers}


@imports(torch.ops.tilewright.attention.default)
def _attention(
    e: _Importer, q: Traced, k: Traced, v: Traced, layer: str, scale: float, window: int | None, softcap: float | None,
    sinks: Traced | None, slopes: Traced | None,
) -> Value:  # fmt: skip
    """q[T, heads, d], k[T, kv_heads, d], v[T, kv_heads, e]; in the graph heads and their elements share an axis."""
    if sinks is not None:
        raise e.refuse("attention sinks have no op yet")
    flat = [reshaped(e, t.value, (t.shape[0], int(t.shape[1]) * int(t.shape[2]))) for t in (q, k, v)]
    index = len(e.graph.find("attention"))
    return e.emit(
        "attention", *flat, slopes and slopes.value,
        heads=q.shape[1], kv_heads=k.shape[1], scale=scale, layer=index, window=window, softcap=softcap,
    )  # fmt: skip
