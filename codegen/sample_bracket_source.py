"""The text of the kernel that ends rows without filters, and for others bounds the threshold of the filters from below and from above.

The bounds come from the largest logit and the sum of each part, which are known, and from a sample of the row, by Bernstein's inequality.
"""

from __future__ import annotations

SETTLE = '''
@triton.jit
def add_three(a, b, c, x, y, z):
    return a + x, b + y, c + z


@triton.jit
def add_four(a, b, c, d, x, y, z, w):
    return a + x, b + y, c + z, d + w


@triton.jit
def cut_by_parts(tops_in, tops, total, top, temperature, top_k, allowed, NUM_PARTS: tl.constexpr, LANES: tl.constexpr):
    """A weight that the threshold is not under: from it on there are top_k tokens, or all of the total but what is allowed to be left out."""
    other = tl.arange(0, 16)
    counts, masses = tl.zeros([LANES, 16], tl.int32), tl.zeros([LANES, 16], tl.float32)
    for start in range(0, NUM_PARTS, 16):
        x = tl.load(tops_in + start + other, mask=start + other < NUM_PARTS, other=float("-inf"))
        w = weigh(x, top, temperature, 0.0)
        is_over = w[None, :] >= tops[:, None]
        counts += is_over.to(tl.int32)
        masses += tl.where(is_over, w[None, :], 0.0)
    num_over, mass_over = tl.sum(counts, 1), tl.sum(masses, 1)
    is_enough = ((top_k > 0) & (num_over >= top_k)) | ((top_k <= 0) & (total - mass_over <= allowed))
    return tl.max(tl.where(is_enough, tops, 0.0), 0)


@triton.jit
def find_edges(counts, first, step, below, below_squares, num_above, top_k, allowed,
               STRIDE: tl.constexpr, PROBES: tl.constexpr, PROBE_BINS: tl.constexpr, SURENESS: tl.constexpr):
    """The highest lower edge of a bin that the threshold is hardly under, and the lowest that it is hardly over (PROBE_BINS: none), as numbers.

    counts: probes with first + bin * step <= log(weight) < first + (bin + 1) * step; below, below_squares: sums of lower weights and of their
    squares; num_above: probes with higher ones. Each probe stands for STRIDE tokens. An edge is wrong with a probability of exp(-SURENESS).
    """
    bins = tl.arange(0, PROBE_BINS)
    n = counts.to(tl.float32)
    edge, next_edge = tl.exp(first + bins * step), tl.exp(first + (bins + 1) * step)
    most, least, squares = n * next_edge, n * edge, n * next_edge * next_edge
    to, most_to, least_to, squares_to = tl.associative_scan((n, most, least, squares), 0, add_four)
    most, least = below + most_to - most, below + least_to - least
    variance = below_squares + squares_to - squares - least * least / PROBES
    spread = tl.sqrt(2 * SURENESS * tl.maximum(variance, 0.0))
    over = num_above + tl.sum(n, 0) - to + n
    over_spread = tl.sqrt(2 * SURENESS * over)
    is_low = ((top_k > 0) & ((over - over_spread) * STRIDE >= top_k)) | (
        (top_k <= 0) & ((most + spread + SURENESS * edge) * STRIDE <= allowed)
    )
    is_high = ((top_k > 0) & ((over + over_spread + SURENESS) * STRIDE <= top_k)) | ((top_k <= 0) & ((least - spread) * STRIDE >= allowed))
    return tl.max(tl.where(is_low, bins, 0), 0), tl.min(tl.where(is_high, bins, PROBE_BINS), 0)


@triton.jit
def bracket_by_probes(z, is_inside, top_k, allowed, STRIDE: tl.constexpr, PROBES: tl.constexpr, PROBE_BINS: tl.constexpr, SURENESS: tl.constexpr):
    """Weights that the threshold is hardly under, and hardly over (2: none), from logarithms of weights: histograms of all, then of what matters."""
    floor = tl.maximum(tl.min(tl.where(is_inside, z, 0.0), 0), -32.0)
    step = tl.maximum(-floor, 1e-5) / PROBE_BINS
    bins = tl.minimum(tl.maximum((z - floor) / step, 0.0), PROBE_BINS - 1).to(tl.int32)
    counts = tl.histogram(bins, PROBE_BINS, mask=is_inside)
    lower, upper = find_edges(counts, floor, step, 0.0, 0.0, 0.0, top_k, allowed, STRIDE, PROBES, PROBE_BINS, SURENESS)
    upper = tl.maximum(upper, lower + 1)
    is_open = upper >= PROBE_BINS
    first, last = floor + lower * step, floor + upper * step
    is_below, is_above = is_inside & (z < first), is_inside & (z >= last) & (upper < PROBE_BINS)
    w = tl.where(is_below, tl.exp(z), 0.0)
    below, below_squares, num_above = tl.reduce((w, w * w, is_above.to(tl.float32)), 0, add_three)
    fine = (last - first) / PROBE_BINS
    bins = tl.minimum(tl.maximum((z - first) / fine, 0.0), PROBE_BINS - 1).to(tl.int32)
    counts = tl.histogram(bins, PROBE_BINS, mask=is_inside & (z >= first) & (is_above == 0))
    low, high = find_edges(counts, first, fine, below, below_squares, num_above, top_k, allowed, STRIDE, PROBES, PROBE_BINS, SURENESS)
    cut = tl.where((lower == 0) & (low == 0), 0.0, tl.exp(first + low * fine))
    return cut, tl.where(is_open & (high >= PROBE_BINS), 2.0, tl.exp(first + high * fine))


@triton.jit
def bracket(logits, history, params, part_top, row, slot, tops, total, top,
            VOCAB: tl.constexpr, NUM_PARTS: tl.constexpr, LANES: tl.constexpr, PROBES: tl.constexpr, PROBE_BINS: tl.constexpr, STRIDE: tl.constexpr,
            SURENESS: tl.constexpr, FEW: tl.constexpr):
    """Weights that the threshold of the filters is hardly under, and hardly over (2: none). The probes are runs of eight tokens."""
    temperature, top_k, top_p, min_p = read_filters(params, row)
    allowed = (1 - top_p) * total
    cut, high = min_p, min_p * 0 + 2.0
    if (top_k > 0) | ((top_p < 1.0) & (min_p == 0)):
        by_parts = cut_by_parts(part_top + row * NUM_PARTS, tops, total, top, temperature, top_k, allowed * (1 - 1e-6), NUM_PARTS, LANES)
        cut = tl.maximum(cut, by_parts)
        if (top_k <= 0) | (top_k > NUM_PARTS // 2):
            probe = tl.arange(0, PROBES)
            token = (probe >> 3) * (8 * STRIDE) + 4 * (STRIDE - 1) + (probe & 7)
            z = (read_logits(logits, history, params, row, slot, token, VOCAB) - top) / temperature
            low, above = bracket_by_probes(z, token < VOCAB, top_k, allowed, STRIDE, PROBES, PROBE_BINS, SURENESS)
            cut = tl.maximum(cut, low)
            is_short = tl.sum((tl.exp(z) >= cut).to(tl.int32), 0) * STRIDE <= FEW // 2
            high = tl.where(is_short | (above <= cut) | ((top_k > 0) & (top_p < 1.0)), 2.0, above)
    elif top_p >= 1.0:
        high = min_p
    return cut, high


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
def sample_settle(logits, history, slots, params, uniform, part_top, part_token, part_sum, row_top, row_total, row_low, row_high, row_shift,
                  num_found, bin_count, bin_mass, tokens, last_token, VOCAB: tl.constexpr, PART: tl.constexpr, NUM_PARTS: tl.constexpr,
                  LANES: tl.constexpr, PROBES: tl.constexpr, PROBE_BINS: tl.constexpr, STRIDE: tl.constexpr, SURENESS: tl.constexpr,
                  BINS: tl.constexpr, LOG_BINS: tl.constexpr, FEW: tl.constexpr, SCALE: tl.constexpr, KEY_OF_ONE: tl.constexpr,
                  EARLY: tl.constexpr):
    """Ends a row that is greedy or draws from all tokens; for another one, chooses the bracket of keys whose tokens are listed."""
    row = tl.program_id(0)
    lane, bins = tl.arange(0, LANES), tl.arange(0, BINS)
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    slot = tl.load(slots + row)
    temperature, top_k, top_p, min_p = read_filters(params, row)
    tops, top, token = find_largest(part_top + row * NUM_PARTS, part_token + row * NUM_PARTS, lane, VOCAB, NUM_PARTS)
    if temperature > 0:
        own = tl.load(part_sum + row * NUM_PARTS + lane, mask=lane < NUM_PARTS, other=0.0)
        sums = own.to(tl.float64) * tl.exp((tops - top) / temperature).to(tl.float64)
        if is_filtered(temperature, top_k, top_p, min_p):
            most = weigh(tops, top, temperature, 0.0)
            total = tl.sum(sums, 0)
            cut, above = bracket(
                logits, history, params, part_top, row, slot, most, total.to(tl.float32), top,
                VOCAB, NUM_PARTS, LANES, PROBES, PROBE_BINS, STRIDE, SURENESS, FEW
            )
            low, high = to_key(cut), to_key(above)
            width = tl.minimum(high, KEY_OF_ONE + 1) - low
            tl.store(row_total + row, (total * SCALE).to(tl.int64))
            tl.store(row_low + row, low)
            tl.store(row_high + row, high)
            tl.store(row_shift + row, tl.maximum((width.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 126 - LOG_BINS, 0))
            tl.store(row_top + row, top)
            tl.store(num_found + row, 0)
            tl.store(bin_count + row * BINS + bins, tl.zeros([BINS], tl.int32))
            tl.store(bin_mass + row * BINS + bins, tl.zeros([BINS], tl.int64))
        else:
            token = draw_unfiltered(logits, history, params, row, slot, uniform, sums, top, temperature, VOCAB, PART, LANES)
    if not is_filtered(temperature, top_k, top_p, min_p):
        finish(token, row, slot, params, history, tokens, last_token, VOCAB)
'''
