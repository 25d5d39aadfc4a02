"""What each op computes, in plain torch: the slow, obvious path that everything else is compared with. One function per op, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tilewright.ir import ops as _ops  # noqa: F401  # declares what is given a meaning here
from tilewright.ir.errors import GraphError
from tilewright.ir.opdef import OPS

TORCH_DTYPES = {
    "f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16,
    "i64": torch.int64, "i32": torch.int32, "i8": torch.int8, "i1": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {v: k for k, v in TORCH_DTYPES.items()}
_QUANTIZED_AT_ONCE = 1 << 24  # elements of a weight


@dataclass(frozen=True)
class QuantizedTensor:
    """A weight with an encoding: data i8[N, K], scale f32[N]; stands for data * scale per row."""

    data: Tensor
    scale: Tensor

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return (self.data.to(torch.float32) * self.scale.to(torch.float32)[:, None]).to(dtype)


@dataclass(frozen=True)
class Batch:
    """Which rows belong to which request: request b owns rows starts[b] to starts[b + 1] of T. Whole prompts, no cache."""

    starts: tuple[int, ...]

    @staticmethod
    def of_lengths(lengths: list[int]) -> Batch:
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        return Batch(tuple(starts))


REFERENCES: dict[str, Callable[..., Any]] = {}


def reference(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers the torch meaning of an op: operands by position, attributes by keyword; ops with effects get the Batch first."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if name not in OPS:
            raise GraphError(f"reference {name}", "no op of that name is declared")
        if name in REFERENCES:
            raise GraphError(f"reference {name}", f"registered by {REFERENCES[name]} and again by {function}")
        REFERENCES[name] = function
        return function

    return register


def needs_batch(name: str) -> bool:
    return name == "attention" or OPS[name].reads is not None or OPS[name].writes is not None


# -- pointwise ------------------------------------------------------------------------------------------------------------------
def _binary(name: str, function: Callable[[Any, Any], Tensor]) -> None:
    @reference(name)
    def run(x: Tensor, y: Tensor | None = None, *, scalar: float | None = None, reverse: bool = False) -> Tensor:
        other = y if y is not None else scalar
        return (function(other, x) if reverse else function(x, other)).to(x.dtype)


_binary("add", lambda x, y: x + y)
_binary("sub", lambda x, y: x - y)
_binary("mul", lambda x, y: x * y)
_binary("div", lambda x, y: x / y)
_binary("maximum", lambda x, y: torch.maximum(x, torch.as_tensor(y, dtype=x.dtype)))
_binary("minimum", lambda x, y: torch.minimum(x, torch.as_tensor(y, dtype=x.dtype)))


@reference("less")
def _less(x: Tensor, y: Tensor | None = None, *, scalar: float | None = None) -> Tensor:
    return torch.lt(x, scalar if y is None else y)  # type: ignore[arg-type]  # one of the two is given


@reference("equal")
def _equal(x: Tensor, y: Tensor | None = None, *, scalar: float | None = None) -> Tensor:
    return torch.eq(x, scalar if y is None else y)  # type: ignore[arg-type]  # one of the two is given


@reference("where")
def _where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.where(condition, x, y)


_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "neg": torch.neg, "abs": torch.abs, "exp": torch.exp, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "cos": torch.cos, "sin": torch.sin,
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "erf": torch.erf, "relu": torch.relu, "silu": F.silu,
    "log": torch.log, "floor": torch.floor, "round": torch.round,
}  # fmt: skip
for _name, _function in _UNARY.items():
    reference(_name)(_function)


@reference("pow")
def _pow(x: Tensor, y: Tensor | None = None, *, exponent: float | None = None) -> Tensor:
    return torch.pow(x, exponent if y is None else y)  # type: ignore[arg-type]  # one of the two is given


@reference("gelu")
def _gelu(x: Tensor, *, approximate: str) -> Tensor:
    return F.gelu(x, approximate=approximate)


@reference("cast")
def _cast(x: Tensor, *, dtype: str) -> Tensor:
    return x.to(TORCH_DTYPES[dtype])


# -- layout ---------------------------------------------------------------------------------------------------------------------
@reference("reshape")
def _reshape(x: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    return x.reshape(shape)


@reference("transpose")
def _transpose(x: Tensor, *, perm: tuple[int, ...]) -> Tensor:
    return x.permute(perm)


@reference("expand")
def _expand(x: Tensor, *, shape: tuple[int, ...]) -> Tensor:
    return x.expand(shape)


@reference("slice")
def _slice(x: Tensor, *, axis: int, start: int, stop: int, step: int) -> Tensor:
    index = [slice(None)] * x.dim()
    index[axis] = slice(start, stop, step)
    return x[tuple(index)]


@reference("concat")
def _concat(*parts: Any, axis: int) -> Any:
    if isinstance(parts[0], QuantizedTensor):
        return QuantizedTensor(torch.cat([p.data for p in parts], axis), torch.cat([p.scale for p in parts]))
    return torch.cat(parts, axis)


@reference("interleave")
def _interleave(*parts: Any) -> Any:
    if isinstance(parts[0], QuantizedTensor):
        return QuantizedTensor(_interleave(*(p.data for p in parts)), _interleave(*(p.scale for p in parts)))
    return torch.stack(parts, 1).flatten(0, 1)


@reference("iota")
def _iota(*, size: int, dtype: str) -> Tensor:
    return torch.arange(size, dtype=TORCH_DTYPES[dtype])


@reference("full")
def _full(*, shape: tuple[int, ...], value: float, dtype: str) -> Tensor:
    return torch.full(shape, value, dtype=TORCH_DTYPES[dtype])


# -- reductions -----------------------------------------------------------------------------------------------------------------
@reference("mean")
def _mean(x: Tensor, *, axis: int, keepdim: bool) -> Tensor:
    return x.mean(axis, keepdim=keepdim)


@reference("sum")
def _sum(x: Tensor, *, axis: int, keepdim: bool) -> Tensor:
    return x.sum(axis, keepdim=keepdim, dtype=x.dtype)


@reference("max")
def _max(x: Tensor, *, axis: int, keepdim: bool) -> Tensor:
    return x.amax(axis, keepdim=keepdim)


@reference("softmax")
def _softmax(x: Tensor, *, axis: int) -> Tensor:
    return x.softmax(axis)


# -- gathers and products -------------------------------------------------------------------------------------------------------
@reference("embedding")
def _embedding(weight: Any, ids: Tensor) -> Tensor:
    if isinstance(weight, QuantizedTensor):
        return QuantizedTensor(weight.data[ids.long()], weight.scale[ids.long()]).dequantize(torch.float32)
    return weight[ids.long()]


@reference("gather_rows")
def _gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    return x[rows.long()]


@reference("linear")
def _linear(x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
    if isinstance(weight, QuantizedTensor):
        weight = weight.dequantize(x.dtype)
    return F.linear(x, weight, bias)


@reference("matmul")
def _matmul(x: Tensor, y: Tensor) -> Tensor:
    return x @ y


# -- semantic -------------------------------------------------------------------------------------------------------------------
@reference("rms_norm")
def _rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float, rounding: str, offset: float) -> Tensor:
    wide = x.float()
    h = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    if weight is None:
        return h.to(x.dtype)
    if rounding == "before_scale":
        return h.to(x.dtype) * (weight + offset if offset else weight)
    return (h * (weight.float() + offset)).to(x.dtype)


@reference("layer_norm")
def _layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


@reference("rotary")
def _rotary(x: Tensor, cos: Tensor, sin: Tensor, *, head_dim: int, layout: str) -> Tensor:
    heads = x.unflatten(-1, (-1, head_dim))
    turning, rest = heads.split([cos.shape[-1], head_dim - cos.shape[-1]], -1)
    if layout == "half":
        low, high = turning.chunk(2, -1)
        turned = torch.cat([-high, low], -1)
    else:
        turned = torch.stack([-turning[..., 1::2], turning[..., ::2]], -1).flatten(-2)
    return torch.cat([turning * cos[:, None] + turned * sin[:, None], rest], -1).flatten(-2)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu, "sigmoid": torch.sigmoid,
}  # fmt: skip


@reference("gated")
def _gated(gate: Tensor, up: Tensor | None = None, *, activation: str) -> Tensor:
    if up is None:
        gate, up = gate[..., ::2], gate[..., 1::2]
    return ACTIVATIONS[activation](gate) * up


@reference("quantize")
def _quantize(weight: Tensor, *, dtype: str, scale: str) -> QuantizedTensor:
    """A few rows at a time: in f32 the whole of a large weight would take several times its own memory."""
    data = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(weight.shape[:1], dtype=TORCH_DTYPES[scale])
    step = max(1, _QUANTIZED_AT_ONCE // max(1, weight[:1].numel()))
    for rows, integers, factors in zip(weight.split(step), data.split(step), scales.split(step)):
        wide = rows.float()
        factors.copy_(wide.abs().amax(1) / 127)
        safe = torch.where(factors > 0, factors, torch.ones_like(factors)).float()
        integers.copy_((wide / safe[:, None]).round().clamp(-127, 127))
    return QuantizedTensor(data, scales)


@reference("encode")
def _encode(data: Tensor, scale: Tensor) -> QuantizedTensor:
    return QuantizedTensor(data, scale)


@reference("attention")
def _attention(
    batch: Batch, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None = None, *,
    heads: int, kv_heads: int, scale: float, layer: int, window: int | None, softcap: float | None,
) -> Tensor:  # fmt: skip
    q, k, v = q.unflatten(-1, (heads, -1)), k.unflatten(-1, (kv_heads, -1)), v.unflatten(-1, (kv_heads, -1))
    out = q.new_zeros(q.shape[0], heads, v.shape[-1])
    for start, stop in zip(batch.starts, batch.starts[1:]):
        out[start:stop] = attend_one(q[start:stop], k[start:stop], v[start:stop], slopes, scale=scale, window=window, softcap=softcap)
    return out.flatten(1)


def attend_one(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None, *, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """Causal attention of one request, in f32 (f64 stays): q [M, heads, D], the last M of N tokens; k [N, kv_heads, D], v [N, kv_heads, E]."""
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    group = q.shape[1] // k.shape[1]
    queries = q.transpose(0, 1).to(wide)
    keys, values = (t.transpose(0, 1).to(wide).repeat_interleave(group, 0) for t in (k, v))
    scores = queries @ keys.transpose(1, 2) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores.double() / softcap).to(wide)  # some builds of torch have a tanh of 1e-5 in f32
    row = torch.arange(k.shape[0] - q.shape[0], k.shape[0], device=q.device)[:, None]
    column = torch.arange(k.shape[0], device=q.device)[None, :]
    if slopes is not None:
        scores = scores + slopes.to(wide)[:, None, None] * (column - row)
    hidden = (column > row) | ((row - column) >= window if window is not None else False)
    return (scores.masked_fill(hidden, -math.inf).softmax(-1) @ values).transpose(0, 1).to(q.dtype)


@reference("write_kv")
def _write_kv(batch: Batch, k: Tensor, v: Tensor, *, kv_heads: int, layer: int) -> tuple[Tensor, Tensor]:
    return k, v


@reference("attend")
def _attend(
    batch: Batch, q: Tensor, kv: tuple[Tensor, Tensor], slopes: Tensor | None = None, *,
    heads: int, scale: float, layer: int, window: int | None, softcap: float | None,
) -> Tensor:  # fmt: skip
    kv_heads = kv[0].shape[-1] * heads // q.shape[-1]
    return _attention(batch, q, *kv, slopes, heads=heads, kv_heads=kv_heads, scale=scale, layer=layer, window=window, softcap=softcap)
