"""RotaryEmbedding and Attention. Causal attention over one request becomes the IR's own op, any other is written out in products and softmax."""

from __future__ import annotations

import math
from typing import Any

import torch

from tilewright.frontend.onnx_layout import gather, repeat
from tilewright.frontend.onnx_table import Node, axis_in, cast, claims, expand, fixed, product, reshape, transpose
from tilewright.ir.graph import Value
from tilewright.ir.ops.shapes import broadcast
from tilewright.ir.reference import TORCH_DTYPES
from tilewright.ir.types import Dim


# -- rotary embedding -----------------------------------------------------------------------------------------------------------
@claims("RotaryEmbedding")
def _rotary(n: Node) -> Value:
    """x [B, heads, S, D] or [B, S, heads * D]; cos and sin [B, S, R / 2], or tables that positions choose from."""
    x = n.value(0)
    heads = fixed(n, x.type.shape[1]) if x.type.rank == 4 else int(n.attr("num_heads"))
    by_token = transpose(n, x, [0, 2, 1, 3]) if x.type.rank == 4 else x
    batch, length = by_token.type.shape[:2]
    width = fixed(n, product(n, by_token.type.shape[2:]))
    tables = [gather(n, n.value(i), n.value(3), 0) if n.has(3) else n.value(i) for i in (1, 2)]
    layout = "interleaved" if n.attr("interleaved", 0) else "half"
    rows = product(n, (batch, length))
    cos, sin = (doubled(n, reshape(n, t, (rows, t.type.shape[-1])), layout) for t in tables)
    turned = n.emit("rotary", reshape(n, by_token, (rows, width)), cos, sin, head_dim=width // heads, layout=layout)
    if x.type.rank == 3:
        return reshape(n, turned, x.type.shape)
    return transpose(n, reshape(n, turned, by_token.type.shape), [0, 2, 1, 3])


def doubled(n: Node, table: Value, layout: str) -> Value:
    """[T, R / 2] -> [T, R]: each angle for both elements of its pair. Our own files cut the table from one that had them."""
    cut = table.producer
    if n.told_op == "rotary" and cut is not None and cut.name == "slice" and cut.inputs[0].type.shape[1] == 2 * fixed(n, table.type.shape[1]):
        return cut.inputs[0]
    return n.emit("concat", table, table, axis=1) if layout == "half" else repeat(n, table, 1, 2)


# -- attention ------------------------------------------------------------------------------------------------------------------
@claims("Attention")
def _attention(n: Any) -> list[Value | None]:
    q, k, v = (n.value(i) for i in range(3))
    if is_one_request(n, q, k):
        return [raise_attention(n, q, k, v)]
    is_flat = q.type.rank == 3
    if is_flat:
        heads, kv_heads = int(n.attr("q_num_heads")), int(n.attr("kv_num_heads"))
        q, k, v = (by_head(n, t, count) for t, count in ((q, heads), (k, kv_heads), (v, kv_heads)))
    if n.has(4):
        k, v = n.emit("concat", n.value(4), k, axis=2), n.emit("concat", n.value(5), v, axis=2)
    result, seen = attend(n, q, k, v)
    if is_flat:
        shape = result.type.shape
        result = reshape(n, transpose(n, result, [0, 2, 1, 3]), (shape[0], shape[2], fixed(n, shape[1]) * fixed(n, shape[3])))
    return [result, k, v, seen][: n.num_outputs]


def is_one_request(n: Any, q: Value, k: Value) -> bool:
    """Causal, by itself or by a mask that is understood, with no past, over tokens whose number is the step's."""
    length = -2 if q.type.rank == 4 else 1
    alone = q.type.shape[0] == 1 and q.type.shape[length] == k.type.shape[length] == "T"
    is_causal = n.mask() is not None or (n.attr("is_causal", 0) and not n.has(3))
    return bool(alone and is_causal and n.num_outputs == 1 and not any(n.has(i) for i in range(4, 7)))


def raise_attention(n: Any, q: Value, k: Value, v: Value) -> Value:
    """The IR's attention over q [T, heads * D]. left_window_size w sees w tokens before its own."""
    heads, kv_heads = (int(t.type.shape[1]) if t.type.rank == 4 else int(n.attr(name)) for t, name in ((q, "q_num_heads"), (k, "kv_num_heads")))
    flat = []
    for t in (q, k, v):
        rows = transpose(n, t, [0, 2, 1, 3]) if t.type.rank == 4 else t
        flat.append(reshape(n, rows, (rows.type.shape[1], fixed(n, product(n, rows.type.shape[2:])))))
    left, softcap = n.attr("left_window_size", -1), float(n.attr("softcap", 0.0))
    head_dim = int(flat[0].type.shape[1]) // heads
    mask = n.mask()
    windows = [w for w in (left + 1 if left >= 0 else None, mask.window if mask else None) if w is not None]
    slopes = n.constant(torch.tensor(mask.slopes)) if mask and mask.slopes else None
    made = n.emit(
        "attention", *flat, slopes, heads=heads, kv_heads=kv_heads, scale=float(n.attr("scale", 1 / math.sqrt(head_dim))),
        layer=n.count_attention(), window=min(windows, default=None), softcap=softcap or None,
    )  # fmt: skip
    if q.type.rank == 3:
        return reshape(n, made, (1, *made.type.shape))
    return transpose(n, reshape(n, made, (1, made.type.shape[0], heads, int(made.type.shape[1]) // heads)), [0, 2, 1, 3])


def by_head(n: Node, x: Value, heads: int) -> Value:
    """[B, S, heads * D] -> [B, heads, S, D]"""
    batch, length, width = x.type.shape
    return transpose(n, reshape(n, x, (batch, length, heads, fixed(n, width) // heads)), [0, 2, 1, 3])


def attend(n: Node, q: Value, k: Value, v: Value) -> tuple[Value, Value | None]:
    """softmax(cap(q · kᵀ) + masks) · v by head, and the scores at the point that the node asks for."""
    group = fixed(n, q.type.shape[1]) // fixed(n, k.type.shape[1])
    wide_k, wide_v = repeat(n, k, 1, group), repeat(n, v, 1, group)
    root = math.sqrt(float(n.attr("scale", 0) or 1 / math.sqrt(fixed(n, q.type.shape[3]))))
    keys = transpose(n, n.emit("mul", wide_k, scalar=root), [0, 1, 3, 2])
    points = [n.emit("matmul", n.emit("mul", q, scalar=root), keys)]
    cap = float(n.attr("softcap", 0.0))
    points.append(n.emit("mul", n.emit("tanh", n.emit("div", points[0], scalar=cap)), scalar=cap) if cap else points[0])
    masked = apply_masks(n, points[1], q, k)
    points += [masked, probabilities(n, masked)]
    dtype = q.type.dtype
    result = n.emit("matmul", cast(n, points[3], wide_v.type.dtype), wide_v)
    seen = cast(n, points[int(n.attr("qk_matmul_output_mode", 0))], dtype) if n.num_outputs > 3 else None
    return result, seen


def probabilities(n: Node, scores: Value) -> Value:
    """A row that sees nothing gives zeros."""
    wide = cast(n, scores, n.dtype(n.attr("softmax_precision")) if n.attr("softmax_precision", 0) else scores.type.dtype)
    shares = n.emit("softmax", wide, axis=-1)
    if may_hide_all(n):
        sees_nothing = n.emit("equal", n.emit("max", wide), scalar=-math.inf)
        shares = n.emit("where", expand(n, sees_nothing, shares.type.shape), number(n, 0.0, shares.type.dtype), shares)
    return cast(n, shares, scores.type.dtype)


def may_hide_all(n: Node) -> bool:
    return n.has(3) or n.has(6) or n.attr("left_window_size", -1) >= 0 or n.attr("right_window_size", -1) >= 0


# -- masks ----------------------------------------------------------------------------------------------------------------------
def apply_masks(n: Node, scores: Value, q: Value, k: Value) -> Value:
    dtype, shape = scores.type.dtype, scores.type.shape
    allowed = [m for m in (causal(n, q, k), nonpad(n, q, k)) if m is not None]
    if n.has(3):
        mask = padded(n, n.value(3), k.type.shape[2])
        if mask.type.dtype == "i1":
            allowed.append(mask)
        else:
            scores = n.emit("add", scores, mask)
    for mask in allowed:
        full = expand(n, mask, broadcast("Attention", mask.type.shape, shape))
        scores = n.emit("where", full, scores, number(n, -math.inf, dtype))
    return scores


def causal(n: Node, q: Value, k: Value) -> Value | None:
    """i1[S, N]: what causality and windows let a query see, where no input says how many keys there are."""
    left, right = window(n)
    if n.has(6) or (left < 0 and right < 0):
        return None
    length, context = fixed(n, q.type.shape[2]), fixed(n, k.type.shape[2])
    past = fixed(n, n.value(4).type.shape[2]) if n.has(4) else 0
    distance = torch.arange(context)[None, :] - (torch.arange(length)[:, None] + past)
    return n.constant(within(distance, left, right))


def within(distance: torch.Tensor, left: int, right: int) -> torch.Tensor:
    seen = torch.ones_like(distance, dtype=torch.bool)
    seen = seen & (distance >= -left) if left >= 0 else seen
    return seen & (distance <= right) if right >= 0 else seen


def window(n: Node) -> tuple[int, int]:
    """How far a query sees before and after its own place; -1: without end."""
    left, right = n.attr("left_window_size", -1), n.attr("right_window_size", -1)
    return left, (0 if n.attr("is_causal", 0) else right)


def nonpad(n: Node, q: Value, k: Value) -> Value | None:
    """i1[B, 1, S, N]: keys before the number that is given for each sequence, of which the queries are the last."""
    if not n.has(6):
        return None
    length, context = fixed(n, q.type.shape[2]), fixed(n, k.type.shape[2])
    count = reshape(n, n.value(6), (n.value(6).type.shape[0], 1, 1, 1))
    shape: tuple[Dim, ...] = (count.type.shape[0], 1, length, context)
    column = torch.arange(context).reshape(1, 1, 1, context)
    seen = [n.emit("less", n.constant(column), count)]
    left, right = window(n)
    distance = n.constant(column - torch.arange(length).reshape(1, 1, length, 1) + length)  # plus what the count takes away
    if right >= 0:
        seen.append(n.emit("less", distance, n.emit("add", count, scalar=right + 1)))
    if left >= 0:
        seen.append(n.emit("less", n.emit("sub", count, scalar=left + 1), distance))
    full = [expand(n, s, shape) for s in seen]
    result = full[0]
    for other in full[1:]:
        result = n.emit("minimum", result, other)
    return result


def padded(n: Node, mask: Value, context: Dim) -> Value:
    """A mask that is shorter than the keys hides the rest of them."""
    axis = axis_in(n, -1, mask.type)
    missing = fixed(n, context) - fixed(n, mask.type.shape[axis]) if mask.type.shape[axis] not in (context, 1) else 0
    if not missing:
        return mask
    fill = torch.full((*(fixed(n, d) for d in mask.type.shape[:-1]), missing), -math.inf if mask.type.dtype != "i1" else 0.0)
    return n.emit("concat", mask, n.constant(fill.to(TORCH_DTYPES[mask.type.dtype])), axis=axis)


def number(n: Node, value: float, dtype: str) -> Value:
    return n.constant(torch.tensor(value, dtype=TORCH_DTYPES[dtype]))
