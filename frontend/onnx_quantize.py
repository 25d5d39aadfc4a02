"""QuantizeLinear and DequantizeLinear, written out: per tensor, per axis and in blocks. Integers that the IR has no type for are held wider."""

from __future__ import annotations

from typing import Any

from onnx import TensorProto

from tilewright.frontend.onnx_layout import repeat
from tilewright.frontend.onnx_table import Node, axis_in, cast, claims, fixed, reshape
from tilewright.ir.graph import Value

RANGES = {
    TensorProto.INT8: (-128, 127), TensorProto.UINT8: (0, 255), TensorProto.INT16: (-32768, 32767), TensorProto.UINT16: (0, 65535),
}  # fmt: skip


@claims("QuantizeLinear")
def _quantize(n: Any) -> Value:
    """clamp(round(x / scale) + zero)"""
    x, scale = n.value(0), spread(n, n.value(1))
    kind = n.attr("output_dtype", 0) or (n.onnx_type(2) if n.has(2) else TensorProto.UINT8)
    if kind not in RANGES:
        raise n.refuse(f"gives {TensorProto.DataType.Name(kind)}, which the IR has no type for")
    steps = n.emit("round", n.emit("div", cast(n, x, scale.type.dtype), scale))
    if n.has(2):
        steps = n.emit("add", steps, cast(n, spread(n, n.value(2)), steps.type.dtype))
    low, high = RANGES[kind]
    kept = n.emit("minimum", n.emit("maximum", steps, scalar=float(low)), scalar=float(high))
    return n.emit("cast", kept, dtype=n.dtype(kind))


@claims("DequantizeLinear")
def _dequantize(n: Any) -> Value:
    """(x - zero) * scale, in the type of the scale"""
    x, scale = n.value(0), n.value(1)
    dtype = n.dtype(n.attr("output_dtype")) if n.attr("output_dtype", 0) else scale.type.dtype
    wide = cast(n, x, "i32")
    if n.has(2):
        wide = n.emit("sub", wide, cast(n, spread(n, n.value(2)), "i32"))
    made = cast(n, n.emit("mul", cast(n, wide, scale.type.dtype), spread(n, scale)), dtype)
    by_row = x.type.rank == 2 and x.type.dtype == "i8" and scale.type.shape == x.type.shape[:1] and n.attr("axis", 1) in (0, -2)
    if by_row and x.is_const and not n.has(2):
        n.encoded[made] = (x, scale)
    return made


def spread(n: Node, scale: Value) -> Value:
    """A scale or zero point so that it broadcasts against the data."""
    type_, block = n.value(0).type, n.attr("block_size", 0)
    if scale.type.rank == 0 or (scale.type.shape == (1,) and not block):
        return reshape(n, scale, ())
    axis = axis_in(n, n.attr("axis", 1), type_)
    if block:
        wide = repeat(n, scale, axis, block)
        size = fixed(n, type_.shape[axis])
        return wide if wide.type.shape[axis] == size else n.emit("slice", wide, axis=axis, start=0, stop=size)
    return reshape(n, scale, (*(1 for _ in range(axis)), scale.type.shape[0], *(1 for _ in range(type_.rank - axis - 1))))
