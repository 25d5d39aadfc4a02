"""Tiles worth a try beside a plan's default: tables of moves by what the kernel does and how many tokens a step has. Measures nothing.

A move sets fields of LinearTile or AttendTile by name, as a plan's `config` does. The order is fixed, and where there are many the likely ones come
first.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from tilewright.codegen.attend_keys import AttendShape
from tilewright.codegen.linear_product import Product, tile_of
from tilewright.codegen.plan import KernelPlan
from tilewright.codegen.tiles import Machine, keep_order, machine, next_power_of_two, override
from tilewright.ir.types import ITEM_BYTES

Move = dict[str, int]
TEMPLATES = ("linear", "attend")  # those that have tiles
_STREAMED = 256  # tokens of a step up to which the weight is what costs
_BUSY, _MOST_PROGRAMS = 0.45, 2000  # share of the cores that must have work; more programs than that only cost launches


def list_moves(plan: KernelPlan) -> list[Move]:
    """None for a plan without tiles. Deterministic plans get moves that add up in the same order. Some give the same tile."""
    if plan.language != "triton" or plan.template not in TEMPLATES:
        return []
    config = dict(plan.config)
    device = machine(config.get("arch", 90))
    found = _linear_moves(plan, device) if plan.template == "linear" else _attend_moves(plan, device)
    return [_in_order(plan, move) for move in found] if config.get("deterministic") else list(found)


def _in_order(plan: KernelPlan, move: Move) -> Move:
    """What of a move leaves alone in which order a deterministic plan adds up: the same in every program of the engine."""
    if plan.template == "attend":
        return {"num_stages": move["num_stages"]}
    product = Product.of(plan)
    default = tile_of(product)
    moved = override(default, {**move, "block_k": default.block_k, "weights_left": 0, "direct": 0})
    tile = keep_order(moved, ITEM_BYTES[product.weight.type.dtype])
    return {name: int(value) for name, value in asdict(tile).items() if value != getattr(default, name)}


def _pick(rows: Iterable[tuple[int, ...]], *names: str) -> Iterator[Move]:
    return (dict(zip(names, row)) for row in rows)


# -- products -------------------------------------------------------------------------------------------------------------------
def _linear_moves(plan: KernelPlan, device: Machine) -> Iterator[Move]:
    product = Product.of(plan)
    weight_bytes, tile = ITEM_BYTES[product.weight.type.dtype], tile_of(product)
    if tile.block_m == 1:
        return _vector_moves(product.k, weight_bytes)
    if product.dtype == "f32":
        return _pick(_EXACT, "block_m", "block_n", "block_k", "num_warps", "num_stages")
    if 0 < product.tokens <= _STREAMED:
        return _stream_moves(product, weight_bytes, dict(plan.config).get("arch", 90), device)
    return _large_moves(device)


def _vector_moves(k: int, weight_bytes: int) -> Iterator[Move]:
    whole = max(32, next_power_of_two(k))
    steps = sorted({step for step in (512, 1024, 2048, 4096, whole) if step <= min(whole, 8192)})
    fewest, most = 16 if k >= 1024 else 2, 128 if weight_bytes == 1 else 64
    for rows, step, warps in itertools.product((2, 4, 8) if k < 8192 else (4, 8), steps, (1, 2, 4, 8, 16)):
        held = rows * step // (warps * 32)  # elements of the weight that a thread has on their way; more of them pay where one step does
        if fewest <= held <= (most if step == whole else most // 2) and (warps >= 4 or step == whole or k < 4096):
            yield {"block_n": rows, "block_k": step, "num_warps": warps}
    if weight_bytes == 1:
        yield {"biased": 0}


_EXACT = (  # f32 without tensor cores: (block_m, block_n, block_k, warps, stages)
    (16, 32, 32, 4, 2), (32, 64, 32, 4, 2), (64, 32, 32, 4, 2), (64, 64, 16, 4, 2), (64, 64, 32, 8, 2), (32, 32, 64, 4, 2), (128, 64, 16, 8, 2),
)  # fmt: skip
# (block_n, block_k, warps, stages) for products that stream the weight, by how many tokens a tile holds. Where a core has one block, many stages
# make up for it: the tokens are on their way, too.
_NARROW = (
    (64, 128, 4, 3), (64, 128, 4, 4), (64, 128, 4, 5), (64, 128, 4, 6), (64, 256, 4, 3), (64, 64, 4, 6), (128, 64, 4, 4), (128, 128, 8, 3),
    (128, 64, 8, 5),
)  # fmt: skip
_MIDDLE = (
    (64, 128, 4, 3), (64, 128, 4, 5), (64, 64, 4, 4), (64, 64, 4, 6), (64, 64, 4, 8), (128, 64, 4, 3), (128, 64, 4, 4), (128, 64, 8, 4),
    (128, 64, 8, 6), (128, 128, 8, 3),
)  # fmt: skip
_BROAD = (
    (64, 64, 4, 4), (64, 64, 4, 6), (64, 64, 4, 8), (64, 128, 4, 4), (128, 64, 8, 3), (128, 64, 8, 4), (128, 64, 8, 6), (128, 128, 8, 3),
    (256, 64, 8, 3), (256, 64, 8, 4),
)  # fmt: skip
_FINE = ((16, 256, 2, 4), (16, 256, 2, 6), (16, 512, 4, 3), (32, 128, 2, 6), (32, 256, 2, 3), (32, 256, 4, 4), (32, 512, 4, 3))  # for mma.sync
# The same for int8 as words on the left, in front of wgmma; two warps are too few for it and take bytes to mma.
_NARROW_INT8 = (
    (64, 128, 4, 4), (64, 128, 4, 6), (64, 256, 4, 4), (64, 256, 4, 6), (64, 512, 4, 3), (128, 128, 4, 4), (128, 128, 8, 4), (128, 128, 8, 6),
    (128, 256, 8, 3), (256, 64, 8, 5), (64, 128, 2, 4), (128, 64, 2, 4),
)  # fmt: skip
_MIDDLE_INT8 = (
    (64, 128, 4, 4), (64, 128, 4, 6), (128, 64, 4, 4), (128, 64, 4, 6), (128, 128, 8, 4), (128, 128, 8, 5), (256, 64, 8, 4), (256, 128, 8, 3),
)  # fmt: skip
_BROAD_INT8 = (
    (64, 64, 4, 4), (128, 64, 8, 4), (128, 64, 8, 6), (128, 128, 8, 3), (128, 128, 8, 4), (256, 64, 8, 3), (256, 64, 8, 4),
)  # fmt: skip
_WIDE, _PARTS = 16384, (1, 2, 3, 4, 8)  # rows of a weight that has tiles enough without splits; splits


def _stream_moves(product: Product, weight_bytes: int, arch: int, device: Machine) -> Iterator[Move]:
    is_int8, n, tokens = weight_bytes == 1, product.n, product.tokens
    m = min(128, max(16, next_power_of_two(tokens)))
    most_parts = (8 if n <= _WIDE else 4 if m >= 128 else 1) if product.k >= 1024 else 1
    for (block_m, block_n, block_k, warps, stages, left), splits, direct in itertools.product(_stream_shapes(m, arch, is_int8), _PARTS, (0, 1)):
        programs = -(-n // block_n) * -(-tokens // block_m) * splits
        if stages * block_k * (block_m * 2 + block_n * weight_bytes) > 0.86 * device.shared_bytes or splits > most_parts:
            continue
        if direct and not (is_int8 and left and block_n % (16 * warps) == 0 and warps >= 4 and stages <= 4):
            continue
        is_busy = _BUSY * device.num_cores <= programs <= max(_MOST_PROGRAMS, programs // splits)
        if is_busy or splits == most_parts:
            yield {
                "block_m": block_m, "block_n": block_n, "block_k": block_k, "num_warps": warps, "num_stages": stages, "splits": splits,
                "weights_left": left, **({"direct": 1} if direct else {}),
            }  # fmt: skip


def _stream_shapes(m: int, arch: int, is_int8: bool) -> list[tuple[int, ...]]:
    """block_m, block_n, block_k, warps, stages, weights_left."""
    narrow, middle, broad = (_NARROW_INT8, _MIDDLE_INT8, _BROAD_INT8) if is_int8 else (_NARROW, _MIDDLE, _BROAD)
    left = int(arch == 90 if is_int8 else arch >= 90)
    shapes = [(m, *size, left) for size in (narrow if m <= 32 else middle if m <= 64 else broad)]
    if m <= 32 and not is_int8:
        shapes += [(m, *size, 0) for size in _FINE]
    if m > 32 and is_int8:
        shapes += [(m, rows, 64, 8, stages, 0) for rows, stages in ((128, 4), (128, 6), (256, 4))]
    return shapes


def _large_moves(device: Machine) -> Iterator[Move]:
    for (m, n), k, warps, stages in itertools.product(((128, 64), (128, 128), (128, 256), (256, 128)), (64, 128), (4, 8), (3, 4)):
        if stages * k * (m + n) * 2 <= device.shared_bytes:
            yield {"block_m": m, "block_n": n, "block_k": k, "num_warps": warps, "num_stages": stages}


# -- attention ------------------------------------------------------------------------------------------------------------------
_DECODE_BLOCKS = ((64, 4), (128, 4), (64, 2), (128, 8), (32, 1))  # keys, warps
_SHORT = ({"alone_blocks": 1}, {"alone_blocks": 4})  # what short parts spend their time on
_FEW_PROGRAMS, _MANY_PROGRAMS = 32, 1024  # of a step, where keys are split


def _attend_moves(plan: KernelPlan, device: Machine) -> Iterator[Move]:
    shape = AttendShape.of(plan)
    size, width = ITEM_BYTES[shape.dtype], max(shape.head_dim, shape.value_dim)

    def fits(rows: int, keys: int, stages: int) -> bool:
        return (rows + 2 * stages * keys) * width * size <= device.shared_bytes

    if plan.kind == "decode":
        return _decode_moves(plan, shape, fits)
    return _ragged_moves(shape, fits)


def _decode_moves(plan: KernelPlan, shape: AttendShape, fits: Any) -> Iterator[Move]:
    """Blocks with the default's splits; splits, and what else short contexts need, with the default's blocks; then blocks with splits."""
    rows = max(16, next_power_of_two(shape.group))
    blocks = [
        {"block_n": keys, "num_warps": warps, "num_stages": stages}
        for stages, (keys, warps) in itertools.product((2, 3), _DECODE_BLOCKS)
        if fits(rows, keys, stages)
    ]
    longest = min(shape.max_pages * shape.page_size, shape.window or shape.max_pages * shape.page_size)
    alone = plan.max_tokens * shape.kv_heads
    splits = [
        {"num_splits": number, "fill_blocks": fill}
        for number, fill in itertools.product((1, 2, 4, 8, 16, 32), (1, 2, 4))
        if (fill == 1 if number == 1 else _FEW_PROGRAMS <= alone * number <= _MANY_PROGRAMS and longest > 16 * number)
    ]
    yield from blocks
    yield from (dict(move) for move in _SHORT)
    yield from splits
    yield from ({**block, **parts} for block, parts in itertools.product(blocks, splits))


def _ragged_moves(shape: AttendShape, fits: Any) -> Iterator[Move]:
    few = max(16, next_power_of_two(shape.group))
    for rows, keys, warps, stages in itertools.product((64, 128, 32, 16), (64, 32, 128), (4, 8), (3, 2, 4)):
        if rows >= few and rows * keys // warps >= 256 and fits(rows, keys, stages):
            yield {"block_m": rows, "block_n": keys, "num_warps": warps, "num_stages": stages}
