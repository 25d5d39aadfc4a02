"""ONNX operators that join elements: reductions, softmax, matrix products and norms."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from tilewright.frontend.onnx_pointwise import is_not
from tilewright.frontend.onnx_table import Node, Shape, axis_in, cast, claims, fixed, product, reshape, transpose
from tilewright.ir.graph import Value
from tilewright.ir.reference import TORCH_DTYPES
from tilewright.ir.types import FLOATS


# -- reductions -----------------------------------------------------------------------------------------------------------------
def over(op: str) -> Callable[[Node, Value, list[int]], Value]:
    """One axis after the other, each kept with size 1."""

    def run(n: Node, x: Value, axes: list[int]) -> Value:
        for axis in axes:
            x = n.emit(op, x, axis=axis, keepdim=True)
        return x

    return run


def smallest(n: Node, x: Value, axes: list[int]) -> Value:
    if x.type.dtype == "i1":
        return is_not(n, largest(n, is_not(n, x), axes))
    return n.emit("neg", largest(n, n.emit("neg", x), axes))


def largest(n: Node, x: Value, axes: list[int]) -> Value:
    """The largest of no element is the least that the type has."""
    if any(x.type.shape[a] == 0 for a in axes):
        dtype = TORCH_DTYPES[x.type.dtype]
        least = -math.inf if dtype.is_floating_point else 0 if dtype == torch.bool else torch.iinfo(dtype).min
        return n.constant(torch.full([1 if a in axes else fixed(n, d) for a, d in enumerate(x.type.shape)], least, dtype=dtype))
    if x.type.dtype == "i1":
        return cast(n, largest(n, cast(n, x, "i32"), axes), "i1")
    return over("max")(n, x, axes)


def log_sum_exp(n: Node, x: Value, axes: list[int]) -> Value:
    top = largest(n, x, axes)
    return n.emit("add", n.emit("log", over("sum")(n, n.emit("exp", n.emit("sub", x, top)), axes)), top)


def sum_of(change: Callable[[Node, Value], Value]) -> Callable[[Node, Value, list[int]], Value]:
    return lambda n, x, axes: over("sum")(n, change(n, x), axes)


REDUCTIONS: dict[str, Callable[[Node, Value, list[int]], Value]] = {
    "ReduceSum": over("sum"), "ReduceMean": over("mean"), "ReduceMax": largest, "ReduceMin": smallest,
    "ReduceL1": sum_of(lambda n, x: n.emit("abs", x)), "ReduceSumSquare": sum_of(lambda n, x: n.emit("mul", x, x)),
    "ReduceL2": lambda n, x, axes: n.emit("sqrt", over("sum")(n, n.emit("mul", x, x), axes)),
    "ReduceLogSum": lambda n, x, axes: n.emit("log", over("sum")(n, x, axes)), "ReduceLogSumExp": log_sum_exp,
}  # fmt: skip


@claims(*REDUCTIONS, known=(1,))
def _reduce(n: Node) -> Value:
    x = n.value(0)
    given = [fixed(n, a) for a in n.known(1)] if n.has(1) else n.attr("axes") or []
    if not given and n.attr("noop_with_empty_axes", 0):
        given = []
    elif not given:
        given = list(range(x.type.rank))
    axes = sorted(axis_in(n, a, x.type) for a in given)
    kept = REDUCTIONS[n.op_type](n, x, axes)
    return kept if n.attr("keepdims", 1) else reshape(n, kept, tuple(d for a, d in enumerate(kept.type.shape) if a not in axes))


@claims("Softmax", "LogSoftmax")
def _softmax(n: Node) -> Value:
    x, axis = n.value(0), n.attr("axis", -1)
    if n.opset < 13:
        raise n.refuse(f"of opset {n.opset} flattens its operand; convert the model to opset 13 or later")
    if n.op_type == "Softmax":
        return n.emit("softmax", x, axis=axis)
    return n.emit("sub", x, log_sum_exp(n, x, [axis_in(n, axis, x.type)]))


# -- matrix products ------------------------------------------------------------------------------------------------------------
@claims("MatMul")
def _matmul(n: Node) -> Value:
    x, y = n.value(0), n.value(1)
    shape = x.type.shape[:-1] if y.type.rank == 1 else ()
    if is_weight(x, y):
        return linear(n, x, transpose(n, y, [1, 0]))
    wide_x = reshape(n, x, (1, *x.type.shape)) if x.type.rank == 1 else x
    wide_y = reshape(n, y, (*y.type.shape, 1)) if y.type.rank == 1 else y
    made = n.emit("matmul", wide_x, wide_y)
    shape = made.type.shape
    if x.type.rank == 1:
        shape = (*shape[:-2], shape[-1])
    return reshape(n, made, shape[:-1] if y.type.rank == 1 else shape)


def is_weight(x: Value, y: Value) -> bool:
    return y.is_const and not x.is_const and y.type.rank == 2 and x.type.rank >= 2 and x.type.dtype in FLOATS


def linear(n: Node, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """A weight that came as integers with one scale a row goes on as that."""
    found = getattr(n, "encoded", {}).get(weight)
    if found is not None:
        weight = n.emit("encode", *found)
    return n.emit("linear", x, weight, *([bias] if bias is not None else []))


@claims("Gemm")
def _gemm(n: Node) -> Value:
    """alpha · op(A) · op(B) + beta · C"""
    x, y, alpha, beta = n.value(0), n.value(1), float(n.attr("alpha", 1.0)), float(n.attr("beta", 1.0))
    c = n.value(2) if n.has(2) else None
    x = transpose(n, x, [1, 0]) if n.attr("transA", 0) else x
    if is_weight(x, y) and alpha == 1.0 and beta == 1.0:
        weight = y if n.attr("transB", 0) else transpose(n, y, [1, 0])
        is_bias = c is not None and c.type.shape == (weight.type.shape[0],)
        made = linear(n, x, weight, c if is_bias else None)
        return made if c is None or is_bias else n.emit("add", made, c)
    made = n.emit("matmul", x, transpose(n, y, [1, 0]) if n.attr("transB", 0) else y)
    made = n.emit("mul", made, scalar=alpha) if alpha != 1.0 else made
    if c is None:
        return made
    return n.emit("add", made, n.emit("mul", c, scalar=beta) if beta != 1.0 else c)


# -- norms ----------------------------------------------------------------------------------------------------------------------
@claims("LayerNormalization")
def _layer_norm(n: Node) -> list[Value]:
    """Over the axes from `axis` on, as one; its mean and 1 / deviation too, where they are asked for."""
    x, eps = n.value(0), float(n.attr("epsilon", 1e-5))
    axis = axis_in(n, n.attr("axis", -1), x.type)
    flat = as_rows(n, x, axis)
    width = int(flat.type.shape[-1])
    parts = [as_scale(n, n.value(i), width) if n.has(i) else None for i in (1, 2)]
    results = [reshape(n, n.emit("layer_norm", flat, *parts, eps=eps), x.type.shape)]
    if n.num_outputs > 1:
        shape = (*x.type.shape[:axis], *(1 for _ in x.type.shape[axis:]))
        wide = cast(n, flat, "f32")
        mean = n.emit("mean", wide)
        off = n.emit("sub", wide, mean)
        spread = n.emit("rsqrt", n.emit("add", n.emit("mean", n.emit("mul", off, off)), scalar=eps))
        results += [reshape(n, mean, shape), reshape(n, spread, shape)]
    return results


@claims("RMSNormalization")
def _rms_norm(n: Node) -> Value:
    x = n.value(0)
    flat = as_rows(n, x, axis_in(n, n.attr("axis", -1), x.type))
    scale = as_scale(n, n.value(1), int(flat.type.shape[-1]))
    return reshape(n, n.emit("rms_norm", flat, scale, eps=float(n.attr("epsilon", 1e-5))), x.type.shape)


def as_rows(n: Node, x: Value, axis: int) -> Value:
    shape: Shape = (*x.type.shape[:axis], fixed(n, product(n, x.type.shape[axis:])))
    return reshape(n, x, shape)


def as_scale(n: Node, scale: Value, width: int) -> Value:
    if product(n, scale.type.shape) != width:
        raise n.refuse(f"its scale {scale.type} is not that of {width} elements")
    return reshape(n, scale, (width,))
