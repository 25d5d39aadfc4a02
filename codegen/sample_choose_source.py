"""The text of the kernel that ends a filtered row: the threshold among the tokens that were listed, then the token."""

from __future__ import annotations

CHOOSE = '''
@triton.jit
def rank_keys(keys_in, keys, count, FEW: tl.constexpr, SCALE: tl.constexpr):
    """How many of the listed keys are larger than each, and their mass: all are compared with all, and summed once."""
    other = tl.arange(0, 16)
    counts, masses = tl.zeros([FEW, 16], tl.int32), tl.zeros([FEW, 16], tl.int64)
    for start in range(0, count, 16):
        key = tl.load(keys_in + start + other, mask=start + other < count, other=-1)
        is_larger = key[None, :] > keys[:, None]
        counts += is_larger.to(tl.int32)
        masses += tl.where(is_larger, mass_of(key, SCALE)[None, :], 0)
    return tl.sum(counts, 1), tl.sum(masses, 1)


@triton.jit
def find_least(keys, counts, masses, wanted_count, wanted_mass):
    """The least key that has fewer than wanted_count tokens over it, or less than wanted_mass; and what it has over it."""
    is_kept = (keys >= 0) & ((counts < wanted_count) | (masses < wanted_mass))
    threshold = tl.min(tl.where(is_kept, keys, 1 << 30), 0)
    is_own = keys == threshold
    return threshold, tl.max(tl.where(is_own, counts, 0), 0), tl.max(tl.where(is_own, masses, 0), 0)


@triton.jit
def choose_of_few(found_key, found_token, row, count, top_k, top_p, number, total,
                  VOCAB: tl.constexpr, CAPACITY: tl.constexpr, FEW: tl.constexpr, SCALE: tl.constexpr):
    """The token of a row whose list is short and holds all that may be kept."""
    lane, other = tl.arange(0, FEW), tl.arange(0, 16)
    keys_in, tokens_in = found_key + row * CAPACITY, found_token + row * FEW
    keys = tl.load(keys_in + lane, mask=lane < count, other=-1)
    found = tl.load(tokens_in + lane, mask=lane < count, other=VOCAB)
    counts, masses = rank_keys(keys_in, keys, count, FEW, SCALE)
    threshold, nothing = count * 0, total * 0
    if top_k > 0:
        limit = tl.minimum(top_k, count)
        threshold, num_over, mass_over = find_least(keys, counts, masses, limit, nothing)
        total = mass_of_top_k(limit, threshold, num_over, mass_over, SCALE)
    if top_p < 1.0:
        threshold, num_over, mass_over = find_least(keys, counts, masses, 0, wanted_mass(top_p, total))
    kept = tl.sum(tl.where((keys >= threshold) & (keys > 0), mass_of(keys, SCALE), 0), 0)
    target = tl.minimum(share(number, kept), kept - 1)
    before = tl.zeros([FEW, 16], tl.int64)
    for start in range(0, count, 16):
        key = tl.load(keys_in + start + other, mask=start + other < count, other=-1)
        token = tl.load(tokens_in + start + other, mask=start + other < count, other=VOCAB)
        mass = tl.where((key >= threshold) & (key > 0), mass_of(key, SCALE), 0)
        before += tl.where(token[None, :] <= found[:, None], mass[None, :], 0)
    return tl.min(tl.where((tl.sum(before, 1) > target) & (lane < count), found, VOCAB), 0)


@triton.jit
def fill_bins(found_key, bin_count, bin_mass, row, low, shift, count,
              CAPACITY: tl.constexpr, BINS: tl.constexpr, CHUNK: tl.constexpr, SCALE: tl.constexpr):
    """How many of the listed keys each bin of the bracket has, and their mass: whole numbers, so that the order does not matter."""
    lane = tl.arange(0, CHUNK)
    for start in range(0, count, CHUNK):
        is_there = start + lane < count
        key = tl.load(found_key + row * CAPACITY + start + lane, mask=is_there, other=-1)
        to = row * BINS + tl.maximum((key - low) >> shift, 0)
        tl.atomic_add(bin_count + to, 1, mask=is_there, sem="relaxed")
        tl.atomic_add(bin_mass + to, mass_of(key, SCALE), mask=is_there, sem="relaxed")
    tl.debug_barrier()


@triton.jit
def read_bins(bin_count, bin_mass, row, BINS: tl.constexpr):
    """Past the first cache, which atomics do not write."""
    bins = row * BINS + tl.arange(0, BINS)
    return tl.load(bin_count + bins, cache_modifier=".cg"), tl.load(bin_mass + bins, cache_modifier=".cg")


@triton.jit
def search_list(found_key, left_key, bin_count, bin_mass, row, low, shift, count, over_count, over_mass, wanted_count, wanted_mass,
                CAPACITY: tl.constexpr, BINS: tl.constexpr, FEW: tl.constexpr, MOST_LEFT: tl.constexpr, CHUNK: tl.constexpr,
                SCALE: tl.constexpr):
    """The largest key such that the tokens from it on are wanted_count and have wanted_mass; what lies over it; whether it was found.

    First its bin, by what the bins hold; then its place among the bin's tokens, which are gathered from the list: few, or all alike.
    """
    bins, lane, place = tl.arange(0, BINS), tl.arange(0, CHUNK), tl.arange(0, FEW)
    counts, masses = read_bins(bin_count, bin_mass, row, BINS)
    all_mass, all_count = tl.reduce((masses, counts), 0, add_two)
    masses_to, counts_to = tl.associative_scan((masses, counts), 0, add_two)
    counts_over, masses_over = over_count + all_count - counts_to, over_mass + all_mass - masses_to
    is_inside = (over_count < wanted_count) | (over_mass < wanted_mass)
    is_inside = is_inside & (over_count + all_count >= wanted_count) & (over_mass + all_mass >= wanted_mass)
    is_enough = (counts_over + counts >= wanted_count) & (masses_over + masses >= wanted_mass)
    own = tl.max(tl.where(is_enough, bins, 0), 0)
    over_mass, over_count = tl.reduce((tl.where(bins == own, masses_over, 0), tl.where(bins == own, counts_over, 0)), 0, add_two)
    num_left = count * 0
    least, most = tl.full([CHUNK], 1 << 30, tl.int32), tl.zeros([CHUNK], tl.int32)
    for start in range(0, count, CHUNK):
        key = tl.load(found_key + row * CAPACITY + start + lane, mask=start + lane < count, other=-1)
        is_own = (key >= low) & ((key - low) >> shift == own)
        to = num_left + tl.cumsum(is_own.to(tl.int32), 0) - 1
        tl.store(left_key + row * MOST_LEFT + to, key, mask=is_own & (to < FEW))
        num_left += tl.sum(is_own.to(tl.int32), 0)
        least, most = tl.minimum(least, tl.where(is_own, key, 1 << 30)), tl.maximum(most, tl.where(is_own, key, 0))
    is_found = is_inside & ((num_left <= FEW) | (tl.min(least, 0) == tl.max(most, 0)))
    num_left = tl.minimum(num_left, FEW)
    tl.debug_barrier()
    keys = tl.load(left_key + row * MOST_LEFT + place, mask=place < num_left, other=-1)
    counts, masses = rank_keys(left_key + row * MOST_LEFT, keys, num_left, FEW, SCALE)
    tl.debug_barrier()  # what is gathered next takes the place of what is read here
    low, over_count, over_mass = find_least(keys, over_count + counts, over_mass + masses, wanted_count, wanted_mass)
    return low, over_count, over_mass, is_found


@triton.jit
def draw_by_parts(logits, history, params, found_key, part_over, part_start, part_found, row, slot, top, threshold, number,
                  VOCAB: tl.constexpr, PART: tl.constexpr, NUM_PARTS: tl.constexpr, LANES: tl.constexpr, CAPACITY: tl.constexpr,
                  SCALE: tl.constexpr):
    """The token of a row whose threshold is known: its part, by what each keeps over the bracket and in its piece of the list; then itself."""
    lane, other, place = tl.arange(0, LANES), tl.arange(0, 8), tl.arange(0, PART)
    start = tl.load(part_start + row * NUM_PARTS + lane, mask=lane < NUM_PARTS, other=0)
    count = tl.load(part_found + row * NUM_PARTS + lane, mask=lane < NUM_PARTS, other=0)
    over = tl.load(part_over + row * NUM_PARTS + lane, mask=lane < NUM_PARTS, other=0)
    kept = tl.zeros([LANES, 8], tl.int64)
    for first in range(0, tl.max(count, 0), 8):
        at = row * CAPACITY + start[:, None] + (first + other)[None, :]
        key = tl.load(found_key + at, mask=(first + other)[None, :] < count[:, None], other=-1)
        kept += tl.where((key >= threshold) & (key > 0), mass_of(key, SCALE), 0)
    own = over + tl.sum(kept, 1)
    running, total = tl.cumsum(own, 0), tl.sum(own, 0)
    target = tl.minimum(share(number, total), total - 1)
    part = tl.minimum(tl.sum((running <= target).to(tl.int32), 0), NUM_PARTS - 1)
    before = tl.sum(tl.where(lane < part, own, 0), 0)
    w = read_weights(logits, history, params, row, slot, part * PART + place, top, VOCAB)
    mass = tl.where(to_key(w) >= threshold, to_mass(w, SCALE), 0)
    passed = tl.sum((before + tl.cumsum(mass, 0) <= target).to(tl.int32), 0)
    return part * PART + tl.minimum(passed, tl.max(tl.where(mass > 0, place, 0), 0))


@triton.jit
def sample_choose(logits, history, slots, params, uniform, row_top, row_total, row_low, row_high, row_shift, num_found, found_key, found_token,
                  left_key, bin_count, bin_mass, part_over, part_num_over, part_start, part_found, tokens, last_token, VOCAB: tl.constexpr,
                  PART: tl.constexpr, NUM_PARTS: tl.constexpr, LANES: tl.constexpr, CAPACITY: tl.constexpr, BINS: tl.constexpr,
                  FEW: tl.constexpr, MOST_LEFT: tl.constexpr, CHUNK: tl.constexpr, SCALE: tl.constexpr, KEY_OF_ONE: tl.constexpr,
                  EARLY: tl.constexpr):
    """Draws the token of a filtered row: from its list, by its parts, or, where the threshold turns out to lie elsewhere, from the whole row."""
    row = tl.program_id(0)
    lane, place = tl.arange(0, LANES), tl.arange(0, FEW)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    temperature, most, top_p, min_p = read_filters(params, row)
    slot, top, number, count = tl.load(slots + row), tl.load(row_top + row), tl.load(uniform + row), tl.load(num_found + row)
    low, high, shift = tl.load(row_low + row), tl.load(row_high + row), tl.load(row_shift + row)
    if is_filtered(temperature, most, top_p, min_p):
        top_k = most.to(tl.int32)
        holds_all = low <= to_key(min_p)
        keys = tl.load(found_key + row * CAPACITY + place, mask=place < count, other=0)
        few_mass = tl.sum(mass_of(keys, SCALE), 0)
        total = tl.where(holds_all, few_mass, tl.load(row_total + row))
        is_few = (count <= FEW) & (high > KEY_OF_ONE)
        if is_few & (holds_all | tl.where(top_k > 0, count >= top_k, few_mass >= wanted_mass(top_p, total))):
            token = choose_of_few(found_key, found_token, row, count, top_k, top_p, number, total, VOCAB, CAPACITY, FEW, SCALE)
        else:
            overs = tl.load(part_over + row * NUM_PARTS + lane, mask=lane < NUM_PARTS, other=0)
            num_overs = tl.load(part_num_over + row * NUM_PARTS + lane, mask=lane < NUM_PARTS, other=0)
            over_mass, over_count = tl.reduce((overs, num_overs), 0, add_two)
            threshold, nothing, is_found = count * 0, total * 0, count <= CAPACITY
            if is_found & ((top_k > 0) | (top_p < 1.0)):
                fill_bins(found_key, bin_count, bin_mass, row, low, shift, count, CAPACITY, BINS, CHUNK, SCALE)
                counts, masses = read_bins(bin_count, bin_mass, row, BINS)
                total = tl.where(holds_all, over_mass + tl.sum(masses, 0), tl.load(row_total + row))
                limit = tl.where(holds_all, tl.minimum(top_k, over_count + count), top_k)
                for is_top_p in range(2):
                    if ((is_top_p == 0) & (top_k > 0)) | ((is_top_p == 1) & (top_p < 1.0)):
                        wanted_count = tl.where(is_top_p == 0, limit, 0)
                        threshold, num_over, mass_over, was_found = search_list(
                            found_key, left_key, bin_count, bin_mass, row, low, shift, count, over_count, over_mass, wanted_count,
                            tl.where(is_top_p == 0, nothing, wanted_mass(top_p, total)), CAPACITY, BINS, FEW, MOST_LEFT, CHUNK, SCALE
                        )
                        total = mass_of_top_k(wanted_count, threshold, num_over, mass_over, SCALE)
                        is_found = is_found & was_found
            if is_found:
                token = draw_by_parts(
                    logits, history, params, found_key, part_over, part_start, part_found, row, slot, top, threshold, number,
                    VOCAB, PART, NUM_PARTS, LANES, CAPACITY, SCALE
                )
            else:
                token = search_row(
                    logits, history, params, left_key, row, slot, top, top_k, top_p, number, tl.minimum(low, KEY_OF_ONE),
                    VOCAB, MOST_LEFT, CHUNK, SCALE
                )
        finish(token, row, slot, params, history, tokens, last_token, VOCAB)
'''
