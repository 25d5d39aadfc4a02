"""The table from op to ONNX nodes: standard operators of opset 23 where one says the same, else a model-local function of standard operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tilewright.ir.errors import CodegenError
from tilewright.ir.graph import Op
from tilewright.ir.types import FLOATS

if TYPE_CHECKING:
    from tilewright.codegen.onnx_body import Body
    from tilewright.codegen.onnx_emitter import Emitter

Rule = Callable[..., str]  # (emitter, op, name of each operand or '') -> name of the result
NODES: dict[str, Rule] = {}


def exports(*ops: str) -> Callable[[Rule], Rule]:
    """Registers the nodes of ops. Raises CodegenError for an op that has some already."""

    def register(rule: Rule) -> Rule:
        for op in ops:
            if op in NODES:
                raise CodegenError(f"onnx {op}", f"registered by {NODES[op].__module__} and again by {rule.__module__}")
            NODES[op] = rule
        return rule

    return register


# -- pointwise ------------------------------------------------------------------------------------------------------------------
BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "maximum": "Max", "minimum": "Min", "less": "Less", "equal": "Equal"}
UNARY = {
    "neg": "Neg", "abs": "Abs", "exp": "Exp", "sqrt": "Sqrt", "cos": "Cos", "sin": "Sin", "tanh": "Tanh", "sigmoid": "Sigmoid", "erf": "Erf",
    "relu": "Relu", "log": "Log", "floor": "Floor", "round": "Round",
}  # fmt: skip


@exports(*BINARY)
def _binary(e: Emitter, op: Op, x: str, y: str = "") -> str:
    dtype, scalar = op.inputs[0].type.dtype, op.attrs.get("scalar")
    is_widened = isinstance(scalar, float) and dtype not in FLOATS
    if not y:
        y = e.body.scalar(scalar, "f32" if is_widened else dtype)  # type: ignore[arg-type]  # one of y and scalar is given
    if is_widened:  # computed as a float, then cut off
        x = e.cast(x, "f32")
    result = e.body.node(BINARY[op.name], *((y, x) if op.attrs.get("reverse") else (x, y)))
    return e.cast(result, dtype) if is_widened and op.result.type.dtype == dtype else result


@exports("where")
def _where(e: Emitter, op: Op, condition: str, x: str, y: str) -> str:
    return e.body.node("Where", condition, x, y)


@exports(*UNARY)
def _unary(e: Emitter, op: Op, x: str) -> str:
    return e.body.node(UNARY[op.name], x)


@exports("gelu")
def _gelu(e: Emitter, op: Op, x: str) -> str:
    return e.body.node("Gelu", x, approximate=op.attrs["approximate"])


@exports("pow")
def _pow(e: Emitter, op: Op, x: str, y: str = "") -> str:
    return e.body.node("Pow", x, y or e.body.scalar(float(op.attrs["exponent"]), op.inputs[0].type.dtype))  # type: ignore[arg-type]  # one is given


@exports("cast")
def _cast(e: Emitter, op: Op, x: str) -> str:
    return e.cast(x, str(op.attrs["dtype"]))


@exports("rsqrt")
def _rsqrt(e: Emitter, op: Op, x: str) -> str:
    return e.function("rsqrt", lambda body, x: body.node("Reciprocal", body.node("Sqrt", x)), x)


@exports("silu")
def _silu(e: Emitter, op: Op, x: str) -> str:
    return e.function("silu", lambda body, x: activate(body, "silu", x), x)


def activate(body: Body, activation: str, x: str) -> str:
    """One of ops.semantic.ACTIVATIONS in standard operators."""
    if activation == "silu":
        return body.node("Mul", x, body.node("Sigmoid", x))
    if activation.startswith("gelu"):
        return body.node("Gelu", x, approximate="tanh" if activation == "gelu_tanh" else "none")
    return body.node({"relu": "Relu", "sigmoid": "Sigmoid"}[activation], x)


@exports("gated")
def _gated(e: Emitter, op: Op, gate: str, up: str = "") -> str:
    activation, last = str(op.attrs["activation"]), op.inputs[0].type.rank - 1

    def pair(body: Body, gate: str, up: str) -> str:
        return body.node("Mul", activate(body, activation, gate), up)

    def columns(body: Body, x: str) -> str:
        stop, axis, step = body.ints(2**62), body.ints(last), body.ints(2)
        gate, up = (body.node("Slice", x, body.ints(start), stop, axis, step) for start in (0, 1))
        return pair(body, gate, up)

    return e.function(f"gated_{activation}", pair, gate, up) if up else e.function(f"gated_{activation}_columns", columns, gate)


# -- layout ---------------------------------------------------------------------------------------------------------------------
@exports("reshape")
def _reshape(e: Emitter, op: Op, x: str) -> str:
    return e.body.node("Reshape", x, e.shape(op.result.type.shape, may_guess=True))


@exports("expand")
def _expand(e: Emitter, op: Op, x: str) -> str:
    return e.body.node("Expand", x, e.shape(op.result.type.shape))


@exports("transpose")
def _transpose(e: Emitter, op: Op, x: str) -> str:
    return e.body.node("Transpose", x, perm=list(op.attrs["perm"]))  # type: ignore[arg-type]


@exports("slice")
def _slice(e: Emitter, op: Op, x: str) -> str:
    axis = int(op.attrs["axis"]) % op.inputs[0].type.rank  # type: ignore[arg-type]
    start, stop, step = (int(op.attrs[name]) for name in ("start", "stop", "step"))  # type: ignore[arg-type]
    return e.slice(x, axis, start, stop, step)


@exports("concat")
def _concat(e: Emitter, op: Op, *parts: str) -> str:
    return e.body.node("Concat", *parts, axis=op.attrs["axis"])


@exports("interleave")
def _interleave(e: Emitter, op: Op, *parts: str) -> str:
    shape = [int(d) for d in op.result.type.shape]

    def build(body: Body, *parts: str) -> str:
        stacked = body.node("Concat", *(body.node("Unsqueeze", part, body.ints(1)) for part in parts), axis=1)
        return body.node("Reshape", stacked, body.ints(*shape))

    return e.function("interleave", build, *parts)


# -- reductions and gathers -----------------------------------------------------------------------------------------------------
REDUCTIONS = {"mean": "ReduceMean", "sum": "ReduceSum", "max": "ReduceMax"}


@exports(*REDUCTIONS)
def _reduce(e: Emitter, op: Op, x: str) -> str:
    return e.body.node(REDUCTIONS[op.name], x, e.body.ints(int(op.attrs["axis"])), keepdims=int(bool(op.attrs["keepdim"])))  # type: ignore[arg-type]


@exports("softmax")
def _softmax(e: Emitter, op: Op, x: str) -> str:
    return e.body.node("Softmax", x, axis=op.attrs["axis"])


@exports("embedding", "gather_rows")
def _gather(e: Emitter, op: Op, table: str, rows: str) -> str:
    scale = e.scales.get(op.inputs[0])
    data = e.body.node("Gather", table, rows, axis=0)
    if scale is None:
        return data
    wide = e.cast(e.body.node("DequantizeLinear", data, e.body.node("Gather", scale, rows, axis=0), axis=0), "f32")
    return e.cast(wide, op.result.type.dtype)


# -- products -------------------------------------------------------------------------------------------------------------------
@exports("linear")
def _linear(e: Emitter, op: Op, x: str, weight: str, bias: str = "") -> str:
    weight = e.dequantized(op.inputs[1], op.inputs[0].type.dtype)
    if op.inputs[0].type.rank == 2:
        return e.body.node("Gemm", x, weight, *([bias] if bias else []), transB=1)
    product = e.body.node("MatMul", x, e.body.node("Transpose", weight, perm=[1, 0]))
    return e.body.node("Add", product, bias) if bias else product


@exports("matmul")
def _matmul(e: Emitter, op: Op, x: str, y: str) -> str:
    return e.body.node("MatMul", x, y)


def attributes(op: Op) -> dict[str, Any]:
    """Attributes as a call of a function shows them."""
    return {name: value for name, value in op.attrs.items() if value is not None}
