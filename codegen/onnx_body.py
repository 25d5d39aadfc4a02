"""What ONNX nodes are written into: the model's graph, or the body of a model-local function. Knows no op of the IR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from onnx import FunctionProto, NodeProto, TensorProto, helper

from tilewright.ir.errors import CodegenError
from tilewright.ir.reference import TORCH_DTYPES

OPSET = 23  # the first with Attention, RotaryEmbedding and RMSNormalization
IR_VERSION = 11  # of the file format; the first that may hold opset 23
DOMAIN = "tilewright"  # of model-local functions
ONNX_DTYPES = {
    "f64": TensorProto.DOUBLE, "f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16,
    "i64": TensorProto.INT64, "i32": TensorProto.INT32, "i8": TensorProto.INT8, "i1": TensorProto.BOOL,
}  # fmt: skip


@dataclass
class Body:
    """Nodes in order, and names that are free. `stem` begins the names of results: the tensor that is being computed."""

    nodes: list[NodeProto] = field(default_factory=list)
    stem: str = ""
    names: set[str] = field(default_factory=set)
    _constants: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def node(self, op_type: str, *inputs: str, domain: str = "", **attrs: Any) -> str:
        """Appends a node with one result, whose name it returns. Optional inputs that are left out are ''; attributes that are None are dropped."""
        result = self.fresh(f"{self.stem}/{op_type}")
        kept = {name: value for name, value in attrs.items() if value is not None}
        self.nodes.append(helper.make_node(op_type, list(inputs), [result], domain=domain, **kept))
        return result

    def fresh(self, name: str) -> str:
        free, count = name, 1
        while free in self.names:
            free, count = f"{name}.{count}", count + 1
        self.names.add(free)
        return free

    def ints(self, *values: int) -> str:
        """A constant i64[n]."""
        return self.constant(values, "i64")

    def scalar(self, value: float, dtype: str) -> str:
        """A constant dtype[]."""
        return self.constant(value, dtype)

    def constant(self, value: float | Sequence[float], dtype: str) -> str:
        """A small constant; equal ones are made once."""
        key = (value if isinstance(value, int | float) else tuple(value), dtype)
        if key not in self._constants:
            written = "_".join(map(str, value)) if isinstance(value, Sequence) else str(value)
            name = self.fresh(f"const/{dtype}/{written}")
            self.hold(name, make_tensor(name, torch.tensor(value, dtype=TORCH_DTYPES[dtype])))
            self._constants[key] = name
        return self._constants[key]

    def hold(self, name: str, tensor: TensorProto) -> None:
        self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))


@dataclass
class GraphBody(Body):
    """The model's graph: constants are initializers, and functions are kept beside it."""

    initializers: list[TensorProto] = field(default_factory=list)
    functions: dict[str, FunctionProto] = field(default_factory=dict)

    def hold(self, name: str, tensor: TensorProto) -> None:
        self.initializers.append(tensor)

    def call(self, name: str, body: Body, result: str, inputs: Sequence[str], op: str, attrs: Mapping[str, Any]) -> str:
        """A node that calls a function with this body, whose inputs are x0, x1, …; functions with equal bodies are one. `attrs` only tell."""
        shown = {k: int(v) if isinstance(v, bool) else v for k, v in attrs.items() if v is not None}
        made = helper.make_function(
            DOMAIN, name, [f"x{i}" for i in range(len(inputs))], [result], body.nodes, [helper.make_opsetid("", OPSET)], list(shown)
        )
        helper.set_metadata_props(made, {"tilewright.op": op})
        while name in self.functions and not _equal_bodies(self.functions[name], made):
            name += "_"
        made.name = name
        self.functions.setdefault(name, made)
        return self.node(name, *inputs, domain=DOMAIN, **shown)


def _equal_bodies(a: FunctionProto, b: FunctionProto) -> bool:
    return list(a.node) == list(b.node) and list(a.attribute) == list(b.attribute)


def make_tensor(name: str, tensor: torch.Tensor) -> TensorProto:
    """The tensor with its bytes inside."""
    made = describe_tensor(name, tensor)
    made.raw_data = tensor_bytes(tensor)
    return made


def describe_tensor(name: str, tensor: torch.Tensor) -> TensorProto:
    """The tensor without its bytes. Raises CodegenError for a dtype that has no ONNX type here."""
    dtypes = {TORCH_DTYPES[name]: onnx_dtype for name, onnx_dtype in ONNX_DTYPES.items()}
    if tensor.dtype not in dtypes:
        raise CodegenError(f"@{name}", f"is a tensor of {tensor.dtype}", "ONNX export knows " + ", ".join(ONNX_DTYPES))
    return TensorProto(name=name, data_type=dtypes[tensor.dtype], dims=list(tensor.shape))


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
