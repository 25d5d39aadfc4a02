"""Pointwise ONNX operators."""

from __future__ import annotations

from functools import reduce

import torch

from tilewright.frontend.onnx_table import Node, cast, claims
from tilewright.ir.graph import Value
from tilewright.ir.reference import TORCH_DTYPES
from tilewright.ir.types import FLOATS

BINARY = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div"}
UNARY = {
    "Neg": "neg", "Abs": "abs", "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Cos": "cos", "Sin": "sin", "Tanh": "tanh", "Sigmoid": "sigmoid",
    "Erf": "erf", "Relu": "relu", "Floor": "floor", "Round": "round",
}  # fmt: skip
FOLDED = {"Max": "maximum", "Min": "minimum", "Sum": "add", "And": "minimum", "Or": "maximum"}


@claims(*BINARY)
def _binary(n: Node) -> Value:
    """A number on one side is an attribute, as passes look for it."""
    op = BINARY[n.op_type]
    for at, number in ((0, n.number(1)), (1, n.number(0))):
        x = n.value(at) if number is not None else None
        if x is not None and not x.is_const and (x.type.dtype in FLOATS or isinstance(number, int)):
            return n.emit(op, x, scalar=number, **({"reverse": True} if at and op in ("sub", "div") else {}))
    return n.emit(op, n.value(0), n.value(1))


@claims(*UNARY)
def _unary(n: Node) -> Value:
    return n.emit(UNARY[n.op_type], n.value(0))


@claims(*FOLDED)
def _folded(n: Node) -> Value:
    return reduce(lambda x, y: n.emit(FOLDED[n.op_type], x, y), (n.value(i) for i in range(len(n))))


@claims("Identity")
def _identity(n: Node) -> Value:
    return n.value(0)


@claims("Reciprocal")
def _reciprocal(n: Node) -> Value:
    return n.emit("div", n.value(0), scalar=1.0, reverse=True)


@claims("Ceil")
def _ceil(n: Node) -> Value:
    return n.emit("neg", n.emit("floor", n.emit("neg", n.value(0))))


@claims("Pow")
def _pow(n: Node) -> Value:
    """In the type of the base; whole numbers by way of floats."""
    x, exponent = n.value(0), n.number(1)
    is_float = x.type.dtype in FLOATS
    wide = x if is_float else cast(n, x, "f64")
    made = n.emit("pow", wide, exponent=float(exponent)) if exponent is not None else n.emit("pow", wide, cast(n, n.value(1), wide.type.dtype))
    return cast(n, made, x.type.dtype)


@claims("Gelu")
def _gelu(n: Node) -> Value:
    return n.emit("gelu", n.value(0), approximate=n.attr("approximate", "none"))


@claims("Swish")
def _swish(n: Node) -> Value:
    alpha = float(n.attr("alpha", 1.0))
    if alpha == 1.0:
        return n.emit("silu", n.value(0))
    return n.emit("mul", n.value(0), n.emit("sigmoid", n.emit("mul", n.value(0), scalar=alpha)))


@claims("Clip")
def _clip(n: Node) -> Value:
    """min(max(x, low), high): high wins where the two cross."""
    x = n.value(0)
    for index, op in ((1, "maximum"), (2, "minimum")):
        if n.has(index):
            x = n.emit(op, x, n.value(index))
    return x


@claims("LeakyRelu")
def _leaky_relu(n: Node) -> Value:
    x = n.value(0)
    return n.emit("where", n.emit("less", x, scalar=0.0), n.emit("mul", x, scalar=float(n.attr("alpha", 0.01))), x)


@claims("Softplus")
def _softplus(n: Node) -> Value:
    """max(x, 0) + log(1 + e ** -|x|)"""
    x = n.value(0)
    small = n.emit("exp", n.emit("neg", n.emit("abs", x)))
    return n.emit("add", n.emit("relu", x), n.emit("log", n.emit("add", small, scalar=1.0)))


@claims("HardSigmoid")
def _hard_sigmoid(n: Node) -> Value:
    line = n.emit("add", n.emit("mul", n.value(0), scalar=float(n.attr("alpha", 0.2))), scalar=float(n.attr("beta", 0.5)))
    return n.emit("minimum", n.emit("maximum", line, scalar=0.0), scalar=1.0)


# -- conditions -----------------------------------------------------------------------------------------------------------------
def is_not(n: Node, x: Value) -> Value:
    return n.emit("equal", x, n.constant(torch.tensor(False)))


@claims("Equal", "Less", "Greater")
def _compare(n: Node) -> Value:
    x, y = n.value(0), n.value(1)
    return n.emit("equal", x, y) if n.op_type == "Equal" else n.emit("less", *((x, y) if n.op_type == "Less" else (y, x)))


@claims("LessOrEqual", "GreaterOrEqual")
def _compare_or_equal(n: Node) -> Value:
    x, y = (n.value(0), n.value(1)) if n.op_type == "LessOrEqual" else (n.value(1), n.value(0))
    return n.emit("maximum", n.emit("less", x, y), n.emit("equal", x, y))


@claims("Not")
def _not(n: Node) -> Value:
    return is_not(n, n.value(0))


@claims("Xor")
def _xor(n: Node) -> Value:
    return is_not(n, n.emit("equal", n.value(0), n.value(1)))


@claims("IsNaN")
def _is_nan(n: Node) -> Value:
    return is_not(n, n.emit("equal", n.value(0), n.value(0)))


@claims("Where")
def _where(n: Node) -> Value:
    return n.emit("where", n.value(0), n.value(1), n.value(2))


# -- types ----------------------------------------------------------------------------------------------------------------------
@claims("Cast")
def _cast(n: Node) -> Value:
    return convert(n, n.value(0), n.dtype(n.attr("to")))


@claims("CastLike")
def _cast_like(n: Node) -> Value:
    return convert(n, n.value(0), n.value(1).type.dtype)


def convert(n: Node, x: Value, dtype: str) -> Value:
    """To i1 as x != 0; else as the IR casts."""
    if dtype != "i1" or x.type.dtype == "i1":
        return cast(n, x, dtype)
    return is_not(n, n.emit("equal", x, scalar=0.0 if x.type.dtype in FLOATS else 0))


def filled(n: Node, value: float, dtype: str) -> Value:
    """A constant dtype[]."""
    return n.constant(torch.tensor(value, dtype=TORCH_DTYPES[dtype]))


