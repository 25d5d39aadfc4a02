"""A kernel that reads memory and does next to nothing else: its speed is the machine's read limit."""

import triton
import triton.language as tl


@triton.jit
def read_only(data, out, BLOCK: tl.constexpr):  # noqa: ANN001, ANN201  # parameters of a kernel are typed by what is passed
    """out[p] = sum of data's p-th block: data i32[P * BLOCK], out i32[P]."""
    block = tl.program_id(0)
    start = block.to(tl.int64) * BLOCK
    values = tl.load(data + start + tl.arange(0, BLOCK), eviction_policy="evict_first")
    tl.store(out + block, tl.sum(values, axis=0))
