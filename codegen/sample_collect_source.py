"""The text of the kernel that lists what lies in the bracket of a row's threshold, and adds up what lies over it."""

from __future__ import annotations

COLLECT = '''
@triton.jit
def sample_collect(logits, history, slots, params, part_top, row_top, row_low, row_high, num_found, found_key, found_token, part_over,
                   part_num_over, part_start, part_found, VOCAB: tl.constexpr, PART: tl.constexpr, NUM_PARTS: tl.constexpr,
                   CAPACITY: tl.constexpr, FEW: tl.constexpr, SCALE: tl.constexpr, KEY_OF_ONE: tl.constexpr, EARLY: tl.constexpr):
    """Of one part of a row: how many tokens are over the bracket and their mass, and a piece of the row's list, with those in the bracket.

    Pieces come in any order; of all of them the first CAPACITY tokens are kept. A part that has nothing from the bracket on is not read.
    """
    part, row = tl.program_id(0), tl.program_id(1)
    token = part * PART + tl.arange(0, PART // 128)[:, None] * 128 + tl.arange(0, 128)[None, :]
    token = tl.multiple_of(token, [1, 1])  # each thread loads single tokens, a column of them, as it stores them
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    at = row * NUM_PARTS + part
    temperature, top_k, top_p, min_p = read_filters(params, row)
    slot, top, most = tl.load(slots + row), tl.load(row_top + row), tl.load(part_top + at)
    low, high = tl.load(row_low + row), tl.load(row_high + row)
    if is_filtered(temperature, top_k, top_p, min_p):
        num_over, count = part * 0, part * 0
        over = num_over.to(tl.int64)
        if to_key(weigh(most, top, temperature, min_p)) >= low:
            w = weigh(read_logits(logits, history, params, row, slot, token, VOCAB), top, temperature, min_p)
            key = to_key(w)
            is_in = (key >= low) & (key < high) & (key > 0)
            counts = tl.sum(is_in.to(tl.int32), 0)
            if high > KEY_OF_ONE:
                count = tl.sum(counts, 0)
            else:
                is_over = (key >= high) & (key > 0)
                overs = tl.sum(tl.where(is_over, to_mass(w, SCALE), 0), 0)
                over, both = tl.reduce((overs, (tl.sum(is_over.to(tl.int32), 0) << 16) + counts), 0, add_two)
                num_over, count = both >> 16, both & 0xFFFF
            if count > 0:
                start = tl.atomic_add(num_found + row, count, sem="relaxed")
                tl.store(part_start + at, start)
                place = start + (tl.cumsum(counts, 0) - counts)[None, :] + tl.cumsum(is_in.to(tl.int32), 0) - 1
                place = tl.max_contiguous(place, [1, 2])  # names the axis that threads lie along; nothing is as aligned as a wider store
                tl.store(found_key + row * CAPACITY + place, key, mask=is_in & (place < CAPACITY))
                if start < FEW:
                    tl.store(found_token + row * FEW + place, token, mask=is_in & (place < FEW))
        tl.store(part_over + at, over)
        tl.store(part_num_over + at, num_over)
        tl.store(part_found + at, count)
'''
