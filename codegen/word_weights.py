"""int8 weights as the left operand of a product: read four to a 32-bit word, and converted in the registers that the tensor core takes them from.

Of the left operand's 16 columns of one instruction, a thread has two pairs that lie eight apart. Words are four columns side by side: so the
product runs over columns in an order of its own, in which a thread's words are what it needs. Knows neither plans nor tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

BLOCK = 64  # columns that are put in order among themselves: 16 bytes of each of four threads, for four instructions
WORDS = BLOCK // 4
# At place p of a block stands column 16 t + 4 i + 2 h + j: thread t of four, instruction i, pair h, place j in the pair.
ORDER = "lane // 64 * 64 + lane % 8 // 2 * 16 + lane % 64 // 16 * 4 + lane % 16 // 8 * 2 + lane % 2"

# $4 is the word, $0 to $3 its bytes as numbers; every step is exact.
_CONVERSIONS = {
    # 0x43 and a byte are the bf16 128 + (its last seven bits), but where its first bit is set. Two copies, one without that bit and one with
    # none of the seven, differ by what the byte means: 128 + b - 128, or 128 + (b & 127) - 256.
    "bf16": """{ .reg .b32 low, high, bits, sign;
prmt.b32 low, $4, 0x43434343, 0x4140; prmt.b32 high, $4, 0x43434343, 0x4342;
and.b32 bits, low, 0xff7fff7f; and.b32 sign, low, 0xff80ff80; sub.bf16x2 low, bits, sign;
and.b32 bits, high, 0xff7fff7f; and.b32 sign, high, 0xff80ff80; sub.bf16x2 high, bits, sign;
mov.b32 {$0, $1}, low; mov.b32 {$2, $3}, high; }""",
    # 0x64 and a byte are the f16 1024 + byte; of 128 + b, 1152 is taken away.
    "f16": """{ .reg .b32 low, high, biased, base;
xor.b32 biased, $4, 0x80808080; mov.b32 base, 0x64806480;
prmt.b32 low, biased, 0x64646464, 0x4140; prmt.b32 high, biased, 0x64646464, 0x4342;
sub.f16x2 low, low, base; sub.f16x2 high, high, base;
mov.b32 {$0, $1}, low; mov.b32 {$2, $3}, high; }""",
}
DTYPES = tuple(_CONVERSIONS)


@dataclass(frozen=True, slots=True)
class Arrangement:
    """How the words of a tile lie in its tensor, and which of them the tensor core takes for which row and column."""

    rows: int
    blocks: int  # of columns
    num_warps: int
    is_direct: bool  # each block was loaded by itself, in the layout of loads: warps have eight rows each, then the next eight of theirs

    def arrange(self, tile: str) -> str:
        """tile: [rows, words, …, pair, place in it] becomes [rows, columns in ORDER]."""
        whole = f"[{self.rows}, {self.blocks * BLOCK}]"
        if not self.is_direct:
            return f"tl.reshape(tl.permute(tl.reshape({tile}, [{self.rows}, {self.blocks}, 4, 4, 2, 2]), (0, 1, 3, 4, 2, 5)), {whole})"
        shape = [self._turns, 2, self.num_warps, 8, 4, 4, self.blocks, 2, 2]
        return f"tl.reshape(tl.permute(tl.reshape({tile}, {shape}), (0, 2, 1, 3, 6, 5, 7, 4, 8)), {whole})"

    def restore_rows(self, product: str) -> str:
        """product: [rows, tokens], rows as `arrange` put them."""
        shape = f"[{self._turns}, {self.num_warps}, 2, 8, BLOCK_M]"
        return f"tl.reshape(tl.permute(tl.reshape({product}, {shape}), (0, 2, 1, 3, 4)), [{self.rows}, BLOCK_M])"

    @property
    def _turns(self) -> int:
        """How many times 16 rows a warp has: the tensor core wants these side by side, loads give them eight at a time."""
        return self.rows // (16 * self.num_warps)


def join_all(names: Sequence[str]) -> str:
    """One tensor, the place in `names` as its last dims, of a power of two of them."""
    return names[0] if len(names) == 1 else f"tl.join({join_all(names[::2])}, {join_all(names[1::2])})"


def convert_words(words: str, dtype: str, triton_dtype: str, arrangement: Arrangement) -> Iterator[str]:
    """Lines that make weight_tile: dtype[BLOCK_N, BLOCK_K], its columns in ORDER, of `words`."""
    types = ", ".join([triton_dtype] * 4)
    assembly = " ".join(_CONVERSIONS[dtype].split())
    yield f'b0, b1, b2, b3 = tl.inline_asm_elementwise("{assembly}", "=h,=h,=h,=h,r", [{words}], dtype=({types}), is_pure=True, pack=1)'
    yield f"weight_tile = {arrangement.arrange(join_all(['b0', 'b1', 'b2', 'b3']))}"
