"""The text of the sampling kernels: Triton functions, each kernel with the helpers that it calls. Knows neither engines nor launches.

Names are constants of the kernel where they are written LARGE. All masses are whole numbers, so that sums depend on no order.
"""

from __future__ import annotations

import re

from tilewright.codegen.sample_bracket_source import SETTLE
from tilewright.codegen.sample_choose_source import CHOOSE
from tilewright.codegen.sample_collect_source import COLLECT
from tilewright.codegen.sample_search_source import SEARCH

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

MASS = '''
@triton.jit
def to_key(w):
    """The bits of a weight, which order weights as the weights do."""
    return w.to(tl.int32, bitcast=True)


@triton.jit
def to_mass(w, SCALE: tl.constexpr):
    """A weight as a whole number of 1 / SCALE."""
    return (w * SCALE).to(tl.int64)


@triton.jit
def mass_of(key, SCALE: tl.constexpr):
    return to_mass(key.to(tl.float32, bitcast=True), SCALE)


@triton.jit
def mass_of_top_k(count, low, over_count, over_mass, SCALE: tl.constexpr):
    """Of exactly count tokens: those above the key low, and as many of those that have it as are missing."""
    return over_mass + (count - over_count).to(tl.int64) * mass_of(low, SCALE)


@triton.jit
def share(fraction, mass):
    """Rounded down."""
    return (fraction.to(tl.float64) * mass.to(tl.float64)).to(tl.int64)


@triton.jit
def wanted_mass(top_p, total):
    """What the tokens that top_p keeps must have: something, however small top_p is."""
    return tl.maximum(share(top_p, total), 1)


@triton.jit
def add_two(a, b, x, y):
    """Two sums in one reduction, which waits for the other warps once."""
    return a + x, b + y
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
def is_filtered(temperature, top_k, top_p, min_p):
    """Whether a row draws, and from some of the tokens only."""
    return (temperature > 0) & ((top_k > 0) | (top_p < 1.0) | (min_p > 0))
'''

READ_WEIGHTS = '''
@triton.jit
def read_weights(logits, history, params, row, slot, token, top, VOCAB: tl.constexpr):
    temperature, top_k, top_p, min_p = read_filters(params, row)
    return weigh(read_logits(logits, history, params, row, slot, token, VOCAB), top, temperature, min_p)
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

HELPERS = (READ_LOGITS, WEIGH, MASS, FINISH, IS_FILTERED, READ_WEIGHTS, KEEP_LARGEST, FIND_LARGEST, SEARCH)
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
