"""Tile sizes by shape, number of tokens, weight width and architecture: readable tables, the defaults that tuning starts from.

Knows no plan and no source text. A plan's `config` overrides single fields by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TypeVar

from tilewright.ir.errors import CodegenError


@dataclass(frozen=True, slots=True)
class LinearTile:
    """block_m 1: a matrix-vector product on CUDA cores; otherwise tensor cores."""

    block_m: int  # tokens
    block_n: int  # rows of the weight
    block_k: int
    num_warps: int
    num_stages: int
    group_m: int = 1  # token tiles that are dealt together, so that they share weight tiles in L2
    weights_left: bool = False  # the weight is the dot's left operand: only that one can come from registers on sm_90
    biased: bool = True  # matrix-vector product: bytes are converted as weight + 128; otherwise they become the last bits of 2 ** 23 + weight


@dataclass(frozen=True, slots=True)
class AttendTile:
    block_m: int  # rows: tokens times query heads of a key-value head
    block_n: int  # keys
    num_warps: int
    num_stages: int
    num_splits: int = 1  # parts of a sequence's keys that are read by different programs, at most
    fill_splits: int = 1  # of these, as many as fill the machine once: worth while from fill_blocks blocks of keys each
    fill_blocks: int = 2
    balance_blocks: int = 16  # the others only even out the load, and take at least so many


@dataclass(frozen=True, slots=True)
class Machine:
    num_cores: int  # streaming multiprocessors
    shared_bytes: int  # of one block


_MACHINES = {
    80: Machine(108, 166912), 86: Machine(84, 101376), 89: Machine(128, 101376),
    90: Machine(132, 232448), 100: Machine(148, 232448), 120: Machine(170, 101376),
}  # fmt: skip

Tile = TypeVar("Tile", LinearTile, AttendTile)


def machine(arch: int) -> Machine:
    """arch: 90 for sm_90. An unknown one is taken for sm_90."""
    return _MACHINES.get(arch, _MACHINES[90])


def override(tile: Tile, config: Mapping[str, int]) -> Tile:
    """The tile with the fields that `config` names; names of other things in it are left alone."""
    return replace(tile, **{f.name: config[f.name] for f in fields(tile) if f.name in config})


# -- matrix-vector product ------------------------------------------------------------------------------------------------------
# Bytes of a weight element -> (smallest K, rows, step over K, warps), the first that fits. Measured on an H200: long contiguous reads matter
# most; 4 rows x 2,048 with 8 warps reads at 4.2 TB/s, 16 rows x 256 at 3.7.
_MATVEC: dict[int, tuple[tuple[int, int, int, int], ...]] = {
    1: ((4096, 8, 2048, 8), (1024, 8, 1024, 4), (0, 8, 512, 2)),
    2: ((4096, 4, 2048, 8), (1024, 4, 1024, 4), (0, 4, 512, 2)),
    4: ((2048, 4, 1024, 8), (0, 4, 512, 4)),
}


def choose_matvec(k: int, weight_bytes: int) -> LinearTile:
    _, rows, step, warps = next(entry for entry in _MATVEC[weight_bytes] if k >= entry[0])
    fitting = min(step, max(32, next_power_of_two(k)))
    return LinearTile(1, rows, fitting, max(1, warps * fitting // step), 1)


# -- matrix product -------------------------------------------------------------------------------------------------------------
# Tokens up to -> (block_m, widest block_n, elements of a weight tile, warps, stages). Up to 64 tokens the weight is streamed: narrow tiles
# fill the machine, and are long in K.
_STREAM: dict[int, tuple[int, int, int, int, int]] = {
    16: (16, 64, 8192, 4, 5),
    32: (32, 64, 8192, 4, 5),
    64: (64, 64, 4096, 4, 5),
}
_LARGE = (128, 128, 64, 8, 4)
_LARGE_WIDE = (128, 256, 64, 8, 3)  # where shared memory allows
_EXACT = (32, 32, 32, 4, 2)  # f32 without tensor cores


def choose_linear(tokens: int, n: int, k: int, weight_bytes: int, dtype: str, arch: int) -> LinearTile:
    """tokens: the most that a step has. Programs outnumber the machine's cores where N allows it."""
    if tokens == 1:
        return choose_matvec(k, weight_bytes)
    if dtype == "f32":
        block_m, block_n, block_k, warps, stages = _EXACT
        return _fit_k(LinearTile(block_m, block_n, block_k, warps, stages, group_m=8), k)
    if tokens <= max(_STREAM):
        return _choose_stream(tokens, n, k, weight_bytes, arch)
    return _choose_large(tokens, n, k, weight_bytes, arch)


def _choose_stream(tokens: int, n: int, k: int, weight_bytes: int, arch: int) -> LinearTile:
    block_m, block_n, elements, warps, stages = _STREAM[next(most for most in _STREAM if tokens <= most)]
    while block_n > 16 and -(-n // block_n) < machine(arch).num_cores * 0.9:
        block_n //= 2
    block_k = min(256, elements // block_n)
    while stages > 2 and stages * block_k * (block_m * 2 + block_n * weight_bytes) > machine(arch).shared_bytes // 2:
        stages -= 1  # two blocks share a core
    return _fit_k(LinearTile(block_m, block_n, block_k, min(warps, max(1, block_n // 8)) if block_m < 64 else warps, stages), k)


def _choose_large(tokens: int, n: int, k: int, weight_bytes: int, arch: int) -> LinearTile:
    roomy = machine(arch).shared_bytes > 200_000 and weight_bytes == 2
    tiles_wide = -(-tokens // 128) * -(-n // 256)
    block_m, block_n, block_k, warps, stages = _LARGE_WIDE if roomy and tiles_wide >= machine(arch).num_cores else _LARGE
    while stages > 2 and stages * block_k * (block_m * 2 + block_n * 2) > machine(arch).shared_bytes:
        stages -= 1
    return _fit_k(LinearTile(block_m, block_n, block_k, warps, stages, group_m=8), k)


def _fit_k(tile: LinearTile, k: int) -> LinearTile:
    return replace(tile, block_k=min(tile.block_k, max(16, next_power_of_two(k))))


# -- attention ------------------------------------------------------------------------------------------------------------------
_RESIDENT = 2  # programs that share a core
_TURNS = 4  # programs that a core takes one after the other, so that none waits long for the slowest
_MOST_SPLITS = 64


def choose_decode(group: int, width: int, dtype_bytes: int, programs: int, longest: int, arch: int) -> AttendTile:
    """width: the wider of key and value heads. programs: sequences times key-value heads. longest: keys of the longest sequence."""
    block_n = 64 if width <= 128 and dtype_bytes == 2 else 32
    stages = 3 if machine(arch).shared_bytes > 150_000 else 2
    tile = AttendTile(max(16, next_power_of_two(group)), block_n, 4, stages)
    blocks = -(-longest // block_n)
    seats = _RESIDENT * machine(arch).num_cores
    fill = min(_power_of_two_below(seats // max(1, programs)), _MOST_SPLITS, -(-blocks // tile.fill_blocks))
    balance = min(_power_of_two_below(_TURNS * seats // max(1, programs)), _MOST_SPLITS, -(-blocks // tile.balance_blocks))
    return replace(tile, num_splits=max(1, fill, balance), fill_splits=max(1, fill))


# Bytes of an element, widest head -> (rows, keys, warps, stages)
_RAGGED: dict[tuple[int, int], tuple[int, int, int, int]] = {
    (2, 64): (128, 64, 8, 3), (2, 128): (128, 64, 8, 3), (2, 256): (64, 64, 8, 2),
    (4, 64): (32, 32, 4, 2), (4, 128): (32, 32, 4, 2), (4, 256): (16, 32, 4, 2),
}  # fmt: skip


def choose_ragged(group: int, width: int, dtype_bytes: int, tokens: int, arch: int) -> AttendTile:
    wide = next((w for (size, w) in _RAGGED if size == dtype_bytes and width <= w), None)
    if wide is None:
        raise CodegenError("attend", f"heads of {width} elements of {dtype_bytes} bytes", "heads of up to 256 elements are supported")
    rows, keys, warps, stages = _RAGGED[dtype_bytes, wide]
    rows = max(next_power_of_two(group), min(rows, max(16, next_power_of_two(tokens * group))))
    if machine(arch).shared_bytes < 150_000:
        stages, keys = 2, min(keys, 8192 // wide)
    return AttendTile(rows, keys, warps if rows >= 64 else 4, stages)


def _power_of_two_below(number: int) -> int:
    return 1 << max(0, number.bit_length() - 1)


def next_power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
