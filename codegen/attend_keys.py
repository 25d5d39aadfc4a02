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


def emit_attend_keys(shape: AttendShape, tile: AttendTile, *, is_decode: bool, copies_blocks: bool = False) -> str:
    """attend_keys(q [rows, D], acc [rows, E], total, highest [rows], keys, values, table, page, position [rows, 1], …, begin, end, last).

    copies_blocks: blocks that are visible whole come by the copy engine, through descriptors of the pages' rows; first_row is the head's own.
    """
    w = Writer()
    w.line('"""Adds keys begin to end (begin a multiple of BLOCK_N) to each row\'s softmax. page: that of begin. last: the last key there is."""')
    w.line("d = tl.arange(0, BLOCK_D)[None, :]")
    w.line("e = tl.arange(0, BLOCK_E)[None, :]")
    w.line("lane = tl.arange(0, BLOCK_N)")
    with w.block("for start in range(begin, end, BLOCK_N):"):
        if copies_blocks:
            _copy_or_load(w, shape, is_decode)
        else:
            (_load_from_one_page if is_one_page(shape, tile) else _load_from_pages)(w, shape, is_decode)
        arguments = f"q, acc, total, highest, k, v, start + lane[None, :], position, {slope_argument(shape)}end, MASKED"
        w.line(f"acc, total, highest = attend_block({arguments})")
    w.line("return acc, total, highest")
    blocks = "key_blocks, value_blocks, first_row, " if copies_blocks else ""
    signature = f"q, acc, total, highest, keys, values, {blocks}table, page, position, {slope_argument(shape)}begin, end, last"
    sizes = "BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr, MASKED: tl.constexpr"
    return f"{_emit_attend_block(shape, is_decode)}\n\n@triton.jit\ndef attend_keys({signature}, {sizes}):\n{w.text}"


def _emit_attend_block(shape: AttendShape, is_decode: bool) -> str:
    """In decode, few rows leave registers for a `total` of [rows, BLOCK_N], which takes no exchange between warps; otherwise total is [rows]."""
    w = Writer()
    by_lane = " total: by lane, to be added up at the end." if is_decode else ""
    w.line(f'"""Adds a block of keys, k [BLOCK_N, D] and v [BLOCK_N, E], to each row\'s softmax, kept in powers of two.{by_lane}"""')
    _score(w, shape)
    w.line("raised = tl.maximum(highest, tl.max(scores, 1))")
    w.line('anchor = tl.where(raised == float("-inf"), 0.0, raised) if MASKED else raised', "-inf: the row has seen no key yet")
    w.line("weight = tl.exp2(scores - anchor[:, None])")
    w.line("shrink = tl.exp2(highest - anchor)")
    w.line("total = total * shrink[:, None] + weight" if is_decode else "total = total * shrink + tl.sum(weight, 1)")
    w.line(f"acc = tl.dot(weight.to(v.dtype), v, acc * shrink[:, None]{_precision(shape)})")
    w.line("return acc, total, raised")
    signature = f"q, acc, total, highest, k, v, key, position, {slope_argument(shape)}end, MASKED: tl.constexpr"
    return f"@triton.jit\ndef attend_block({signature}):\n{w.text}"


def emit_last_block(w: Writer, shape: AttendShape, tile: AttendTile) -> None:
    """tail_keys and tail_values, the block from `tail` on, outside of any loop. Rows after the last key are 0: memory there may hold NaN."""
    page_rows, size = shape.kv_heads * shape.page_size, shape.page_size
    w.line("lane = tl.arange(0, BLOCK_N)")
    w.line("is_key = (tail + lane < end)[:, None]")
    if is_one_page(shape, tile):
        w.line(f"tail_rows = tl.load(table + tail // {size}).to(tl.int64) * {page_rows} + tail % {size} + lane")
    else:
        w.line("place = tl.minimum(tail + lane, last)")
        w.line(f"tail_rows = tl.load(table + place // {size}).to(tl.int64) * {page_rows} + place % {size}")
    for which in (1, 0):  # keys, which are turned right away, do not hold up values
        w.line(f"tail_{('keys', 'values')[which]} = {_load(shape, which, True, 'tail_rows[:, None] * {width}', 'is_key')}")


def first_page(shape: AttendShape, tile: AttendTile, begin: str) -> str:
    """What attend_keys takes as `page`: the page of its first block, or of each key of it."""
    place = begin if is_one_page(shape, tile) else f"{begin} + tl.arange(0, BLOCK_N)"
    return f"tl.load(table + tl.minimum({place}, last) // {shape.page_size})"


def is_one_page(shape: AttendShape, tile: AttendTile) -> bool:
    return shape.page_size % tile.block_n == 0


def _load_from_one_page(w: Writer, shape: AttendShape, is_decode: bool) -> None:
    """A block of keys lies in one page: one base, and rows in order. Rows after the last key read it again, since memory there may hold NaN."""
    w.line(f"slot = page.to(tl.int64) * {shape.kv_heads * shape.page_size} + start % {shape.page_size}")
    w.line(f"page = tl.load(table + tl.minimum(start + BLOCK_N, last) // {shape.page_size})", "of the next block")
    w.line("place = tl.minimum(lane, last - start) if MASKED else lane")
    _load_both(w, shape, is_decode, "slot * {width} + place[:, None] * {width}")


def _copy_or_load(w: Writer, shape: AttendShape, is_decode: bool) -> None:
    with w.block("if MASKED:"):
        _load_from_one_page(w, shape, is_decode)
    with w.block("else:"):
        w.line(f"place = page * {shape.kv_heads * shape.page_size} + first_row + start % {shape.page_size}")
        w.line(f"page = tl.load(table + tl.minimum(start + BLOCK_N, last) // {shape.page_size})", "of the next block")
        w.line("k = key_blocks.load([place, 0])")
        w.line("v = value_blocks.load([place, 0])")


def _load_from_pages(w: Writer, shape: AttendShape, is_decode: bool) -> None:
    w.line("stored = tl.minimum(start + lane, last)")
    w.line(f"slot = page.to(tl.int64) * {shape.kv_heads * shape.page_size} + stored % {shape.page_size}")
    w.line(f"page = tl.load(table + tl.minimum(start + BLOCK_N + lane, last) // {shape.page_size})", "of the next block")
    _load_both(w, shape, is_decode, "slot[:, None] * {width}")


def _load_both(w: Writer, shape: AttendShape, is_decode: bool, place: str) -> None:
    for name, which in (("k", 0), ("v", 1)):
        w.line(f"{name} = {_load(shape, which, is_decode, place)}")


def _load(shape: AttendShape, which: int, is_decode: bool, place: str, *masks: str) -> str:
    """Keys (0) or values (1) at `place`, text of the first element of each row with the width to be filled in."""
    base, lane, width = (("keys", "d", shape.head_dim), ("values", "e", shape.value_dim))[which]
    all_masks = (*masks, f"({lane} < {width})") if width & (width - 1) or width < 16 else masks
    mask = f", mask={' & '.join(all_masks)}, other=0.0" if all_masks else ""
    hint = ', eviction_policy="evict_first"' if is_decode else ""
    return f"tl.load({base} + {place.format(width=width)} + {lane}{mask}{hint})"


def _score(w: Writer, shape: AttendShape) -> None:
    """scores: log2 of each key's weight, up to the row's constant."""
    w.line(f"scores = tl.dot(q, tl.trans(k){_precision(shape)})")
    scale_scores(w, shape)
    if shape.has_slopes:
        w.line("scores += slope * (key - position).to(tl.float32)")
    with w.block("if MASKED:"):
        window = f" & (position - key < {shape.window})" if shape.window else ""
        w.line(f"visible = (key <= position) & (key < end){window}")
        w.line('scores = tl.where(visible, scores, float("-inf"))')


def scale_scores(w: Writer, shape: AttendShape) -> None:
    """scores: from products of query and key to powers of two, but for what depends on how far they are apart."""
    if shape.softcap is None:
        w.line(f"scores = scores * {shape.scale * _LOG2E!r}")
    else:
        capped = f"1.0 - 2.0 / (tl.exp2(scores * {2 * _LOG2E * shape.scale / shape.softcap!r}) + 1.0)"
        w.line(f"scores = ({capped}) * {shape.softcap * _LOG2E!r}", "tanh")


def _precision(shape: AttendShape) -> str:
    return ', input_precision="ieee"' if shape.dtype == "f32" else ""


def slope_argument(shape: AttendShape) -> str:
    """What functions over keys take where there are slopes."""
    return "slope, " if shape.has_slopes else ""
