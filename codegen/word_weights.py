"""int8 weights as the left operand of a product: read four to a 32-bit word, and converted in the registers that the tensor core takes them from.

Of the left operand's 16 columns of one instruction, a thread has two pairs that lie eight apart. Words are four columns side by side: so the
product runs over columns in an order of its own, in which a thread's words are what it needs. Knows neither plans nor tiles.
"""

from __future__ import annotations

from collections.abc import Iterator

BLOCK = 64  # columns that are put in order among themselves: 16 bytes of each of four threads, for four instructions
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
    "f16": """{ .reg .b32 low, high, biased;
xor.b32 biased, $4, 0x80808080;
prmt.b32 low, biased, 0x64646464, 0x4140; prmt.b32 high, biased, 0x64646464, 0x4342;
sub.f16x2 low, low, 0x64806480; sub.f16x2 high, high, 0x64806480;
mov.b32 {$0, $1}, low; mov.b32 {$2, $3}, high; }""",
}
DTYPES = tuple(_CONVERSIONS)


def convert_words(words: str, dtype: str, triton_dtype: str) -> Iterator[str]:
    """Lines that make weight_tile: dtype[BLOCK_N, BLOCK_K], its columns in ORDER, of `words`: i32[BLOCK_N, BLOCK_K // 4]."""
    types = ", ".join([triton_dtype] * 4)
    assembly = " ".join(_CONVERSIONS[dtype].split())
    yield f'b0, b1, b2, b3 = tl.inline_asm_elementwise("{assembly}", "=h,=h,=h,=h,r", [{words}], dtype=({types}), is_pure=True, pack=1)'
    yield "weight_tile = tl.join(tl.join(b0, b2), tl.join(b1, b3))"
    yield f"weight_tile = tl.permute(tl.reshape(weight_tile, [BLOCK_N, BLOCK_K // {BLOCK}, 4, 4, 2, 2]), (0, 1, 3, 4, 2, 5))"
    yield "weight_tile = tl.reshape(weight_tile, [BLOCK_N, BLOCK_K])"
