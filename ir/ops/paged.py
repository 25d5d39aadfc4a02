"""Attention split at the paged key-value cache: what writes a layer's pages and what reads them. The `kv` value orders the two."""

from __future__ import annotations

from collections.abc import Mapping

from tilewright.ir.errors import GraphError
from tilewright.ir.opdef import op
from tilewright.ir.ops.shapes import same_dtype, static_dim
from tilewright.ir.types import TensorType

T = TensorType


@op("paged", writes="kv")
def write_kv(k: T, v: T, *, kv_heads: int, layer: int) -> T:
    """Stores each token's key and value in its slot of the layer's pages: k [T, kv_heads * D], v [T, kv_heads * E] -> kv[kv_heads, D, E]"""
    same_dtype("write_kv", k, v)
    widths = [static_dim("write_kv", t, -1) for t in (k, v)]
    if any(w % kv_heads for w in widths):
        raise GraphError("write_kv", f"k {k}, v {v} with kv_heads={kv_heads}")
    return T("kv", (kv_heads, widths[0] // kv_heads, widths[1] // kv_heads))


def _attend_operations(dims: Mapping[str, int], q: T, kv: T, slopes: T | None = None, *, heads: int, **_: object) -> int:
    context = dims.get("context", dims.get("T", 1))
    return 2 * context * (q.num_elements(dims) + dims["T"] * heads * int(kv.shape[2]))


@op("paged", reads="kv", operations=_attend_operations)
def attend(
    q: T, kv: T, slopes: T | None = None, *, heads: int, scale: float, layer: int, window: int | None = None, softcap: float | None = None
) -> T:
    """`attention` with keys and values read from the layer's pages: q [T, heads * D], kv[kv_heads, D, E] -> [T, heads * E]"""
    if kv.dtype != "kv":
        raise GraphError("attend", f"second operand is {kv}", "it must be the result of write_kv")
    if static_dim("attend", q, -1) != heads * int(kv.shape[1]) or heads % int(kv.shape[0]):
        raise GraphError("attend", f"q {q} with heads={heads} does not fit {kv}")
    return T(q.dtype, (q.shape[0], heads * int(kv.shape[2])))
