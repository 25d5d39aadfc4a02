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
    splits: int = 1  # programs among which K is dealt; the last of a tile to finish adds up what the others left. Not of a matrix-vector product
    direct: bool = False  # int8 on the left: from memory to registers, the first step before the wait for the kernel before; else by shared memory
    biased: bool = True  # matrix-vector product: bytes are converted as weight + 128; otherwise they become the last bits of 2 ** 23 + weight


@dataclass(frozen=True, slots=True)
class AttendTile:
    block_m: int  # rows: tokens times query heads of a key-value head
    block_n: int  # keys
    num_warps: int
    num_stages: int
    num_splits: int = 1  # parts of a sequence's keys that are read by different programs, at most
    fill_blocks: int = 1  # blocks of keys from which on a part is worth a program
    alone_blocks: int = 2  # which one program reads sooner than several could put their parts together
    long_splits: int = 1  # the same as num_splits for sequences so long that one of them would hold up a whole batch
    long_keys: int = 1024  # of a part of these, at least

    @property
    def most_splits(self) -> int:
        return max(self.num_splits, self.long_splits)


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
# Bytes of a weight element -> (smallest K, smallest N, rows, step over K, warps), the first that fits: the best of whole decode steps, as
# benchmarks/chain.py --sweep times them. Long contiguous reads matter most.
_MATVEC: dict[int, tuple[tuple[int, int, int, int, int], ...]] = {
    1: ((12288, 0, 4, 2048, 4), (8192, 0, 4, 4096, 8), (4096, 16384, 8, 4096, 8), (4096, 0, 8, 2048, 8), (1024, 0, 8, 1024, 4), (0, 0, 8, 512, 2)),
    2: ((12288, 0, 4, 1024, 8), (8192, 0, 4, 2048, 4), (4096, 0, 4, 2048, 8), (1024, 0, 4, 1024, 4), (0, 0, 4, 512, 2)),
    4: ((2048, 0, 4, 1024, 8), (0, 0, 4, 512, 4)),
}
# A weight with this many bytes for each core at most is on its way as a whole before the wait for the kernel before.
_HELD_BYTES, _HELD_ELEMENTS = 64 << 10, 32  # of a core, of a thread
_LEAST_HELD_K, _MOST_HELD_K, _HELD_PROGRAMS = 1024, 4096, 6  # programs of a core that hide how uneven they are


def choose_matvec(n: int, k: int, weight_bytes: int, arch: int) -> LinearTile:
    num_cores, whole = machine(arch).num_cores, next_power_of_two(k)
    fits = _LEAST_HELD_K <= k <= _MOST_HELD_K and 4 * k >= 3 * whole and weight_bytes <= 2
    if fits and n * k * weight_bytes <= _HELD_BYTES * num_cores:
        rows = 4 if n >= 4 * _HELD_PROGRAMS * num_cores else 2
        return LinearTile(1, rows, whole, rows * whole // (32 * _HELD_ELEMENTS), 1)
    _, _, rows, step, warps = next(entry for entry in _MATVEC[weight_bytes] if k >= entry[0] and n >= entry[1])
    fitting = min(step, max(32, whole))
    return LinearTile(1, rows, fitting, max(1, warps * fitting // step), 1)


# -- matrix product -------------------------------------------------------------------------------------------------------------
# Up to 128 tokens the weight is streamed. Tokens up to -> (block_m, block_n, block_k, warps, stages). Each program reads all of x, from the L2
# cache: block_n is no smaller than block_m. Of the stages, two are in flight where the tensor core reads shared memory by itself (sm_90).
_Sizes = tuple[int, int, int, int, int]
_STREAM_LEFT: dict[int, _Sizes] = {  # 16-bit weights as the left operand of wgmma: tokens are padded to block_m alone
    16: (16, 64, 128, 4, 4),
    32: (32, 64, 128, 4, 4),
    64: (64, 64, 128, 4, 3),
    128: (128, 64, 64, 4, 4),
}
_STREAM_DEEP: dict[int, _Sizes] = {  # the same where one program a core does, with more on its way: fewer parts of K are put together
    16: (16, 64, 256, 4, 3),
    32: (32, 64, 128, 4, 6),
    64: (64, 64, 128, 4, 5),
    128: (128, 64, 64, 4, 8),
}
_DEEP_SHARE = 0.7  # of the cores that have a program then
_STREAM_WIDE: dict[int, _Sizes] = {128: (128, 128, 64, 8, 6)}  # the same where there are tiles for every core
_STREAM_WORDS: dict[int, _Sizes] = {  # int8 as its left operand: wider, since tokens are read again for half as many bytes of the weight
    16: (16, 64, 256, 4, 4),
    32: (32, 128, 128, 8, 4),
    64: (64, 128, 128, 8, 4),
    128: (128, 128, 64, 8, 4),
}
_WORDS_DEEP: dict[int, _Sizes] = {16: (16, 64, 256, 4, 6), 32: (32, 128, 256, 8, 3), 64: (64, 128, 128, 8, 5)}
_WORDS_WIDE: dict[int, _Sizes] = {128: (128, 256, 64, 8, 4)}  # the same where there are tiles for most cores
_STREAM_RIGHT: dict[int, _Sizes] = {  # machines without wgmma, and int8 on those whose wgmma takes no operand from registers
    16: (16, 64, 128, 4, 4),
    32: (32, 64, 128, 4, 4),
    64: (64, 64, 128, 4, 3),
    128: (128, 64, 64, 4, 4),
}
_LARGE: _Sizes = (128, 128, 64, 8, 4)
_LARGE_WIDE: _Sizes = (128, 256, 64, 8, 3)  # where shared memory allows, and a core is not left with half a tile's work more than with narrow ones
_WIDE_COST = 1.9  # of a wide tile, in narrow ones
_EXACT: _Sizes = (32, 32, 32, 4, 2)  # f32 without tensor cores


def choose_linear(tokens: int, n: int, k: int, weight_bytes: int, dtype: str, arch: int) -> LinearTile:
    """tokens: the most that a step has."""
    if tokens == 1:
        return choose_matvec(n, k, weight_bytes, arch)
    if dtype == "f32":
        block_m, block_n, block_k, warps, stages = _EXACT
        return _fit_k(LinearTile(block_m, block_n, block_k, warps, stages, group_m=8), k)
    deep = _choose_deep(tokens, n, k, weight_bytes, arch)
    if deep is not None:
        return deep
    choose = _choose_stream if tokens <= max(_STREAM_LEFT) else _choose_large
    tile = _fit_k(choose(tokens, n, weight_bytes, arch), k)
    return replace(tile, splits=_choose_splits(tile, tokens, n, k, weight_bytes, machine(arch).num_cores))


def keep_order(tile: LinearTile, weight_bytes: int) -> LinearTile:
    """The tile for kernels that must add up alike whatever the number of tokens: all by the same instructions, along K in one piece."""
    if tile.weights_left and weight_bytes == 1:  # made for K in several pieces: too wide to fill the machine with one
        block_m, block_n, block_k, warps, stages = _STREAM_RIGHT[max(tile.block_m, 64)]
        tile = LinearTile(block_m, block_n, min(block_k, tile.block_k), warps, stages)
    return replace(tile, block_m=max(tile.block_m, 64), num_warps=max(tile.num_warps, 4), weights_left=False, splits=1)


def _choose_stream(tokens: int, n: int, weight_bytes: int, arch: int) -> LinearTile:
    left = arch >= 90 if weight_bytes == 2 else arch == 90
    tables = (_STREAM_RIGHT, {}) if not left else (_STREAM_LEFT, _STREAM_WIDE) if weight_bytes == 2 else (_STREAM_WORDS, _WORDS_WIDE)
    most = next(most for most in tables[0] if tokens <= most)
    wide, enough = tables[1].get(most), machine(arch).num_cores * (_DEEP_SHARE if weight_bytes == 1 else 1)
    if wide and -(-n // wide[1]) >= enough:
        return LinearTile(*wide, weights_left=left)
    block_m, block_n, block_k, warps, stages = tables[0][most]
    half = machine(arch).shared_bytes // 2  # two blocks share a core
    while stages > 2 and stages * block_k * (block_m * 2 + block_n * weight_bytes) > half:
        block_k, stages = (block_k // 2, stages * 2 - 2) if stages == 3 and block_k > 64 else (block_k, stages - 1)
    return LinearTile(block_m, block_n, block_k, warps, stages, weights_left=left)


def _choose_deep(tokens: int, n: int, k: int, weight_bytes: int, arch: int) -> LinearTile | None:
    """One program a core, where most cores then have one."""
    table = {1: _WORDS_DEEP if arch == 90 else {}, 2: _STREAM_DEEP if arch >= 90 else {}}[weight_bytes]
    sizes = next((sizes for most, sizes in table.items() if tokens <= most), None)
    if sizes is None:
        return None
    block_m, block_n, block_k, _, stages = sizes
    if stages * block_k * (block_m * 2 + block_n * weight_bytes) > machine(arch).shared_bytes:
        return None
    tiles, cores = -(-n // block_n), machine(arch).num_cores
    splits = min(cores // tiles, -(-k // block_k) // _FEWEST_STEPS)
    return LinearTile(*sizes, weights_left=True, splits=splits) if tiles * splits >= _DEEP_SHARE * cores else None


def _choose_large(tokens: int, n: int, weight_bytes: int, arch: int) -> LinearTile:
    roomy = machine(arch).shared_bytes > 200_000 and weight_bytes == 2

    def rounds(size: _Sizes) -> int:
        return -(-(-(-tokens // size[0]) * -(-n // size[1])) // machine(arch).num_cores)

    is_wide = roomy and rounds(_LARGE_WIDE) * _WIDE_COST <= rounds(_LARGE)
    block_m, block_n, block_k, warps, stages = _LARGE_WIDE if is_wide else _LARGE
    while stages > 2 and stages * block_k * (block_m * 2 + block_n * 2) > machine(arch).shared_bytes:
        stages -= 1
    return LinearTile(block_m, block_n, block_k, warps, stages, group_m=8)


_MOST_PARTS, _FEWEST_STEPS = 8, 4  # of one tile; of one program
_MOST_SPLIT_TOKENS = 256  # of more, tiles are many and their parts large
_SPLIT_BYTES = 9e6  # what is read in the time that the last program of a tile waits for the others' parts: 2 µs
_OPERATIONS_PER_BYTE = 155  # done in the time that a byte is read: 700 TFLOP/s at 4.53 TB/s
_ALONE, _CONVERTED = 1.12, 1.6  # how much longer a core takes that has one block and not two; int8 that is no left operand


def _choose_splits(tile: LinearTile, tokens: int, n: int, k: int, weight_bytes: int, num_cores: int) -> int:
    """Programs for each tile: as many as make the whole fastest, where tiles alone do not fill the machine twice."""
    tiles = -(-n // tile.block_n) * -(-tokens // tile.block_m)
    if tokens > _MOST_SPLIT_TOKENS or tiles >= 2 * num_cores:
        return 1
    reading = n * k * weight_bytes * (_CONVERTED if weight_bytes == 1 and not tile.weights_left else 1)
    computing = 2 * n * k * tokens / _OPERATIONS_PER_BYTE
    alone = _ALONE if reading > computing else 1

    def cost(splits: int) -> float:
        """In bytes of the weight."""
        waves = -(-tiles * splits // num_cores)
        parts = _SPLIT_BYTES + splits * tokens * n * 4 * 1.5 if splits > 1 else 0  # f32, written and read in the L2 cache
        return max(reading, computing) * (alone if waves == 1 else 1) * waves * num_cores / (tiles * splits) + parts

    most = max(1, min(_MOST_PARTS, -(-k // tile.block_k) // _FEWEST_STEPS))
    return min(range(1, most + 1), key=cost)


def _fit_k(tile: LinearTile, k: int) -> LinearTile:
    return replace(tile, block_k=min(tile.block_k, max(16, next_power_of_two(k))))


# -- attention ------------------------------------------------------------------------------------------------------------------
# A program of decode attention either waits for a block of keys and values, 32 KB, or computes with the last one. What keeps memory busy is that a
# core holds several: four of four warps, as registers allow, have 128 KB on their way at most, of which latency times bandwidth takes 35 on an
# H200. So keys are split until all programs are there at once, and no further: each part more is one more to put together.
_HELD, _BLOCK_BYTES, _SCRATCH_BYTES = 4, 32 << 10, 3 << 10  # programs of a core; shared memory of one
_LONG_TURNS = 4  # programs for each that a core holds: those of long sequences. Others leave at once where sequences are short
_MOST_SPLITS = 32
_FEW_SPLITS = 8  # where no core has more than one program then: more parts, most of them idle at short contexts, hold up the kernels around


def choose_decode(group: int, width: int, dtype_bytes: int, programs: int, longest: int, arch: int) -> AttendTile:
    """width: the wider of key and value heads. programs: sequences times key-value heads. longest: keys of the longest sequence."""
    device, rows = machine(arch), max(16, next_power_of_two(group))
    roomy, narrow = width <= 128 and dtype_bytes == 2, width <= 64
    few = programs * _FEW_SPLITS <= device.num_cores
    paired = roomy and not narrow and device.num_cores < programs <= 2 * device.num_cores  # two of a core, with blocks twice as large
    keys = 128 if paired or (roomy and narrow and not few) else 64 if roomy else 32
    tile = AttendTile(rows, keys, 2 if few and narrow else 4, 2)
    blocks, held = -(-longest // keys), device.num_cores * min(_HELD, device.shared_bytes // (_BLOCK_BYTES + _SCRATCH_BYTES))
    if blocks <= tile.alone_blocks:
        return tile
    parts = _FEW_SPLITS if few else 1 if paired else held // programs
    long = min(_LONG_TURNS * held // programs, _MOST_SPLITS, -(-longest // tile.long_keys))
    return replace(tile, num_splits=max(1, min(parts, _MOST_SPLITS, blocks)), long_splits=max(1, long))


# Bytes of an element, widest head -> (rows, keys, warps, stages)
_RAGGED: dict[tuple[int, int], tuple[int, int, int, int]] = {
    (2, 64): (128, 64, 8, 3), (2, 128): (128, 64, 8, 3), (2, 256): (64, 64, 8, 2),
    (4, 64): (32, 32, 4, 2), (4, 128): (32, 32, 4, 2), (4, 256): (16, 32, 4, 2),
}  # fmt: skip
_RAGGED_COPIED = {(2, 64): (64, 64, 4, 3), (2, 128): (64, 64, 4, 3)}  # where the copy engine brings keys: more than one block on a core
_FEW_TILES = 4  # of a head: cores then have one program or none, and room for a block more on its way


def choose_ragged(group: int, width: int, dtype_bytes: int, tokens: int, arch: int) -> AttendTile:
    wide = next((w for (size, w) in _RAGGED if size == dtype_bytes and width <= w), None)
    if wide is None:
        raise CodegenError("attend", f"heads of {width} elements of {dtype_bytes} bytes", "heads of up to 256 elements are supported")
    copied = _RAGGED_COPIED.get((dtype_bytes, wide)) if arch >= 90 else None
    rows, keys, warps, stages = copied or _RAGGED[dtype_bytes, wide]
    rows = max(next_power_of_two(group), min(rows, max(16, next_power_of_two(tokens * group))))
    if copied and tokens * group <= _FEW_TILES * rows:
        stages += 1
    if machine(arch).shared_bytes < 150_000:
        stages, keys = 2, min(keys, 8192 // wide)
    return AttendTile(rows, keys, warps if rows >= 64 else 4, stages)


def next_power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
