"""Walks the nodes of an ONNX graph. Each name stands for an IR value, a tensor of the file, or sizes known while importing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper
from torch import Tensor

import tilewright.frontend.onnx_attention
import tilewright.frontend.onnx_layout
import tilewright.frontend.onnx_pointwise
import tilewright.frontend.onnx_products
import tilewright.frontend.onnx_quantize  # noqa: F401  # these are imported for what they register
from tilewright.frontend.onnx_import import stands_for
from tilewright.frontend.onnx_masks import Mask, needed_nodes, read_masks
from tilewright.frontend.onnx_names import Names, drop_dead, read_bounds, rename
from tilewright.frontend.onnx_sizes import fold_sizes
from tilewright.frontend.onnx_table import CLAIMS, Result, Shape, Sizes
from tilewright.frontend.onnx_tensors import OnnxWeights, dtype_of, read_tensor
from tilewright.ir.errors import GraphError, TraceError
from tilewright.ir.graph import Graph, Value
from tilewright.ir.opdef import OPS, Attr
from tilewright.ir.reference import DTYPE_NAMES
from tilewright.ir.types import Dim, Loc, TensorType
from tilewright.ir.verifier import verify

MAX_SIZES = 64  # elements of a tensor of whole numbers that is looked at as sizes
MODULE = re.compile(r"[A-Za-z_][\w./-]*")


class Importer:
    def __init__(self, proto: ModelProto, folder: Path, dims: dict[str, int | str], known: Mapping[str, Sequence[int]]) -> None:
        self.proto, self.folder, self.dims, self.known = proto, folder, dims, known
        self.opset = max((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), default=1)
        self.told = {p.key: p.value for p in proto.metadata_props}
        self.functions = {f.name: op for f in proto.functions if (op := stands_for(f)) is not None}
        name = re.sub(r"[^\w./<>-]", "_", proto.graph.name) or "graph"
        self.graph = Graph(name, {})
        self.names = Names(self.graph)
        self.slots: dict[str, Value | Sizes | TensorProto] = {}
        self.sources: dict[str, TensorProto | Tensor] = {}
        self.onnx_types = _types(proto)
        self.masks: dict[str, Mask] = {}  # that are understood
        self.encoded: dict[Value, tuple[Value, Value]] = {}  # dequantized weights: their integers and scales

    def run(self) -> Graph:
        """Raises TraceError."""
        graph = self.proto.graph
        if graph.sparse_initializer:
            raise TraceError(f"onnx {graph.name}", "has sparse weights", "make them dense")
        self.slots |= {t.name: t for t in graph.initializer}
        inputs = [i for i in graph.input if i.name not in self.slots]
        self._name_symbols(inputs)
        for info in inputs:
            self._add_input(info)
        self.masks = read_masks(self.proto, {n: v.type for n, v in self.slots.items() if isinstance(v, Value)})
        for node in needed_nodes(self.proto, self.masks):
            self._visit(node)
        self.graph.outputs = [self.value(o.name) for o in graph.output]
        drop_dead(self.graph)
        self.graph.sort()
        self.graph = self._renamed()
        verify(self.graph)
        return self.graph

    def _renamed(self) -> Graph:
        """The graph with its values under the names that the file has for them: of several, the first that is no path of an exporter's own."""
        told: dict[Value, str] = {}
        for name, slot in self.slots.items():
            if isinstance(slot, Value) and slot.producer is not None and (("/" not in name and "/" in told.get(slot, "/")) or slot not in told):
                told[slot] = name
        return rename(self.graph, told)

    def weights(self) -> OnnxWeights:
        return OnnxWeights({name: self.sources[name] for name in self.graph.params}, self.folder)

    # -- inputs ---------------------------------------------------------------------------------------------------------------
    def _name_symbols(self, inputs: Sequence[ValueInfoProto]) -> None:
        """A single free symbol is the number of tokens."""
        found = [d.dim_param for i in inputs for d in i.type.tensor_type.shape.dim if d.dim_param]
        free = list(dict.fromkeys(name for name in found if name not in self.dims))
        if len(free) == 1 and "T" not in self.dims.values():
            self.dims[free[0]] = "T"

    def _add_input(self, info: ValueInfoProto) -> None:
        if not info.type.HasField("tensor_type"):
            raise TraceError(f"onnx input {info.name}", "is no tensor", "sequences, maps and optional values are not read")
        if info.name in self.known:
            items = self.known[info.name]
            self.slots[info.name] = Sizes(tuple(int(i) for i in items), len(info.type.tensor_type.shape.dim))
            return
        tensor = info.type.tensor_type
        shape = tuple(self._dim(info.name, axis, d) for axis, d in enumerate(tensor.shape.dim))
        type_ = TensorType(dtype_of(tensor.elem_type, f"onnx input {info.name}"), shape)
        self.slots[info.name] = self.graph.add_input(self.names.value(info.name), type_)

    def _dim(self, name: str, axis: int, dim: Any) -> Dim:
        if dim.HasField("dim_value"):
            return int(dim.dim_value)
        if not dim.dim_param:
            raise TraceError(f"onnx input {name}", f"axis {axis} has neither a size nor a name", "name it, or give it a size")
        chosen = self.dims.get(dim.dim_param, dim.dim_param)
        if isinstance(chosen, int):
            return chosen
        symbol = self.names.symbol(str(chosen))
        self.graph.dims.setdefault(symbol, read_bounds(self.told, symbol))
        return symbol

    # -- nodes ----------------------------------------------------------------------------------------------------------------
    def _visit(self, node: NodeProto) -> None:
        view = NodeView(self, node)
        try:
            results = view.results()
        except (GraphError, IndexError) as error:
            raise view.refuse(str(error)) from error
        for name, result in zip(node.output, results):
            if name and result is not None:
                self.slots[name] = result

    # -- values ---------------------------------------------------------------------------------------------------------------
    def value(self, name: str) -> Value:
        """Raises TraceError for a name that nothing defines."""
        slot = self.slots.get(name)
        if slot is None:
            raise TraceError(f"onnx {name}", "is used, and nothing defines it", "check the file with onnx.checker")
        if isinstance(slot, TensorProto):
            where = f"tensor {name}"
            slot = self.add_param(name, TensorType(dtype_of(slot.data_type, where), tuple(slot.dims)), slot)
            self.slots[name] = slot
        elif isinstance(slot, Sizes):
            slot = self.constant(name, self._numbers(name, slot))
        return slot

    def _numbers(self, name: str, sizes: Sizes) -> Tensor:
        symbols = [d for d in sizes.items if isinstance(d, str)]
        if symbols:
            raise TraceError(f"onnx {name}", f"computes with the size {symbols[0]}", "only shapes may depend on it")
        numbers = torch.tensor([int(i) for i in sizes.items], dtype=torch.int64)
        return numbers.reshape(()) if sizes.rank == 0 else numbers

    def add_param(self, name: str, type_: TensorType, source: TensorProto | Tensor) -> Value:
        value = self.graph.add_param(self.names.value(name), type_)
        self.sources[value.name] = source
        return value

    def constant(self, name: str, tensor: Tensor) -> Value:
        return self.add_param(name, TensorType(DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)), tensor)

    def sizes(self, name: str) -> Sizes | None:
        slot = self.slots.get(name)
        if isinstance(slot, Sizes):
            return slot
        if isinstance(slot, Value):
            source = self.sources.get(slot.name) if slot.is_param else None
            slot = source if isinstance(source, TensorProto) else None
        is_small = slot is not None and slot.data_type in (TensorProto.INT64, TensorProto.INT32) and len(slot.dims) <= 1
        if slot is None or not is_small or sum(slot.dims) > MAX_SIZES:
            return None
        numbers = read_tensor(slot, self.folder)
        return Sizes(tuple(numbers.reshape(-1).tolist()), numbers.dim())


    def number(self, name: str) -> int | float | None:
        slot = self.slots.get(name)
        if isinstance(slot, Value):
            slot = self.sources.get(slot.name) if slot.is_param else None  # type: ignore[assignment]
        if not isinstance(slot, TensorProto) or list(slot.dims) or slot.data_type == TensorProto.BOOL:
            return None
        return read_tensor(slot, self.folder).item()


class NodeView:
    """A node, as rules see it (onnx_table.Node)."""

    def __init__(self, importer: Importer, node: NodeProto) -> None:
        self.importer, self.proto = importer, node
        self.op_type, self.opset = node.op_type, importer.opset
        self.num_outputs = len(node.output)
        self.attrs = {a.name: read_attribute(a) for a in node.attribute}
        self.encoded = importer.encoded
        told = {p.key: p.value for p in node.metadata_props}
        self.told_op = told.get("tilewright.op", "")
        modules = re.split(r",\s*", told.get("tilewright.modules", ""))
        self.loc = Loc(tuple(m for m in modules if MODULE.fullmatch(m)))

    def results(self) -> Sequence[Result]:
        if self.proto.domain == "tilewright" and self.op_type in self.importer.functions:
            return [self._own()]
        if self.proto.domain not in ("", "ai.onnx"):
            raise self.refuse(f"is of the domain {self.proto.domain}; only standard operators are read")
        if self.op_type not in CLAIMS:
            raise self.refuse("is not in the table of operators that are read")
        folded = fold_sizes(self)
        if folded is not None:
            return folded if isinstance(folded, list) else [folded]
        result = CLAIMS[self.op_type].rule(self)
        return result if isinstance(result, list | tuple) else [result]  # type: ignore[list-item]

    def _own(self) -> Value:
        """A call of a function that stands for an op of the IR."""
        name = self.importer.functions[self.op_type]
        attrs = {key: self._as_attr(value, OPS[name].attrs.get(key)) for key, value in self.attrs.items()}
        return self.emit(name, *(self.value(i) if self.has(i) else None for i in range(len(self))), **attrs)

    @staticmethod
    def _as_attr(value: Any, default: Any) -> Attr:
        plain = tuple(value) if isinstance(value, list) else value
        return bool(plain) if isinstance(default, bool) else plain

    # -- inputs and attributes ------------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        return len(self.proto.input)

    def attr(self, name: str, default: Any = None) -> Any:
        return self.attrs.get(name, default)

    def has(self, index: int) -> bool:
        return index < len(self.proto.input) and bool(self.proto.input[index])

    def value(self, index: int) -> Value:
        if not self.has(index):
            raise self.refuse(f"lacks its input {index}")
        return self.importer.value(self.proto.input[index])

    def sizes(self, index: int) -> Sizes | None:
        return self.importer.sizes(self.proto.input[index]) if self.has(index) else None

    def number(self, index: int) -> int | float | None:
        return self.importer.number(self.proto.input[index]) if self.has(index) else None

    def known(self, index: int) -> tuple[Dim, ...]:
        found = self.sizes(index)
        if found is None:
            name = self.proto.input[index] if self.has(index) else ""
            raise self.refuse(f"its input {name!r} is computed by the step, and must be known while importing")
        return found.items

    # -- making ---------------------------------------------------------------------------------------------------------------
    def emit(self, op: str, *operands: Value | None, **attrs: Attr | Shape) -> Value:
        graph = self.importer.graph
        stem = self.importer.names.value(f"{self.proto.output[0]}/{op}")
        return graph.emit(op, operands, attrs, names=[stem], loc=self.loc).result  # type: ignore[arg-type]  # shapes may hold symbols

    def constant(self, tensor: Tensor) -> Value:
        return self.importer.constant(f"{self.proto.output[0]}/constant", tensor)

    def tensor(self, proto: TensorProto) -> TensorProto:
        """Registers a tensor that lies in an attribute, as if it were an initializer."""
        self.importer.slots[self.proto.output[0]] = proto
        return proto

    def dtype(self, onnx_dtype: int) -> str:
        return dtype_of(onnx_dtype, f"onnx {self.op_type} {self.proto.output[0]}")

    def onnx_type(self, index: int) -> int:
        """The type that the file gives an input, which the IR may hold wider."""
        name = self.proto.input[index]
        return self.importer.onnx_types.get(name, TensorProto.UINT8)

    def mask(self) -> Mask | None:
        """What the mask of an Attention node says, where that is understood."""
        return self.importer.masks.get(self.proto.input[3]) if self.has(3) else None

    def count_attention(self) -> int:
        return len(self.importer.graph.find("attention"))

    def refuse(self, problem: str) -> TraceError:
        label = self.proto.name or (self.proto.output[0] if self.proto.output else "")
        return TraceError(f"onnx {self.op_type} {label!r}", problem, "this model cannot be imported")


def _types(proto: ModelProto) -> dict[str, int]:
    graph = proto.graph
    told = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    return told | {t.name: t.data_type for t in graph.initializer}


def read_attribute(attribute: AttributeProto) -> Any:
    """Its value; an f32 as the shortest number that is the same f32."""
    value = helper.get_attribute_value(attribute)
    if attribute.type == AttributeProto.FLOAT:
        return float(str(np.float32(value)))
    return value.decode() if isinstance(value, bytes) else value
