"""Norms, rotary embedding and attention as the standard ONNX operators of opset 23, with what the IR says more than they can beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from tilewright.codegen.onnx_body import ONNX_DTYPES, Body
from tilewright.codegen.onnx_nodes import exports
from tilewright.ir.graph import Op, Value
from tilewright.ir.reference import QuantizedTensor

if TYPE_CHECKING:
    from tilewright.codegen.onnx_emitter import Emitter

NARROW = ("f16", "bf16")


@exports("rms_norm")
def _rms_norm(e: Emitter, op: Op, x: str, weight: str = "") -> str:
    """RMSNormalization rounds before it scales; where the IR scales first, all of it is done in f32."""
    dtype, offset, eps = op.inputs[0].type.dtype, float(op.attrs["offset"]), op.attrs["eps"]  # type: ignore[arg-type]
    is_widened = op.attrs["rounding"] == "after_scale" and dtype in NARROW and bool(weight)
    wide = "f32" if is_widened else dtype
    scale = weight and (e.cast(weight, wide) if is_widened else weight)
    if not scale:
        scale = e.body.constant([1.0] * int(op.inputs[0].type.shape[-1]), dtype)
    elif offset:
        scale = e.body.node("Add", scale, e.body.scalar(offset, wide))
    result = e.body.node("RMSNormalization", e.cast(x, wide) if is_widened else x, scale, epsilon=eps, axis=-1)
    return e.cast(result, dtype) if is_widened else result


@exports("layer_norm")
def _layer_norm(e: Emitter, op: Op, x: str, weight: str = "", bias: str = "") -> str:
    weight = weight or e.body.constant([1.0] * int(op.inputs[0].type.shape[-1]), op.inputs[0].type.dtype)
    return e.body.node("LayerNormalization", x, weight, *([bias] if bias else []), epsilon=op.attrs["eps"], axis=-1)


# -- rotary embedding -----------------------------------------------------------------------------------------------------------
@exports("rotary")
def _rotary(e: Emitter, op: Op, x: str, cos: str, sin: str) -> str:
    """RotaryEmbedding has one angle for each pair of elements. Where cos and sin are not known to repeat it, a function says what is meant."""
    head_dim, layout = int(op.attrs["head_dim"]), str(op.attrs["layout"])  # type: ignore[arg-type]
    rotary_dim, width = int(op.inputs[1].type.shape[-1]), int(op.inputs[0].type.shape[-1])
    if not all(repeats_pairs(e, table, layout) for table in op.inputs[1:]):
        return e.function(f"rotary_{layout}", lambda body, *xs: turn(body, *xs, head_dim=head_dim, rotary_dim=rotary_dim, layout=layout), x, cos, sin)
    half = [one_of_each_pair(e, name, rotary_dim, layout) for name in (cos, sin)]
    is_partial, is_interleaved = rotary_dim < head_dim, layout == "interleaved"
    turned = e.body.node(
        "RotaryEmbedding", e.unsqueeze(x), *half, num_heads=width // head_dim, interleaved=int(is_interleaved),
        rotary_embedding_dim=rotary_dim if is_partial else None,
    )  # fmt: skip
    return e.body.node("Squeeze", turned, e.body.ints(0))


def one_of_each_pair(e: Emitter, table: str, rotary_dim: int, layout: str) -> str:
    """[T, R] -> [1, T, R / 2], made once for all layers that read the table."""
    cut = (0, rotary_dim // 2, 1) if layout == "half" else (0, rotary_dim, 2)
    return e.once(("pairs", table, layout), f"{table}/pairs", lambda: e.unsqueeze(e.slice(table, 1, *cut)))


def turn(body: Body, x: str, cos: str, sin: str, *, head_dim: int, rotary_dim: int, layout: str) -> str:
    """The IR's rotary in standard operators: x [T, heads * D], cos and sin [T, R]."""

    def cut(x: str, start: int, stop: int, step: int = 1) -> str:
        return body.node("Slice", x, body.ints(start), body.ints(stop), body.ints(2), body.ints(step))

    heads = body.node("Reshape", x, body.ints(0, -1, head_dim))
    turning = cut(heads, 0, rotary_dim)
    if layout == "half":
        turned = body.node("Concat", body.node("Neg", cut(turning, rotary_dim // 2, rotary_dim)), cut(turning, 0, rotary_dim // 2), axis=2)
    else:
        pairs = (body.node("Neg", cut(turning, 1, rotary_dim, 2)), cut(turning, 0, rotary_dim, 2))
        turned = body.node("Concat", *(body.node("Unsqueeze", part, body.ints(3)) for part in pairs), axis=3)
        turned = body.node("Reshape", turned, body.ints(0, 0, rotary_dim))
    cos, sin = (body.node("Unsqueeze", table, body.ints(1)) for table in (cos, sin))
    result = body.node("Add", body.node("Mul", turning, cos), body.node("Mul", turned, sin))
    if rotary_dim < head_dim:
        result = body.node("Concat", result, cut(heads, rotary_dim, head_dim), axis=2)
    return body.node("Reshape", result, body.ints(0, -1))


def repeats_pairs(e: Emitter, value: Value, layout: str) -> bool:
    """Whether both elements of each pair that turns together are equal along the last axis: known from the numbers, or from how they are made."""
    if value.is_const:
        table = e.constant_tensor(value)
        if isinstance(table, QuantizedTensor):
            return False
        pairs = table.chunk(2, -1) if layout == "half" else (table[..., ::2], table[..., 1::2])
        return torch.equal(*pairs)
    op = value.producer
    if op is None or not op.inputs:
        return False
    if op.name == "gather_rows":
        return repeats_pairs(e, op.inputs[0], layout)
    if op.definition.pointwise:
        return all(v.type.shape[-1:] == (1,) or v.type.rank == 0 or repeats_pairs(e, v, layout) for v in op.inputs)
    is_last = op.name == "concat" and int(op.attrs["axis"]) % value.type.rank == value.type.rank - 1  # type: ignore[arg-type]
    return layout == "half" and is_last and len(op.operands) == 2 and op.operands[0] is op.operands[1]


# -- attention ------------------------------------------------------------------------------------------------------------------
@exports("attention")
def _attention(e: Emitter, op: Op, q: str, k: str, v: str, slopes: str = "") -> str:
    return attend(e, op, (q, k, v), slopes, int(op.attrs["kv_heads"]))  # type: ignore[arg-type]


@exports("write_kv")
def _write_kv(e: Emitter, op: Op, k: str, v: str) -> str:
    """Nothing: the keys and values of the step are all that an exported step attends to."""
    e.written[op.result] = (k, v)
    return ""


@exports("attend")
def _attend(e: Emitter, op: Op, q: str, kv: str, slopes: str = "") -> str:
    written = op.inputs[1]
    return attend(e, op, (q, *e.written[written]), slopes, int(written.type.shape[0]))


def attend(e: Emitter, op: Op, qkv: tuple[str, str, str], slopes: str, kv_heads: int) -> str:
    """Attention over one request. A window and slopes are a mask, made once for all layers that have the same.

    A cap goes into a function: onnxruntime before 1.27 caps what the mask has hidden, and then sees it.
    """
    dtype, window = op.inputs[0].type.dtype, op.attrs["window"]
    if op.attrs["softcap"] is not None:
        attrs = {name: value for name, value in {**op.attrs, "kv_heads": kv_heads}.items() if value is not None}
        given = (*qkv, slopes) if slopes else qkv
        name = f"attention_capped_window_{window}" if window else "attention_capped"
        return e.function(name, lambda body, *xs: attend_capped(body, *xs, dtype=dtype, attrs=attrs), *given, op="attention", attrs=attrs)
    mask = e.once(("mask", window, slopes, dtype), "mask", lambda: shared_mask(e, dtype, window, slopes)) if window or slopes else ""  # type: ignore[arg-type]
    result = e.body.node(
        "Attention", *(e.unsqueeze(name) for name in qkv), *([mask] if mask else []), q_num_heads=op.attrs["heads"], kv_num_heads=kv_heads,
        scale=op.attrs["scale"], is_causal=0 if mask else 1, softmax_precision=1 if dtype in NARROW else None,
    )  # fmt: skip
    return e.body.node("Squeeze", result, e.body.ints(0))


def attend_capped(body: Body, q: str, k: str, v: str, slopes: str = "", *, dtype: str, attrs: Mapping[str, Any]) -> str:
    """The IR's attention in products and softmax, in f32: q as [kv_heads, group, T, D], k and v as [kv_heads, 1, T, D]."""
    heads, kv_heads, cap = attrs["heads"], attrs["kv_heads"], body.scalar(attrs["softcap"], "f32")
    wide = [body.node("Cast", x, to=ONNX_DTYPES["f32"]) if dtype in NARROW else x for x in (q, k, v)]
    queries, keys, values = (
        body.node("Transpose", body.node("Reshape", x, body.ints(0, kv_heads, group, -1)), perm=perm)
        for x, group, perm in zip(wide, (heads // kv_heads, 1, 1), ([1, 2, 0, 3], [1, 2, 3, 0], [1, 2, 0, 3]))
    )
    scores = body.node("Mul", body.node("MatMul", queries, keys), body.scalar(attrs["scale"], "f32"))
    scores = body.node("Mul", body.node("Tanh", body.node("Div", scores, cap)), cap)
    length = body.node("Squeeze", body.node("Shape", q, start=0, end=1))
    mask = make_mask(body, length, "f32", attrs.get("window"), slopes)
    if slopes:
        scores = body.node("Add", scores, body.node("Reshape", mask, body.ints(kv_heads, heads // kv_heads, 0, 0)))
    else:
        scores = body.node("Where", mask, scores, body.scalar(float("-inf"), "f32"))
    mixed = body.node("MatMul", body.node("Softmax", scores, axis=-1), values)
    flat = body.node("Reshape", body.node("Transpose", mixed, perm=[2, 0, 1, 3]), body.ints(0, -1))
    return body.node("Cast", flat, to=ONNX_DTYPES[dtype]) if dtype in NARROW else flat


def shared_mask(e: Emitter, dtype: str, window: int | None, slopes: str) -> str:
    return make_mask(e.body, e.body.node("Squeeze", e.dim("T")), dtype, window, slopes)


def make_mask(body: Body, length: str, dtype: str, window: int | None, slopes: str) -> str:
    """i1[T, T], or dtype[1, heads, T, T] with slopes: what token i (row) may see of token j (column)."""
    index = body.node("Range", body.scalar(0, "i64"), length, body.scalar(1, "i64"))
    distance = body.node("Sub", body.node("Unsqueeze", index, body.ints(0)), body.node("Unsqueeze", index, body.ints(1)))  # j - i
    seen = body.node("LessOrEqual", distance, body.scalar(0, "i64"))
    if window is not None:
        seen = body.node("And", seen, body.node("Greater", distance, body.scalar(-window, "i64")))
    if not slopes:
        return seen
    to = ONNX_DTYPES[dtype]
    per_head = body.node("Reshape", body.node("Cast", slopes, to=to), body.ints(1, -1, 1, 1))
    bias = body.node("Mul", body.node("Cast", distance, to=to), per_head)
    return body.node("Where", seen, bias, body.scalar(float("-inf"), dtype))
