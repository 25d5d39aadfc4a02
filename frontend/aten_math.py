"""ATen calls that compute: pointwise, reductions, matrix products. Rules of the table; knows no model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tilewright.frontend.aten_table import Emitter, Rule, Traced, as_dtype, imports, local_axis, with_rank
from tilewright.ir.graph import Value
from tilewright.ir.types import FLOATS

ATEN = torch.ops.aten


_UNARY = {
    ATEN.neg.default: "neg", ATEN.abs.default: "abs", ATEN.exp.default: "exp", ATEN.sqrt.default: "sqrt", ATEN.rsqrt.default: "rsqrt",
    ATEN.cos.default: "cos", ATEN.sin.default: "sin", ATEN.tanh.default: "tanh", ATEN.sigmoid.default: "sigmoid", ATEN.erf.default: "erf",
    ATEN.relu.default: "relu", ATEN.silu.default: "silu",
}  # fmt: skip
_BINARY = {
    ATEN.add.Tensor: "add", ATEN.add.Scalar: "add", ATEN.sub.Tensor: "sub", ATEN.sub.Scalar: "sub", ATEN.mul.Tensor: "mul", ATEN.mul.Scalar: "mul",
    ATEN.div.Tensor: "div", ATEN.div.Scalar: "div", ATEN.maximum.default: "maximum", ATEN.minimum.default: "minimum",
}  # fmt: skip


def _unary(name: str) -> Rule:
    return lambda e, x: e.emit(name, x.value)


def _binary(name: str) -> Rule:
    def rule(e: Emitter, x: Traced | float, y: Traced | float, alpha: float = 1) -> Value:
        if alpha != 1:
            y = Traced(e.prepare("mul", y.value, scalar=alpha), y.shape) if isinstance(y, Traced) else y * alpha
        return binary(e, name, x, y)

    return rule


for _target, _name in _UNARY.items():
    imports(_target)(_unary(_name))
for _target, _name in _BINARY.items():
    imports(_target)(_binary(_name))


def binary(e: Emitter, name: str, x: Traced | float, y: Traced | float) -> Value:
    """Operands are promoted to the result's dtype, as torch does."""
    dtype = e.result_dtype()
    if isinstance(x, Traced) and isinstance(y, Traced):
        return e.emit(name, as_dtype(e, x.value, dtype), as_dtype(e, y.value, dtype))
    tensor, scalar, reverse = (x, y, False) if isinstance(x, Traced) else (y, x, True)
    if not isinstance(tensor, Traced) or isinstance(scalar, Traced):
        raise e.refuse("an operand that is neither tensor nor number")
    number = float(scalar) if dtype in FLOATS else scalar
    turned = {"reverse": True} if reverse and name in ("sub", "div") else {}
    return e.emit(name, as_dtype(e, tensor.value, dtype), scalar=number, **turned)


@imports(ATEN.rsub.Scalar)
def _rsub(e: Emitter, x: Traced, y: float) -> Value:
    return binary(e, "sub", y, x)


@imports(ATEN.reciprocal.default)
def _reciprocal(e: Emitter, x: Traced) -> Value:
    return e.emit("div", x.value, scalar=1.0, reverse=True)


@imports(ATEN.pow.Tensor_Scalar)
def _pow(e: Emitter, x: Traced, exponent: float) -> Value:
    return e.emit("pow", x.value, exponent=float(exponent))


@imports(ATEN.square.default)
def _square(e: Emitter, x: Traced) -> Value:
    return e.emit("pow", x.value, exponent=2.0)


@imports(ATEN.gelu.default)
def _gelu(e: Emitter, x: Traced, approximate: str = "none") -> Value:
    return e.emit("gelu", x.value, approximate=approximate)


@imports(ATEN.clamp.default)
def _clamp(e: Emitter, x: Traced, low: float | None = None, high: float | None = None) -> Value:
    value = x.value if low is None else e.emit("maximum", x.value, scalar=low)
    return value if high is None else e.emit("minimum", value, scalar=high)


@imports(ATEN._to_copy.default)
def _to_copy(e: Emitter, x: Traced, **_: object) -> Value:
    dtype = e.result_dtype()
    return x.value if x.value.type.dtype == dtype else e.emit("cast", x.value, dtype=dtype)


def _reduction(name: str) -> Rule:
    def rule(e: Emitter, x: Traced, dims: Sequence[int] | int, keepdim: bool = False) -> Value:
        axes = [dims] if isinstance(dims, int) else list(dims)
        if len(axes) != 1:
            raise e.refuse(f"a reduction of {len(axes)} axes")
        value = with_rank(e, x, x.rank - x.axis(axes[0]))
        return e.emit(name, value, axis=local_axis(x, value, axes[0]) - value.type.rank, keepdim=keepdim)

    return rule


for _target, _name in ((ATEN.mean.dim, "mean"), (ATEN.sum.dim_IntList, "sum"), (ATEN.amax.default, "max")):
    imports(_target)(_reduction(_name))


@imports(ATEN.softmax.int, ATEN._softmax.default)
def _softmax(e: Emitter, x: Traced, dim: int, dtype: object = None) -> Value:
    value = with_rank(e, x, x.rank - x.axis(dim))
    return e.emit("softmax", as_dtype(e, value, e.result_dtype()), axis=local_axis(x, value, dim) - value.type.rank)


@imports(ATEN.layer_norm.default)
def _layer_norm(
    e: Emitter, x: Traced, shape: Sequence[int], weight: Traced | None = None, bias: Traced | None = None, eps: float = 1e-5, *_: object
) -> Value:
    if len(shape) != 1:
        raise e.refuse(f"a layer norm over {len(shape)} axes")
    return e.emit("layer_norm", x.value, weight and weight.value, bias and bias.value, eps=eps)


@imports(ATEN.linear.default)
def _linear(e: Emitter, x: Traced, weight: Traced, bias: Traced | None = None) -> Value:
    return e.emit("linear", x.value, weight.value, bias and bias.value)


@imports(ATEN.addmm.default)
def _addmm(e: Emitter, bias: Traced, x: Traced, weight: Traced, beta: float = 1, alpha: float = 1) -> Value:
    if (beta, alpha) != (1, 1):
        raise e.refuse("factors in a matrix product")
    return e.emit("linear", x.value, _turned(e, weight.value), bias.value)


@imports(ATEN.matmul.default, ATEN.mm.default, ATEN.bmm.default)
def _matmul(e: Emitter, x: Traced, y: Traced) -> Value:
    if y.value.is_const and y.value.type.rank == 2 and not x.value.is_const:
        return e.emit("linear", x.value, _turned(e, y.value))
    if y.rank < 2 or x.rank < 2:
        raise e.refuse("a product with a vector")
    return e.emit("matmul", with_rank(e, x, 2), with_rank(e, y, 2))


def _turned(e: Emitter, weight: Value) -> Value:
    """[K, N] as the [N, K] that linear takes; a transpose of a parameter is undone, not repeated."""
    producer = weight.producer
    if producer is not None and producer.name == "transpose" and producer.operands[0] is not None and producer.attrs["perm"] == (1, 0):
        return producer.operands[0]
    return e.prepare("transpose", weight, perm=(1, 0))


@imports(torch.ops.aten.scaled_dot_product_attention.default)
def _uncaught_attention(e: Emitter, *_: object, **__: object) -> Value:
    raise e.refuse("an attention that was not recognised")
