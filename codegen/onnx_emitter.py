"""Walks a graph and emits the ONNX nodes of each op. Constants are evaluated once, one at a time, and handed to where weights are kept."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

from onnx import NodeProto, ValueInfoProto, helper
from torch import Tensor

import tilewright.codegen.onnx_attention  # noqa: F401  # imported for what it registers
from tilewright.codegen.onnx_body import ONNX_DTYPES, Body, GraphBody
from tilewright.codegen.onnx_nodes import NODES, attributes
from tilewright.ir.errors import CodegenError
from tilewright.ir.graph import Graph, Op, Value
from tilewright.ir.interpreter import evaluate_constant
from tilewright.ir.reference import QuantizedTensor
from tilewright.ir.types import Dim, TensorType
from tilewright.ir.weights import Weights


class Store(Protocol):
    def put(self, name: str, tensor: Tensor) -> None:
        """Keeps a tensor as an initializer of the model."""
        ...


class Emitter:
    """The state of one export; what the rules of `onnx_nodes` are given."""

    def __init__(self, graph: Graph, weights: Weights, body: GraphBody, store: Store) -> None:
        self.graph, self.weights, self.body, self.store = graph, weights, body, store
        self.scales: dict[Value, str] = {}  # of constants that are encoded
        self.written: dict[Value, tuple[str, str]] = {}  # keys and values behind a kv value
        self._named: set[Value] = set(graph.inputs)
        self._once: dict[Hashable, str] = {}
        self._op: Op | None = None
        body.names.update(v.name for v in graph.values())

    # -- the walk -------------------------------------------------------------------------------------------------------------
    def emit_all(self) -> None:
        """Raises CodegenError for an op that has no nodes."""
        for op in self.graph.ops:
            if not op.is_const:
                self._emit(op)
        for value in dict.fromkeys(self.graph.outputs):
            if value.is_const or value.producer is None:
                self.body.nodes.append(helper.make_node("Identity", [self.name(value)], [self.output_name(value)]))

    def output_name(self, value: Value) -> str:
        """A graph returns no input and no constant itself, so these are returned under another name."""
        return f"{value.name}/output" if value.is_const or value.producer is None else value.name

    def _emit(self, op: Op) -> None:
        if op.name not in NODES:
            raise CodegenError(f"onnx {op.results[0].display}", f"no ONNX nodes are known for the op {op.name}", "register some with @exports")
        self._op, self.body.stem = op, op.results[0].name
        start = len(self.body.nodes)
        made = NODES[op.name](self, op, *("" if v is None else self.name(v) for v in op.operands))
        if made:
            self._rename(made, op.results[0].name, start)
        for node in self.body.nodes[start:]:
            helper.set_metadata_props(node, self._describe(op))

    def _rename(self, made: str, name: str, start: int) -> None:
        for node in self.body.nodes[start:]:
            for names in (node.input, node.output):
                names[:] = [name if n == made else n for n in names]
        if not any(name in node.output for node in self.body.nodes[start:]):
            self.body.nodes.append(helper.make_node("Identity", [made], [name]))

    @staticmethod
    def _describe(op: Op) -> dict[str, str]:
        told = {"tilewright.op": op.name, "tilewright.modules": ", ".join(op.loc.modules), "tilewright.rules": ", ".join(op.loc.rules)}
        return {key: value for key, value in told.items() if value}

    # -- values ---------------------------------------------------------------------------------------------------------------
    def name(self, value: Value) -> str:
        """The value's name; a constant is evaluated and stored when it is first asked for."""
        if value.is_const and value not in self._named:
            self._named.add(value)
            tensor = self.constant_tensor(value)
            if isinstance(tensor, QuantizedTensor):
                self.scales[value] = self.body.fresh(f"{value.name}.scale")
                self.store.put(self.scales[value], tensor.scale)
                tensor = tensor.data
            self.store.put(value.name, tensor)
        return value.name

    def constant_tensor(self, value: Value) -> Tensor | QuantizedTensor:
        return evaluate_constant(value, self.weights)

    def dequantized(self, value: Value, dtype: str) -> str:
        """The name of a weight in `dtype`, whatever its encoding."""
        if value not in self.scales:
            return self.name(value)
        wide = self.once(("dequantized", value), f"{value.name}/f", lambda: self._dequantize(value))
        return self.once(("dequantized", value, dtype), f"{value.name}/{dtype}", lambda: self._as_dtype(wide, value, dtype))

    def _dequantize(self, value: Value) -> str:
        return self.body.node("DequantizeLinear", value.name, self.scales[value], axis=0)

    def _as_dtype(self, wide: str, value: Value, dtype: str) -> str:
        encoding = value.type.encoding
        return wide if encoding is not None and encoding.scale == dtype else self.cast(wide, dtype)

    # -- what rules share -----------------------------------------------------------------------------------------------------
    def once(self, key: Hashable, stem: str, make: Callable[[], str]) -> str:
        """The result of `make`, which emits nodes when it is first asked for."""
        if key not in self._once:
            self.body.stem, kept = stem, self.body.stem
            self._once[key] = make()
            self.body.stem = kept
        return self._once[key]

    def function(
        self, name: str, build: Callable[..., str], *inputs: str, op: str | None = None, attrs: Mapping[str, Any] | None = None
    ) -> str:
        """A call of a model-local function; `build(body, x0, x1, …)` writes its body and returns its result.

        op, attrs: what of the IR it is, where not the op that is being emitted.
        """
        assert self._op is not None
        body = Body(stem="y", names={f"x{i}" for i in range(len(inputs))})
        result = build(body, *(f"x{i}" for i in range(len(inputs))))
        return self.body.call(name, body, result, inputs, op or self._op.name, attributes(self._op) if attrs is None else attrs)

    def cast(self, x: str, dtype: str) -> str:
        return self.body.node("Cast", x, to=ONNX_DTYPES[dtype])

    def unsqueeze(self, x: str, axis: int = 0) -> str:
        return self.body.node("Unsqueeze", x, self.body.ints(axis))

    def slice(self, x: str, axis: int, start: int, stop: int, step: int = 1) -> str:
        steps = [self.body.ints(step)] if step != 1 else []
        return self.body.node("Slice", x, self.body.ints(start), self.body.ints(stop), self.body.ints(axis), *steps)

    def dim(self, symbol: str) -> str:
        """i64[1]: the size of a symbol in this step, read off an input that has it."""
        value = next((v for v in self.graph.inputs if symbol in v.type.shape), None)
        if value is None:
            raise CodegenError(f"onnx {self.graph.name}", f"no input has an axis {symbol}, so its size is not known")
        axis = value.type.shape.index(symbol)
        return self.once(("dim", symbol), f"dim/{symbol}", lambda: self.body.node("Shape", value.name, start=axis, end=axis + 1))

    def shape(self, shape: Sequence[Dim], *, may_guess: bool = False) -> str:
        """i64[rank]. may_guess: one symbol may be left to the operator, as -1."""
        symbols = [d for d in shape if isinstance(d, str)]
        if not symbols or (may_guess and len(symbols) == 1 and 0 not in shape):
            return self.body.ints(*(-1 if isinstance(d, str) else d for d in shape))
        parts = [self.dim(d) if isinstance(d, str) else self.body.ints(d) for d in shape]
        return self.once(("shape", *shape), "shape", lambda: self.body.node("Concat", *parts, axis=0))


def describe_value(name: str, type_: TensorType) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, ONNX_DTYPES[type_.dtype], list(type_.shape))


def describe_values(graph: Graph, nodes: Sequence[NodeProto]) -> list[ValueInfoProto]:
    """Types of what lies between inputs and outputs."""
    made = {name for node in nodes for name in node.output}
    return [describe_value(v.name, v.type) for v in graph.values() if v.name in made and v not in graph.outputs and v.type.dtype in ONNX_DTYPES]
