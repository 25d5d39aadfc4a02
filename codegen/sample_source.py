"""The text of the sampling kernels: Triton functions, each kernel with the helpers that it calls. Knows neither engines nor launches.

Names are constants of the kernel where they are written LARGE. All masses are whole numbers, so that sums depend on no order.
"""

from __future__ import annotations

import re

from tilewright.codegen.sample_choose_source import CHOOSE

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

KEEP_LARGEST = '''
@triton.jit
def keep_largest(x, token, top_out, token_out, VOCAB: tl.constexpr):
    """Stores the largest logit of a part, which it gives, and the first token that has it."""
    top = tl.max(x, 0)
    tl.store(top_out, top)
    tl.store(token_out, tl.min(tl.where(x == top, token, VOCAB - 1), 0))
    return top
'''

FIND_LARGEST = '''
@triton.jit
def find_largest(tops_in, tokens_in, lane, VOCAB: tl.constexpr, NUM_PARTS: tl.constexpr):
    """The parts' largest logits, the row's, and the first token that has it."""
    tops = tl.load(tops_in + lane, mask=lane < NUM_PARTS, other=float("-inf"))
    firsts = tl.load(tokens_in + lane, mask=lane < NUM_PARTS, other=VOCAB - 1)
    top = tl.max(tops, 0)
    return tops, top, tl.min(tl.where(tops == top, firsts, VOCAB - 1), 0)
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
    keep_largest(x, token, part_top + row * NUM_PARTS + part, part_token + row * NUM_PARTS + part, VOCAB)
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
    tops, top, token = find_largest(part_top + row * NUM_PARTS, part_token + row * NUM_PARTS, lane, VOCAB, NUM_PARTS)
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
    top = keep_largest(x, token, part_top + row * NUM_PARTS + part, part_token + row * NUM_PARTS + part, VOCAB)
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
    tops, top, token = find_largest(part_top + row * NUM_PARTS, part_token + row * NUM_PARTS, lane, VOCAB, NUM_PARTS)
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

HELPERS = (READ_LOGITS, WEIGH, TO_MASS, FINISH, IS_FILTERED, KEEP_LARGEST, FIND_LARGEST)
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
