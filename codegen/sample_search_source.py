"""The text of what draws from a row whose list holds too little: searches the whole row for the threshold, then for the token, in one program."""

from __future__ import annotations

SEARCH = '''
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
def narrow(logits, history, params, left_key, row, slot, top, wanted_count, wanted_mass, guess,
           VOCAB: tl.constexpr, CHUNK: tl.constexpr, MOST_LEFT: tl.constexpr, SCALE: tl.constexpr):
    """Passes over the row until few keys are left between two pivots, and lists those: what descend begins with, and their number.

    The first pivots lie around a guess, so that one pass is usually enough.
    """
    digits = tl.arange(0, 8)
    low, width, over_count, num_left = wanted_count * 0, wanted_count * 0 + (1 << 30), wanted_count * 0, wanted_count * 0 + VOCAB
    over_mass, mass = wanted_mass * 0, wanted_mass * 0
    pivots = tl.where(digits == 0, 0, guess + (digits - 4) * tl.abs(digits - 4) * (1 << 17))
    while (width > 1) & (num_left > MOST_LEFT):
        counts = tl.zeros([8], tl.int32)
        sums = tl.zeros([8], tl.int64)
        for start in tl.range(0, VOCAB, CHUNK, num_stages=3):
            w = read_weights(logits, history, params, row, slot, start + tl.arange(0, CHUNK), top, VOCAB)
            is_over = to_key(w)[None, :] >= pivots[:, None]
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
        key = to_key(read_weights(logits, history, params, row, slot, start + tl.arange(0, CHUNK), top, VOCAB))
        is_left = ((key > 0) & (key >= low) & (key < low + width)).to(tl.int32)
        place = count + tl.cumsum(is_left, 0) - 1
        tl.store(left_key + row * MOST_LEFT + place, key, mask=(is_left > 0) & (place < MOST_LEFT))
        count += tl.sum(is_left, 0)
    return low, width, over_count, over_mass, mass, tl.minimum(count, MOST_LEFT)


@triton.jit
def find_in_row(logits, history, params, row, slot, top, threshold, target, VOCAB: tl.constexpr, CHUNK: tl.constexpr, SCALE: tl.constexpr):
    """As find_token, over the whole row's tokens from the threshold on."""
    running, before = target * 0, target * 0
    first = 0
    lane = tl.arange(0, CHUNK)
    for start in tl.range(0, VOCAB, CHUNK, num_stages=3):
        w = read_weights(logits, history, params, row, slot, start + lane, top, VOCAB)
        running += tl.sum(tl.where(to_key(w) >= threshold, to_mass(w, SCALE), 0), 0)
        is_before = (running <= target) & (start + CHUNK < VOCAB)
        before = tl.where(is_before, running, before)
        first = tl.where(is_before, start + CHUNK, first)
    w = read_weights(logits, history, params, row, slot, first + lane, top, VOCAB)
    mass = tl.where(to_key(w) >= threshold, to_mass(w, SCALE), 0)
    passed = tl.sum((before + tl.cumsum(mass, 0) <= target).to(tl.int32), 0)
    return first + tl.minimum(passed, tl.max(tl.where(mass > 0, lane, 0), 0))


@triton.jit
def sum_row(logits, history, params, row, slot, top, VOCAB: tl.constexpr, CHUNK: tl.constexpr, SCALE: tl.constexpr):
    masses = tl.zeros([CHUNK], tl.int64)
    for start in tl.range(0, VOCAB, CHUNK, num_stages=3):
        masses += to_mass(read_weights(logits, history, params, row, slot, start + tl.arange(0, CHUNK), top, VOCAB), SCALE)
    return tl.sum(masses, 0)


@triton.jit
def search_row(logits, history, params, left_key, row, slot, top, top_k, top_p, number, guess,
               VOCAB: tl.constexpr, MOST_LEFT: tl.constexpr, CHUNK: tl.constexpr, SCALE: tl.constexpr):
    """The token of a row by passes over all of its logits: for the threshold of top_k, for that of top_p, for the token."""
    place = tl.arange(0, MOST_LEFT)
    total = sum_row(logits, history, params, row, slot, top, VOCAB, CHUNK, SCALE)
    none, nothing = top_k * 0, total * 0
    threshold, kept = none, total
    for is_top_p in range(2):
        if ((is_top_p == 0) & (top_k > 0)) | ((is_top_p == 1) & (top_p < 1.0)):
            wanted_count = tl.where(is_top_p == 0, top_k, 0)
            wanted = tl.where(is_top_p == 0, nothing, wanted_mass(top_p, total))
            low, width, over_count, over_mass, mass, num_left = narrow(
                logits, history, params, left_key, row, slot, top, wanted_count, wanted, guess, VOCAB, CHUNK, MOST_LEFT, SCALE
            )
            tl.debug_barrier()
            left = tl.load(left_key + row * MOST_LEFT + place, mask=place < num_left, other=-1)
            tl.debug_barrier()
            masses = tl.where(left > 0, mass_of(left, SCALE), 0)
            low, over_count, over_mass, mass = descend(left, masses, wanted_count, wanted, low, width, over_count, over_mass, mass)
            kept = tl.where(low >= threshold, mass, kept)
            threshold = tl.maximum(threshold, low)
            guess = tl.maximum(guess, low)
            total = mass_of_top_k(wanted_count, low, over_count, over_mass, SCALE)
    target = tl.minimum(share(number, kept), kept - 1)
    return find_in_row(logits, history, params, row, slot, top, threshold, target, VOCAB, CHUNK, SCALE)
'''
