"""The text of the kernel that ends a filtered row: searches for the threshold, then for the token, in its list or in the whole row."""

from __future__ import annotations

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
