"""Ops that say what a model means: norms, rotary embedding, gated activation, attention, quantized weights. Raised from core ops."""

from __future__ import annotations

from collections.abc import Mapping

from tilewright.ir.errors import GraphError
from tilewright.ir.opdef import op
from tilewright.ir.ops.shapes import check_float, same_dtype, static_dim
from tilewright.ir.types import Encoding, TensorType

T = TensorType
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "sigmoid")


def _scale_fits(name: str, x: T, weight: T | None) -> None:
    check_float(name, x)
    if weight is not None and weight.shape != (x.shape[-1],):
        raise GraphError(name, f"weight {weight} does not fit the last axis of x {x}")


@op("semantic")
def rms_norm(x: T, weight: T | None = None, *, eps: float, rounding: str = "before_scale", offset: float = 0.0) -> T:
    """h * (weight + offset), h = x / sqrt(mean(x²) + eps) in f32 over the last axis.

    rounding=before_scale: h is rounded to x's dtype, then scaled in it (Llama); after_scale: scaled in f32, then rounded (Gemma).
    """
    _scale_fits("rms_norm", x, weight)
    if rounding not in ("before_scale", "after_scale"):
        raise GraphError("rms_norm", f"rounding={rounding!r}", "use before_scale or after_scale")
    return x


@op("core")
def layer_norm(x: T, weight: T | None = None, bias: T | None = None, *, eps: float) -> T:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis, in f32, rounded at the end"""
    _scale_fits("layer_norm", x, weight)
    _scale_fits("layer_norm", x, bias)
    return x


@op("semantic")
def rotary(x: T, cos: T, sin: T, *, head_dim: int, layout: str = "half") -> T:
    """x * cos + turn(x) * sin on the first R elements of each head: x [T, heads * head_dim], cos and sin [T, R].

    layout=half: turn(x)[i] = -x[i + R/2] for i < R/2, x[i - R/2] after; interleaved: turn(x)[2i] = -x[2i + 1], turn(x)[2i + 1] = x[2i].
    """
    rotary_dim = static_dim("rotary", cos, -1)
    same_dtype("rotary", x, cos, sin)
    if x.rank != 2 or static_dim("rotary", x, -1) % head_dim or rotary_dim > head_dim or rotary_dim % 2:
        raise GraphError("rotary", f"x {x} with head_dim={head_dim}, cos {cos}", "x is [T, heads * head_dim], cos and sin [T, R <= head_dim]")
    if cos.shape != sin.shape or cos.shape[0] != x.shape[0]:
        raise GraphError("rotary", f"cos {cos} and sin {sin} do not fit x {x}")
    if layout not in ("half", "interleaved"):
        raise GraphError("rotary", f"layout={layout!r}", "use half or interleaved")
    return x


@op("semantic")
def gated(gate: T, up: T | None = None, *, activation: str) -> T:
    """activation(gate) * up; with one operand [T, 2N], gate and up are its even and odd columns"""
    if activation not in ACTIVATIONS:
        raise GraphError("gated", f"activation={activation!r}", "use one of " + ", ".join(ACTIVATIONS))
    check_float("gated", gate)
    if up is None:
        return gate.with_shape(*gate.shape[:-1], static_dim("gated", gate, -1) // 2)
    if gate != up:
        raise GraphError("gated", f"gate {gate} and up {up} differ")
    return gate


def _attention_operations(dims: Mapping[str, int], q: T, k: T, v: T, slopes: T | None = None, *, heads: int, **_: object) -> int:
    context = dims.get("context", dims.get("T", 1))
    return 2 * context * (q.num_elements(dims) + dims["T"] * heads * int(v.shape[-1]))


@op("core", operations=_attention_operations)
def attention(
    q: T, k: T, v: T, slopes: T | None = None, *,
    heads: int, kv_heads: int, scale: float, layer: int, window: int | None = None, softcap: float | None = None,
) -> T:  # fmt: skip
    """Causal attention of each token over its own request: softmax(scale q·kᵀ, capped, + slopes * (j - i)) · v.

    q [T, heads * D], k [T, kv_heads * D], v [T, kv_heads * E], slopes f32[heads] (ALiBi) -> [T, heads * E]. Token i sees j with
    i - window < j <= i. softcap: c tanh(score / c). Query head h reads key-value head h * kv_heads // heads.
    """
    dtype = same_dtype("attention", q, k, v)
    if heads % kv_heads:
        raise GraphError("attention", f"heads={heads} is not a multiple of kv_heads={kv_heads}")
    widths = [static_dim("attention", t, -1) for t in (q, k, v)]
    if q.rank != 2 or k.rank != 2 or v.rank != 2 or widths[0] * kv_heads != widths[1] * heads or widths[2] % kv_heads:
        raise GraphError("attention", f"q {q}, k {k}, v {v} with heads={heads}, kv_heads={kv_heads}", "they are [T, heads * head_dim]")
    if slopes is not None and slopes.shape != (heads,):
        raise GraphError("attention", f"slopes {slopes} for {heads} heads")
    return T(dtype, (q.shape[0], widths[2] // kv_heads * heads))


@op("semantic")
def quantize(weight: T, *, dtype: str = "i8", scale: str = "f32") -> T:
    """Symmetric per output row: data[n, k] = round(weight[n, k] / s[n]), s[n] = max|weight[n]| / 127. The result's type carries it."""
    check_float("quantize", weight)
    if weight.rank != 2 or dtype != "i8":
        raise GraphError("quantize", f"weight {weight} to {dtype}", "weights are [N, K], dtype is i8")
    return T(dtype, weight.shape, Encoding(scale=scale))


@op("core")
def encode(data: T, scale: T) -> T:
    """data * scale[:, None], kept as the integers that it is: data i8[N, K], scale [N]. For weights that come quantized."""
    check_float("encode", scale)
    if data.dtype != "i8" or data.rank != 2 or scale.shape != data.shape[:1]:
        raise GraphError("encode", f"data {data} with scale {scale}", "data is i8[N, K], scale [N]")
    return T(data.dtype, data.shape, Encoding(scale=scale.dtype))
