"""The text of the sampling kernels: Triton functions, each kernel with the helpers that it calls. Knows neither engines nor launches.

Names are constants of the kernel where they are written LARGE. All masses are whole numbers, so that sums depend on no order.
"""

from __future__ import annotations

import re

READ_LOGITS = '''
@triton.jit
def read_penalties(params, row):
    return tl.load(params + row * 8 + 4), tl.load(params + row * 8 + 5), tl.load(params + row * 8 + 6)


@triton.jit
def is_penalized(params, row):
    repetition, presence, frequency = read_penalties(params, row)
    return (repetition != 1.0) | (presence != 0.0) | (frequency != 0.0)


@triton.jit
def read_logits(logits, history, params, row, slot, token, VOCAB: tl.constexpr):
    """Logits of the row's tokens after penalties; -inf past the vocabulary. History: prompt in bit 15, times sampled below."""
    is_inside = token < VOCAB
    x = tl.load(logits + row.to(tl.int64) * VOCAB + token, mask=is_inside, other=float("-inf"))
    if is_penalized(params, row):
        repetition, presence, frequency = read_penalties(params, row)
        seen = tl.load(history + slot * VOCAB + token, mask=is_inside, other=0).to(tl.int32)
        count = seen & 0x7FFF
        x = tl.where(seen != 0, tl.where(x > 0, x / repetition, x * repetition), x)
        x = x - frequency * count.to(tl.float32) - tl.where(count > 0, presence, 0.0)
    return x
'''

WEIGH = '''
@triton.jit
def weigh(x, top, temperature, min_p):
    """Probabilities relative to that of the most probable token, whose logit is top; 0 under min_p."""
    w = tl.minimum(tl.exp((x - top) / temperature), 1.0)
    return tl.where(w < min_p, 0.0, w)
'''

TO_MASS = '''
@triton.jit
def to_mass(w, SCALE: tl.constexpr):
    """A weight as a whole number of 1 / SCALE."""
    return (w * SCALE).to(tl.int64)
'''

FINISH = '''
@triton.jit
def finish(token, row, slot, params, history, tokens, last_token, VOCAB: tl.constexpr):
    """The token becomes the row's result, the next step's input and, where penalties read it, one more in the history."""
    token = tl.minimum(tl.maximum(token, 0), VOCAB - 1)
    tl.store(tokens + row, token)
    tl.store(last_token + slot, token)
    if is_penalized(params, row):
        seen = tl.load(history + slot * VOCAB + token).to(tl.int32)
        tl.store(history + slot * VOCAB + token, tl.where((seen & 0x7FFF) == 0x7FFF, seen, seen + 1).to(tl.int16))
'''

IS_FILTERED = '''
@triton.jit
def read_filters(params, row):
    """temperature, top_k, top_p, min_p"""
    return tl.load(params + row * 8), tl.load(params + row * 8 + 1), tl.load(params + row * 8 + 2), tl.load(params + row * 8 + 3)


@triton.jit
def is_filtered(params, row):
    """Whether the row draws, and from some of the tokens only."""
    temperature, top_k, top_p, min_p = read_filters(params, row)
    return (temperature > 0) & ((top_k > 0) | (top_p < 1.0) | (min_p > 0))
'''

SCAN_GREEDY = '''
@triton.jit
def sample_scan_greedy(logits, part_top, part_token, VOCAB: tl.constexpr, PART: tl.constexpr, NUM_PARTS: tl.constexpr, EARLY: tl.constexpr):
    """The largest logit of one part of a row, and the first token that has it."""
    part, row = tl.program_id(0), tl.program_id(1)
    token = part * PART + tl.arange(0, PART)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    x = tl.load(logits + row.to(tl.int64) * VOCAB + token, mask=token < VOCAB, other=float("-inf"))
    top = tl.max(x, 0)
    tl.store(part_top + row * NUM_PARTS + part, top)
    tl.store(part_token + row * NUM_PARTS + part, tl.min(tl.where(x == top, token, VOCAB - 1), 0))
'''

SETTLE_GREEDY = '''
@triton.jit
def sample_settle_greedy(part_top, part_token, slots, tokens, last_token,
                         VOCAB: tl.constexpr, NUM_PARTS: tl.constexpr, LANES: tl.constexpr, EARLY: tl.constexpr):
    """The first token of the largest logit of a row."""
    row = tl.program_id(0)
    lane = tl.arange(0, LANES)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = tl.load(slots + row)
    tops = tl.load(part_top + row * NUM_PARTS + lane, mask=lane < NUM_PARTS, other=float("-inf"))
    firsts = tl.load(part_token + row * NUM_PARTS + lane, mask=lane < NUM_PARTS, other=VOCAB - 1)
    token = tl.min(tl.where(tops == tl.max(tops, 0), firsts, VOCAB - 1), 0)
    tl.store(tokens + row, token)
    tl.store(last_token + slot, token)
'''

SCAN = '''
@triton.jit
def sample_scan(logits, history, slots, params, part_top, part_token, part_sum,
                VOCAB: tl.constexpr, PART: tl.constexpr, NUM_PARTS: tl.constexpr, EARLY: tl.constexpr):
    """As sample_scan_greedy, after penalties; and, for a row that draws, the sum of weights relative to the part's own largest."""
    part, row = tl.program_id(0), tl.program_id(1)
    token = part * PART + tl.arange(0, PART)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = tl.load(slots + row)
    x = read_logits(logits, history, params, row, slot, token, VOCAB)
    top = tl.max(x, 0)
    tl.store(part_top + row * NUM_PARTS + part, top)
    tl.store(part_token + row * NUM_PARTS + part, tl.min(tl.where(x == top, token, VOCAB - 1), 0))
    temperature = tl.load(params + row * 8)
    if temperature > 0:
        base = tl.where(top == float("-inf"), 0.0, top)
        tl.store(part_sum + row * NUM_PARTS + part, tl.sum(tl.exp((x - base) / temperature), 0))
'''

SETTLE = '''
@triton.jit
def is_low_enough(cut, w, tops, sums, wanted_count, most_under, STRIDE: tl.constexpr):
    """Whether wanted_count tokens (0: any number) seem to lie over the cut, and at most most_under of the mass under it.

    w is every STRIDE-th weight of the row; tops and sums are the parts' largest weights and their masses, all of which lies under a cut that
    is over the largest.
    """
    is_over = w >= cut
    count = tl.sum(is_over.to(tl.float32), 0) * STRIDE
    under = tl.maximum(tl.sum(tl.where(is_over, 0.0, w), 0) * STRIDE, tl.sum(tl.where(tops < cut, sums, 0.0), 0))
    return (count >= wanted_count) & ((wanted_count > 0) | (under <= most_under))


@triton.jit
def choose_cut(tops, sums, w, top_k, top_p, NUM_PARTS: tl.constexpr, STRIDE: tl.constexpr):
    """A weight that the filters' threshold is probably not under and not far over, and a guess at the threshold.

    Each of the top_k largest parts has a token that is as large as the least of them. sample_choose finds out a cut that is too high.
    """
    cut, guess = 0.0, 1.0
    if (top_k > 0) & (top_k <= NUM_PARTS):
        rank = tl.sum((tops[None, :] > tops[:, None]).to(tl.int32), 1)
        cut = tl.min(tl.where(rank < top_k.to(tl.int32), tops, 2.0), 0) * 0.99
        guess = cut
    elif (top_k > 0) | (top_p < 1.0):
        under = (1 - top_p) * tl.sum(sums, 0)
        margin = 0.3 * top_k + 4 * STRIDE
        cut_low, cut_high, guess_low, guess_high = -40.0, 0.0, -40.0, 0.0
        for _ in range(12):
            cut, guess = (cut_low + cut_high) / 2, (guess_low + guess_high) / 2
            is_low = is_low_enough(tl.exp2(cut), w, tops, sums, tl.where(top_k > 0, top_k + margin, 0), 0.7 * under, STRIDE)
            cut_low, cut_high = tl.where(is_low, cut, cut_low), tl.where(is_low, cut_high, cut)
            is_low = is_low_enough(tl.exp2(guess), w, tops, sums, top_k, under, STRIDE)
            guess_low, guess_high = tl.where(is_low, guess, guess_low), tl.where(is_low, guess_high, guess)
        cut, guess = tl.exp2(cut_low), tl.exp2(guess_low)
    return cut, guess


@triton.jit
def draw_unfiltered(logits, history, params, row, slot, uniform, sums, top, temperature,
                    VOCAB: tl.constexpr, PART: tl.constexpr, LANES: tl.constexpr):
    """The first token whose running sum exceeds uniform of the whole: first its part, by the sums of parts, then the token in it."""
    lane = tl.arange(0, LANES)
    running = tl.cumsum(sums, 0)
    target = tl.load(uniform + row) * tl.max(running, 0)
    part = tl.minimum(tl.sum((running <= target).to(tl.int32), 0), tl.max(tl.where(sums > 0, lane, 0), 0))
    before = tl.max(tl.where(lane < part, running, 0.0), 0)
    place = tl.arange(0, PART)
    w = tl.exp((read_logits(logits, history, params, row, slot, part * PART + place, VOCAB) - top) / temperature)
    inside = tl.cumsum(w.to(tl.float64), 0)
    passed = tl.sum((inside <= target - before).to(tl.int32), 0)
    return part * PART + tl.minimum(passed, tl.max(tl.where(w > 0, place, 0), 0))


@triton.jit
def sample_settle(logits, history, slots, params, uniform, part_top, part_token, part_sum, row_top, row_cut, row_guess, num_found, tokens,
                  last_token, VOCAB: tl.constexpr, PART: tl.constexpr, NUM_PARTS: tl.constexpr, LANES: tl.constexpr, PROBES: tl.constexpr,
                  STRIDE: tl.constexpr, EARLY: tl.constexpr):
    """Ends a row that is greedy or draws from all tokens; for another one, chooses from where on tokens are collected."""
    row = tl.program_id(0)
    lane = tl.arange(0, LANES)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = tl.load(slots + row)
    temperature, top_k, top_p, min_p = read_filters(params, row)
    tops = tl.load(part_top + row * NUM_PARTS + lane, mask=lane < NUM_PARTS, other=float("-inf"))
    firsts = tl.load(part_token + row * NUM_PARTS + lane, mask=lane < NUM_PARTS, other=VOCAB - 1)
    top = tl.max(tops, 0)
    token = tl.min(tl.where(tops == top, firsts, VOCAB - 1), 0)
    if temperature > 0:
        own = tl.load(part_sum + row * NUM_PARTS + lane, mask=lane < NUM_PARTS, other=0.0)
        sums = own.to(tl.float64) * tl.exp((tops - top) / temperature).to(tl.float64)
        if is_filtered(params, row):
            probes = tl.arange(0, PROBES) * STRIDE + STRIDE // 2
            w = weigh(read_logits(logits, history, params, row, slot, probes, VOCAB), top, temperature, min_p)
            cut, guess = choose_cut(weigh(tops, top, temperature, 0.0), sums.to(tl.float32), w, top_k, top_p, NUM_PARTS, STRIDE)
            tl.store(row_cut + row, tl.maximum(cut, min_p))
            tl.store(row_guess + row, guess)
            tl.store(row_top + row, top)
            tl.store(num_found + row, 0)
        else:
            token = draw_unfiltered(logits, history, params, row, slot, uniform, sums, top, temperature, VOCAB, PART, LANES)
    if not is_filtered(params, row):
        finish(token, row, slot, params, history, tokens, last_token, VOCAB)
'''

COLLECT = '''
@triton.jit
def sample_collect(logits, history, slots, params, part_top, row_top, row_cut, num_found, found_key, found_token, part_mass,
                   VOCAB: tl.constexpr, PART: tl.constexpr, NUM_PARTS: tl.constexpr, CAPACITY: tl.constexpr, SCALE: tl.constexpr,
                   EARLY: tl.constexpr):
    """The mass of one part of a row, and those of its tokens that are over the cut, in any order. The first CAPACITY found are kept.

    With a top_k, masses are not wanted: a part that has no token over the cut is not read, and gives 1 for more than nothing.
    """
    part, row = tl.program_id(0), tl.program_id(1)
    token = part * PART + tl.arange(0, PART)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    if is_filtered(params, row):
        temperature, top_k, top_p, min_p = read_filters(params, row)
        slot, top, cut = tl.load(slots + row), tl.load(row_top + row), tl.load(row_cut + row)
        most = weigh(tl.load(part_top + row * NUM_PARTS + part), top, temperature, min_p)
        if (top_k > 0) & (most < cut * 0.99):
            tl.store(part_mass + row * NUM_PARTS + part, (most > 0).to(tl.int64))
        else:
            w = weigh(read_logits(logits, history, params, row, slot, token, VOCAB), top, temperature, min_p)
            tl.store(part_mass + row * NUM_PARTS + part, tl.sum(to_mass(w, SCALE), 0))
            is_over = ((w >= cut) & (w > 0)).to(tl.int32)
            count = tl.sum(is_over, 0)
            if count > 0:
                place = tl.atomic_add(num_found + row, count) + tl.cumsum(is_over, 0) - 1
                is_kept = (is_over > 0) & (place < CAPACITY)
                tl.store(found_key + row * CAPACITY + place, w.to(tl.int32, bitcast=True), mask=is_kept)
                tl.store(found_token + row * CAPACITY + place, token, mask=is_kept)
'''

CHOOSE = '''
@triton.jit
def descend(keys, masses, wanted_count, wanted_mass, low, width, over_count, over_mass, mass):
    """The largest key such that the tokens from it on are wanted_count and have wanted_mass, by eight pivots at a time.

    keys are those of [low, low + width), or -1; over_count tokens with over_mass lie above, and from low on there is mass. Gives also these
    three for the key that is found.
    """
    digits = tl.arange(0, 8)
    num_left = tl.sum((keys >= 0).to(tl.int32), 0)
    while (width > 1) & (num_left > 1):
        step = (width + 7) >> 3
        is_over = keys[None, :] >= (low + tl.minimum(digits * step, width))[:, None]
        counts = over_count + tl.sum(is_over.to(tl.int32), 1)
        sums = over_mass + tl.sum(tl.where(is_over, masses[None, :], 0), 1)
        digit = tl.maximum(tl.sum(((counts >= wanted_count) & (sums >= wanted_mass)).to(tl.int32), 0) - 1, 0)
        mass = tl.sum(tl.where(digits == digit, sums, 0), 0)
        if digit < 7:
            over_count = tl.sum(tl.where(digits == digit + 1, counts, 0), 0)
            over_mass = tl.sum(tl.where(digits == digit + 1, sums, 0), 0)
        width = tl.minimum(step, width - digit * step)
        low += digit * step
        keys = tl.where((keys >= low) & (keys < low + width), keys, -1)
        num_left = tl.sum((keys >= 0).to(tl.int32), 0)
    if width > 1:
        last_mass = tl.sum(tl.where(keys >= 0, masses, 0), 0)
        is_enough = (over_count + num_left >= wanted_count) & (over_mass + last_mass >= wanted_mass)
        low = tl.where(is_enough & (num_left > 0), tl.max(keys, 0), low)
        mass = over_mass + last_mass
    return low, over_count, over_mass, mass


@triton.jit
def find_token(found, masses, target, ID_SHIFT: tl.constexpr):
    """The first token in the order of ids whose running mass exceeds target: the largest id before which there is no more than target."""
    low, shift = 0, ID_SHIFT
    digits = tl.arange(0, 8)
    while shift >= 0:
        is_before = found[None, :] < (low + (digits << shift))[:, None]
        sums = tl.sum(tl.where(is_before, masses[None, :], 0), 1)
        low += (tl.sum((sums <= target).to(tl.int32), 0) - 1) << shift
        shift -= 3
    return low


@triton.jit
def read_weights(logits, history, params, row, slot, token, top, VOCAB: tl.constexpr):
    temperature, top_k, top_p, min_p = read_filters(params, row)
    return weigh(read_logits(logits, history, params, row, slot, token, VOCAB), top, temperature, min_p)


@triton.jit
def narrow(logits, history, params, found_key, row, slot, top, wanted_count, wanted_mass, guess,
           VOCAB: tl.constexpr, CHUNK: tl.constexpr, CAPACITY: tl.constexpr, SCALE: tl.constexpr):
    """Passes over the row until few keys are left between two pivots, and lists those: what descend begins with, and their number.

    The first pivots lie around a guess, so that one pass is usually enough.
    """
    digits = tl.arange(0, 8)
    low, width, over_count, num_left = wanted_count * 0, wanted_count * 0 + (1 << 30), wanted_count * 0, wanted_count * 0 + VOCAB
    over_mass, mass = wanted_mass * 0, wanted_mass * 0
    pivots = tl.where(digits == 0, 0, guess + (digits - 4) * tl.abs(digits - 4) * (1 << 17))
    while (width > 1) & (num_left > CAPACITY):
        counts = tl.zeros([8], tl.int32)
        sums = tl.zeros([8], tl.int64)
        for start in tl.range(0, VOCAB, CHUNK, num_stages=3):
            w = read_weights(logits, history, params, row, slot, start + tl.arange(0, CHUNK), top, VOCAB)
            is_over = w.to(tl.int32, bitcast=True)[None, :] >= pivots[:, None]
            counts += tl.sum((is_over & (w > 0)[None, :]).to(tl.int32), 1)
            sums += tl.sum(tl.where(is_over, to_mass(w, SCALE)[None, :], 0), 1)
        digit = tl.maximum(tl.sum(((counts >= wanted_count) & (sums >= wanted_mass)).to(tl.int32), 0) - 1, 0)
        mass = tl.sum(tl.where(digits == digit, sums, 0), 0)
        high = low + width
        if digit < 7:
            over_count = tl.sum(tl.where(digits == digit + 1, counts, 0), 0)
            over_mass = tl.sum(tl.where(digits == digit + 1, sums, 0), 0)
            high = tl.sum(tl.where(digits == digit + 1, pivots, 0), 0)
        num_left = tl.sum(tl.where(digits == digit, counts, 0), 0) - over_count
        low = tl.sum(tl.where(digits == digit, pivots, 0), 0)
        width = high - low
        pivots = low + tl.minimum(digits * ((width + 7) >> 3), width)
    count = 0
    for start in tl.range(0, VOCAB, CHUNK, num_stages=3):
        key = read_weights(logits, history, params, row, slot, start + tl.arange(0, CHUNK), top, VOCAB).to(tl.int32, bitcast=True)
        is_left = ((key > 0) & (key >= low) & (key < low + width)).to(tl.int32)
        place = count + tl.cumsum(is_left, 0) - 1
        tl.store(found_key + row * CAPACITY + place, key, mask=(is_left > 0) & (place < CAPACITY))
        count += tl.sum(is_left, 0)
    return low, width, over_count, over_mass, mass, tl.minimum(count, CAPACITY)


@triton.jit
def find_in_row(logits, history, params, row, slot, top, threshold, target, VOCAB: tl.constexpr, CHUNK: tl.constexpr, SCALE: tl.constexpr):
    """As find_token, over the whole row's tokens from the threshold on."""
    running, before = target * 0, target * 0
    first = 0
    lane = tl.arange(0, CHUNK)
    for start in tl.range(0, VOCAB, CHUNK, num_stages=3):
        w = read_weights(logits, history, params, row, slot, start + lane, top, VOCAB)
        running += tl.sum(tl.where(w.to(tl.int32, bitcast=True) >= threshold, to_mass(w, SCALE), 0), 0)
        is_before = (running <= target) & (start + CHUNK < VOCAB)
        before = tl.where(is_before, running, before)
        first = tl.where(is_before, start + CHUNK, first)
    w = read_weights(logits, history, params, row, slot, first + lane, top, VOCAB)
    mass = tl.where(w.to(tl.int32, bitcast=True) >= threshold, to_mass(w, SCALE), 0)
    passed = tl.sum((before + tl.cumsum(mass, 0) <= target).to(tl.int32), 0)
    return first + tl.minimum(passed, tl.max(tl.where(mass > 0, lane, 0), 0))


@triton.jit
def mass_of_top_k(count, low, over_count, over_mass, SCALE: tl.constexpr):
    """Of exactly count tokens: those above the key low, and as many of those that have it as are missing."""
    return over_mass + (count - over_count).to(tl.int64) * to_mass(low.to(tl.float32, bitcast=True), SCALE)


@triton.jit
def share(fraction, mass):
    """Rounded down."""
    return (fraction.to(tl.float64) * mass.to(tl.float64)).to(tl.int64)


@triton.jit
def wanted_mass(top_p, total):
    """What the tokens that top_p keeps must have: something, however small top_p is."""
    return tl.maximum(share(top_p, total), 1)


@triton.jit
def choose_of_few(found_key, found_token, row, count, top_k, top_p, number, total,
                  VOCAB: tl.constexpr, CAPACITY: tl.constexpr, FEW: tl.constexpr, SCALE: tl.constexpr):
    """The token of a row whose list is short: each of its tokens is compared with all others, a few at a time."""
    lane, other = tl.arange(0, FEW), tl.arange(0, 16)
    keys = tl.load(found_key + row * CAPACITY + lane, mask=lane < count, other=-1)
    found = tl.load(found_token + row * CAPACITY + lane, mask=lane < count, other=VOCAB)
    over_count, over_mass = tl.zeros([FEW], tl.int32), tl.zeros([FEW], tl.int64)
    for start in range(0, count, 16):
        key = tl.load(found_key + row * CAPACITY + start + other, mask=start + other < count, other=-1)
        is_larger = key[:, None] > keys[None, :]
        over_count += tl.sum(is_larger.to(tl.int32), 0)
        over_mass += tl.sum(tl.where(is_larger, to_mass(key.to(tl.float32, bitcast=True), SCALE)[:, None], 0), 0)
    threshold = count * 0
    if top_k > 0:
        limit = tl.minimum(top_k, count)
        threshold = tl.min(tl.where((over_count < limit) & (lane < count), keys, 1 << 30), 0)
        num_larger = tl.min(tl.where(keys == threshold, over_count, 1 << 30), 0)
        total = mass_of_top_k(limit, threshold, num_larger, tl.max(tl.where(keys == threshold, over_mass, 0), 0), SCALE)
    if top_p < 1.0:
        is_kept = (over_mass < wanted_mass(top_p, total)) & (keys >= threshold) & (lane < count)
        threshold = tl.min(tl.where(is_kept, keys, 1 << 30), 0)
    kept = tl.sum(tl.where((keys >= threshold) & (lane < count), to_mass(keys.to(tl.float32, bitcast=True), SCALE), 0), 0)
    target = tl.minimum(share(number, kept), kept - 1)
    running = tl.zeros([FEW], tl.int64)
    for start in range(0, count, 16):
        key = tl.load(found_key + row * CAPACITY + start + other, mask=start + other < count, other=-1)
        token = tl.load(found_token + row * CAPACITY + start + other, mask=start + other < count, other=VOCAB)
        mass = tl.where((key >= threshold) & (key > 0), to_mass(key.to(tl.float32, bitcast=True), SCALE), 0)
        running += tl.sum(tl.where(token[:, None] <= found[None, :], mass[:, None], 0), 0)
    return tl.min(tl.where((running > target) & (lane < count), found, VOCAB), 0)


@triton.jit
def choose(logits, history, params, row_guess, found_key, found_token, row, slot, top, count, is_listed, top_k, top_p, number, total,
           VOCAB: tl.constexpr, CAPACITY: tl.constexpr, CHUNK: tl.constexpr, SCALE: tl.constexpr, ID_SHIFT: tl.constexpr):
    """The token of a row by searches, through its list where that holds all that the filters keep."""
    place = tl.arange(0, CAPACITY)
    keys = tl.load(found_key + row * CAPACITY + place, mask=place < count, other=-1)
    none, nothing = count * 0, total * 0
    threshold, kept, guess = none, total, tl.load(row_guess + row).to(tl.int32, bitcast=True)
    for is_top_p in range(2):
        if ((is_top_p == 0) & (top_k > 0)) | ((is_top_p == 1) & (top_p < 1.0)):
            wanted_count = tl.where(is_top_p == 0, top_k, 0)
            wanted = tl.where(is_top_p == 0, nothing, wanted_mass(top_p, total))
            low, width, over_count, over_mass, mass, left = none, none + (1 << 30), none, nothing, total, keys
            if not is_listed:
                low, width, over_count, over_mass, mass, num_left = narrow(
                    logits, history, params, found_key, row, slot, top, wanted_count, wanted, guess, VOCAB, CHUNK, CAPACITY, SCALE
                )
                tl.debug_barrier()
                left = tl.load(found_key + row * CAPACITY + place, mask=place < num_left, other=-1)
                tl.debug_barrier()
            masses = tl.where(left > 0, to_mass(left.to(tl.float32, bitcast=True), SCALE), 0)
            low, over_count, over_mass, mass = descend(left, masses, wanted_count, wanted, low, width, over_count, over_mass, mass)
            kept = tl.where(low >= threshold, mass, kept)
            threshold = tl.maximum(threshold, low)
            guess = tl.maximum(guess, low)
            total = mass_of_top_k(wanted_count, low, over_count, over_mass, SCALE)
    target = tl.minimum(share(number, kept), kept - 1)
    if is_listed:
        found = tl.load(found_token + row * CAPACITY + place, mask=place < count, other=0)
        masses = tl.where((keys >= threshold) & (keys > 0), to_mass(keys.to(tl.float32, bitcast=True), SCALE), 0)
        token = find_token(found, masses, target, ID_SHIFT)
    else:
        token = find_in_row(logits, history, params, row, slot, top, threshold, target, VOCAB, CHUNK, SCALE)
    return token


@triton.jit
def sample_choose(logits, history, slots, params, uniform, row_top, row_guess, num_found, found_key, found_token, part_mass, tokens,
                  last_token, VOCAB: tl.constexpr, NUM_PARTS: tl.constexpr, LANES: tl.constexpr, CAPACITY: tl.constexpr, FEW: tl.constexpr,
                  CHUNK: tl.constexpr, SCALE: tl.constexpr, ID_SHIFT: tl.constexpr, EARLY: tl.constexpr):
    """Draws the token of a filtered row: from the collected tokens where they hold all that the filters keep, else from the row."""
    row = tl.program_id(0)
    lane, place = tl.arange(0, LANES), tl.arange(0, CAPACITY)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    if is_filtered(params, row):
        temperature, most, top_p, min_p = read_filters(params, row)
        slot, top, top_k = tl.load(slots + row), tl.load(row_top + row), most.to(tl.int32)
        number, count = tl.load(uniform + row), tl.load(num_found + row)
        total = tl.sum(tl.load(part_mass + row * NUM_PARTS + lane, mask=lane < NUM_PARTS, other=0), 0)
        keys = tl.load(found_key + row * CAPACITY + place, mask=place < count, other=0)
        listed = tl.sum(to_mass(keys.to(tl.float32, bitcast=True), SCALE), 0)
        has_top_k = (top_k > 0) & (count >= top_k)
        has_top_p = (top_k == 0) & (top_p < 1.0) & (listed >= wanted_mass(top_p, total))
        is_listed = (count <= CAPACITY) & (has_top_k | has_top_p | (listed == total))
        if is_listed & (count <= FEW):
            token = choose_of_few(found_key, found_token, row, count, top_k, top_p, number, total, VOCAB, CAPACITY, FEW, SCALE)
        else:
            token = choose(
                logits, history, params, row_guess, found_key, found_token, row, slot, top, count, is_listed, top_k, top_p, number, total,
                VOCAB, CAPACITY, CHUNK, SCALE, ID_SHIFT
            )
        finish(token, row, slot, params, history, tokens, last_token, VOCAB)
'''

HELPERS = (READ_LOGITS, WEIGH, TO_MASS, FINISH, IS_FILTERED)
KERNELS = {
    "sample_scan_greedy": SCAN_GREEDY,
    "sample_settle_greedy": SETTLE_GREEDY,
    "sample_scan": SCAN,
    "sample_settle": SETTLE,
    "sample_collect": COLLECT,
    "sample_choose": CHOOSE,
}
_DEFINED = re.compile(r"^def (\w+)\(", re.MULTILINE)


def signature_of(entry: str) -> tuple[list[str], list[str]]:
    """Names of the kernel's run-time parameters, and of its constants."""
    text = KERNELS[entry].split(f"def {entry}(")[1].split("):")[0]
    constants = re.findall(r"(\w+): tl\.constexpr", text)
    return [name for name in re.findall(r"\w+", text.replace(": tl.constexpr", "")) if name not in constants], constants


def source_of(entry: str) -> str:
    """The kernel's text with the helpers that it calls, themselves or through others, without imports."""
    texts = [KERNELS[entry]]
    for helper in reversed(HELPERS):
        if any(re.search(rf"\b{name}\(", text) for name in _DEFINED.findall(helper) for text in texts):
            texts.insert(0, helper)
    return "\n".join(texts)
