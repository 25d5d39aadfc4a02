"""The inner loop of attention, as a Triton function that every attention kernel calls: blocks of paged keys into a running softmax.

Knows neither which queries a program has nor where its result goes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tilewright.codegen.plan import KernelPlan
from tilewright.codegen.tiles import AttendTile
from tilewright.codegen.writer import Writer
from tilewright.ir.errors import CodegenError

_LOG2E = math.log2(math.e)
_FEWEST_KEYS = 16  # of a product on tensor cores


@dataclass(frozen=True, slots=True)
class AttendShape:
    """The anchor of an attention region, as numbers."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    page_size: int
    max_pages: int  # of a sequence: columns of the block table
    dtype: str
    scale: float
    window: int | None
    softcap: float | None
    has_slopes: bool
    writes: bool  # the region makes and writes the newest key and value of each sequence

    @property
    def group(self) -> int:
        """Query heads of a key-value head."""
        return self.heads // self.kv_heads

    @staticmethod
    def of(plan: KernelPlan) -> AttendShape:
        anchor = plan.anchor_op
        attrs: dict[str, Any] = dict(anchor.attrs)
        writes = plan.producer(anchor.operands[1] or 0) is not None
        if writes and plan.kind != "decode":
            problem = "writes pages and attends to them, in steps with many tokens of a sequence"
            raise CodegenError(f"kernel {plan.label}", problem, "write_kv belongs to a region of its own")
        keys, values = plan.parameter("k_cache").type, plan.parameter("v_cache").type
        _, kv_heads, page_size, head_dim = (d if isinstance(d, int) else 0 for d in keys.shape)
        return AttendShape(
            heads=attrs["heads"], kv_heads=kv_heads, head_dim=head_dim, value_dim=int(values.shape[-1]), page_size=page_size,
            max_pages=int(plan.parameter("block_table").type.shape[1]), dtype=keys.dtype, scale=attrs["scale"],
            window=attrs["window"], softcap=attrs["softcap"], has_slopes=len(anchor.operands) > 2 and anchor.operands[2] is not None,
            writes=writes,
        )  # fmt: skip


def emit_attend_keys(shape: AttendShape, tile: AttendTile, *, is_decode: bool) -> str:
    """attend_keys(q [rows, D], acc [rows, E], total, highest [rows], keys, values, table, page, position [rows, 1], …, begin, end, last).

    In decode each key is read by one program alone: the cache need not keep it. Its few rows leave registers for a `total` of
    [rows, BLOCK_N], which takes no exchange between warps in the loop; otherwise total is [rows].
    """
    w = Writer()
    w.line('"""Adds keys begin to end (begin a multiple of BLOCK_N) to each row\'s softmax, kept in powers of two.')
    w.line()
    w.line(f"page: that of begin. last: the last key there is.{' total: by lane, to be added up at the end.' if is_decode else ''}")
    w.line('"""')
    w.line("d = tl.arange(0, BLOCK_D)[None, :]")
    w.line("e = tl.arange(0, BLOCK_E)[None, :]")
    w.line("lane = tl.arange(0, BLOCK_N)")
    with w.block("for start in range(begin, end, BLOCK_N):"):
        w.line("key = start + lane[None, :]")
        (_load_from_one_page if _is_one_page(shape, tile) else _load_from_pages)(w, shape, is_decode)
        _score(w, shape)
        _add_scores(w, shape, "tl.where(raised == float(\"-inf\"), 0.0, raised) if MASKED else raised", lanes=is_decode)
    w.line("return acc, total, highest")
    slope = "slope, " if shape.has_slopes else ""
    signature = f"q, acc, total, highest, keys, values, table, page, position, {slope}begin, end, last"
    blocks = "BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, MASKED: tl.constexpr"
    return f"@triton.jit\ndef attend_keys({signature}, {blocks}):\n{w.text}"


def emit_attend_newest(shape: AttendShape) -> str:
    """attend_newest(q, acc, total [rows], highest, new_key [1, D], new_value [1, E]): ends the softmax with a key that all rows see."""
    w = Writer()
    w.line('"""Adds one key: the first row of as many as a product takes."""')
    w.line(f"is_first = tl.arange(0, {_FEWEST_KEYS})[:, None] == 0")
    w.line("k = tl.where(is_first, new_key, 0.0).to(new_key.dtype)")
    w.line("v = tl.where(is_first, new_value, 0.0).to(new_value.dtype)")
    w.line(f"scores = tl.dot(q, tl.trans(k){_precision(shape)})")
    _scale_scores(w, shape)
    w.line(f'scores = tl.where(tl.arange(0, {_FEWEST_KEYS})[None, :] == 0, scores, float("-inf"))')
    _add_scores(w, shape, "raised", lanes=False)
    w.line("return acc, total, highest")
    return f"@triton.jit\ndef attend_newest(q, acc, total, highest, new_key, new_value):\n{w.text}"


def _add_scores(w: Writer, shape: AttendShape, anchor: str, *, lanes: bool) -> None:
    w.line("raised = tl.maximum(highest, tl.max(scores, 1))")
    w.line(f"anchor = {anchor}", "" if anchor == "raised" else "-inf: the row has seen no key yet")
    w.line("weight = tl.exp2(scores - anchor[:, None])")
    w.line("shrink = tl.exp2(highest - anchor)")
    w.line("total = total * shrink[:, None] + weight" if lanes else "total = total * shrink + tl.sum(weight, 1)")
    w.line(f"acc = tl.dot(weight.to(v.dtype), v, acc * shrink[:, None]{_precision(shape)})")
    w.line("highest = raised")


def first_page(shape: AttendShape, tile: AttendTile, begin: str) -> str:
    """What attend_keys takes as `page`: the page of its first block, or of each key of it."""
    place = begin if _is_one_page(shape, tile) else f"{begin} + tl.arange(0, BLOCK_N)"
    return f"tl.load(table + tl.minimum({place}, last) // {shape.page_size})"


def _is_one_page(shape: AttendShape, tile: AttendTile) -> bool:
    return shape.page_size % tile.block_n == 0


def _load_from_one_page(w: Writer, shape: AttendShape, is_decode: bool) -> None:
    """A block of keys lies in one page: one base, and rows in order. Rows after the last key read it again, since memory there may hold NaN."""
    w.line(f"slot = page.to(tl.int64) * {shape.kv_heads * shape.page_size} + start % {shape.page_size}")
    w.line(f"page = tl.load(table + tl.minimum(start + BLOCK_N, last) // {shape.page_size})", "of the next block")
    w.line("place = tl.minimum(lane, last - start) if MASKED else lane")
    _load_both(w, shape, is_decode, "slot * {width} + place[:, None] * {width}")


def _load_from_pages(w: Writer, shape: AttendShape, is_decode: bool) -> None:
    w.line("stored = tl.minimum(start + lane, last)")
    w.line(f"slot = page.to(tl.int64) * {shape.kv_heads * shape.page_size} + stored % {shape.page_size}")
    w.line(f"page = tl.load(table + tl.minimum(start + BLOCK_N + lane, last) // {shape.page_size})", "of the next block")
    _load_both(w, shape, is_decode, "slot[:, None] * {width}")


def _load_both(w: Writer, shape: AttendShape, is_decode: bool, place: str) -> None:
    hint = ', eviction_policy="evict_first"' if is_decode else ""
    for name, base, lane, width in (("k", "keys", "d", shape.head_dim), ("v", "values", "e", shape.value_dim)):
        mask = f", mask={lane} < {width}, other=0.0" if width & (width - 1) or width < 16 else ""
        w.line(f"{name} = tl.load({base} + {place.format(width=width)} + {lane}{mask}{hint})")


def _score(w: Writer, shape: AttendShape) -> None:
    """scores: log2 of each key's weight, up to the row's constant."""
    w.line(f"scores = tl.dot(q, tl.trans(k){_precision(shape)})")
    _scale_scores(w, shape)
    if shape.has_slopes:
        w.line("scores += slope * (key - position).to(tl.float32)")
    with w.block("if MASKED:"):
        window = f" & (position - key < {shape.window})" if shape.window else ""
        w.line(f"visible = (key <= position) & (key <= last){window}")
        w.line('scores = tl.where(visible, scores, float("-inf"))')


def _scale_scores(w: Writer, shape: AttendShape) -> None:
    """scores: from products of query and key to powers of two, but for what depends on how far they are apart."""
    if shape.softcap is None:
        w.line(f"scores = scores * {shape.scale * _LOG2E!r}")
    else:
        capped = f"1.0 - 2.0 / (tl.exp2(scores * {2 * _LOG2E * shape.scale / shape.softcap!r}) + 1.0)"
        w.line(f"scores = ({capped}) * {shape.softcap * _LOG2E!r}", "tanh")


def _precision(shape: AttendShape) -> str:
    return ', input_precision="ieee"' if shape.dtype == "f32" else ""
