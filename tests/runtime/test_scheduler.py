"""Random traffic through scheduler and pages, on a runner whose next token depends on every token read back through the block table."""

import dataclasses
import random
import zlib

import pytest

from tilewright.ir.errors import RequestError
from tilewright.ir.manifest import SCHEMA, KVCache, Limits, Manifest, ModelInfo
from tilewright.runtime.engine_core import EngineCore
from tilewright.runtime.pages import PagePool
from tilewright.runtime.runner import SampledOnHost
from tilewright.runtime.sampling_params import SamplingParams
from tilewright.runtime.scheduler import Scheduler
from tilewright.runtime.sequence import Sequence

VOCAB, EOS = 50, 7


def make_manifest(limits):
    model = ModelInfo("fake", "Fake", VOCAB, "f32", "none", 0, 10_000, None, (EOS,))
    return Manifest(SCHEMA, "test", "cpu", model, limits, KVCache("f32", ()), (), (), ())


def next_token(tokens):
    return zlib.crc32(bytes(tokens)) % VOCAB


def solo_run(prompt, count):
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count and (len(tokens) == len(prompt) or tokens[-1] != EOS):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class FakeRunner:
    """Keeps tokens in pages where a model keeps keys and values."""

    def __init__(self, num_pages, limits):
        self.num_pages, self.limits = num_pages, limits
        self.cells = [None] * (num_pages * limits.page_size)
        self.last_token = [None] * limits.max_batch_size

    def launch(self, step):
        assert 0 < step.num_tokens <= self.limits.max_tokens
        assert step.num_tokens == sum(chunk.length for chunk in step.chunks)
        assert step.sampling == [chunk.sequence for chunk in step.chunks if chunk.samples]
        assert len({id(chunk.sequence) for chunk in step.chunks}) == len(step.chunks) <= self.limits.max_batch_size
        for sequence in step.admitted:
            self.last_token[sequence.slot] = None
        tokens = []
        for chunk in step.chunks:
            self._write(chunk, step.is_decode)
            if chunk.samples:
                tokens.append(next_token(self._read(chunk.sequence, chunk.start + chunk.length)))
                self.last_token[chunk.sequence.slot] = tokens[-1]
        return FakePending(tokens)

    def _write(self, chunk, is_decode):
        known = chunk.sequence.tokens(chunk.start, chunk.start + chunk.length)
        if is_decode or len(known) < chunk.length:
            known = [*known[: chunk.length - 1], self.last_token[chunk.sequence.slot]]
        for position, token in enumerate(known, chunk.start):
            assert token is not None
            self.cells[self._cell(chunk.sequence, position)] = token

    def _read(self, sequence, length):
        return [self.cells[self._cell(sequence, position)] for position in range(length)]

    def _cell(self, sequence, position):
        size = self.limits.page_size
        return sequence.pages[position // size] * size + position % size


class FakePending:
    def __init__(self, tokens):
        self.tokens = tokens

    def wait(self):
        return SampledOnHost(self.tokens)


def random_limits(dice):
    return Limits(
        max_batch_size=dice.randint(1, 9),
        max_input_len=60,
        max_output_len=50,
        max_tokens=dice.choice([1, 3, 8, 17, 64]),
        page_size=dice.choice([1, 2, 3, 8]),
    )


def run_traffic(seed, num_requests):
    """Random arrivals and aborts until idle; returns the number of preemptions."""
    dice = random.Random(seed)
    limits = random_limits(dice)
    num_pages = -(-dice.choice([110, 140, 250]) // limits.page_size)
    core = EngineCore(make_manifest(limits), FakeRunner(num_pages, limits), lookahead=seed % 2)
    asked, results, told = {}, {}, {}
    while core.has_work or len(asked) < num_requests:
        while len(asked) < num_requests and dice.random() < 0.3:
            prompt, count = [dice.randrange(VOCAB) for _ in range(dice.randint(1, 60))], dice.randint(1, 50)
            name = f"q{len(asked)}"
            core.add_request(name, prompt, SamplingParams(max_tokens=count, ignore_eos=False), stream=dice.random() < 0.5)
            asked[name] = (prompt, count)
        if asked and dice.random() < 0.02:
            core.abort(dice.choice(list(asked)))
        for output in core.step():
            assert output.request_id not in results
            told.setdefault(output.request_id, []).extend(output.new_token_ids)
            if output.finished:
                results[output.request_id] = output
        core.scheduler.check()
    check_results(asked, results, told)
    assert core.scheduler.pool.num_used == 0 and not core.scheduler.has_work and core.num_requests == 0
    return core.scheduler.num_preemptions


def check_results(asked, results, told):
    assert set(results) == set(asked)
    for name, (prompt, count) in asked.items():
        expected, output = solo_run(prompt, count), results[name]
        assert told[name] == output.token_ids
        if output.finish_reason == "abort":
            assert output.token_ids == expected[: len(output.token_ids)]
        else:
            assert output.token_ids == expected
            assert output.finish_reason == ("stop" if expected[-1] == EOS else "length")


@pytest.mark.parametrize("block", range(8))
def test_random_traffic_gives_every_request_its_solo_tokens(block):
    preemptions = sum(run_traffic(seed, 40) for seed in range(block * 10, block * 10 + 10))
    assert preemptions > 0


def make_sequence(name, prompt_len, max_outputs):
    return Sequence(name, list(range(prompt_len)), SamplingParams(), max_outputs, frozenset())


LIMITS = Limits(max_batch_size=4, max_input_len=64, max_output_len=64, max_tokens=10, page_size=4)


def test_a_long_prompt_is_run_in_chunks_beside_decodes():
    scheduler = Scheduler(LIMITS, 64)
    first, second = make_sequence("a", 3, 20), make_sequence("b", 14, 20)
    scheduler.add(first)
    scheduler.complete(scheduler.schedule(), [1])
    scheduler.add(second)
    step = scheduler.schedule()
    assert [(c.sequence, c.start, c.length, c.samples) for c in step.chunks] == [(first, 3, 1, True), (second, 0, 9, False)]
    assert not step.is_decode
    scheduler.complete(step, [2])
    step = scheduler.schedule()
    assert [(c.start, c.length, c.samples) for c in step.chunks] == [(4, 1, True), (9, 5, True)]
    scheduler.complete(step, [3, 4])
    assert scheduler.schedule().is_decode


def test_the_next_step_is_scheduled_before_tokens_are_known():
    scheduler = Scheduler(LIMITS, 64)
    sequence = make_sequence("a", 3, 3)
    scheduler.add(sequence)
    first, second, third = scheduler.schedule(), scheduler.schedule(), scheduler.schedule()
    assert [step.chunks[0].start for step in (first, second, third)] == [0, 3, 4]
    assert not first.is_decode and second.is_decode and third.is_decode
    assert scheduler.schedule().chunks == []
    for step, token in zip((first, second, third), (11, 12, 13)):
        scheduler.complete(step, [token])
    assert sequence.output == [11, 12, 13] and sequence.finish_reason == "length" and not scheduler.has_work


def test_the_latest_sequence_is_preempted_and_comes_back_first():
    scheduler = Scheduler(dataclasses.replace(LIMITS, max_tokens=40), 8)
    older, newer, last = make_sequence("a", 11, 20), make_sequence("b", 11, 20), make_sequence("c", 11, 20)
    for sequence in (older, newer, last):
        scheduler.add(sequence)
    step = scheduler.schedule()
    assert [chunk.sequence for chunk in step.chunks] == [older, newer]
    while not scheduler.num_preemptions:
        scheduler.complete(step, [0] * len(step.chunks))
        step = scheduler.schedule()
        scheduler.check()
    assert scheduler.running == [older] and list(scheduler.waiting) == [newer, last] and newer.pages == []


def test_a_sequence_that_never_fits_is_refused_when_added():
    scheduler = Scheduler(LIMITS, 5)
    scheduler.add(make_sequence("fits", 11, 10))
    with pytest.raises(RequestError, match=r"request big: 12 prompt tokens and max_tokens=10 need a cache of 21 tokens, this one holds 20"):
        scheduler.add(make_sequence("big", 12, 10))


def test_sequences_that_will_not_grow_keep_no_page_from_others():
    scheduler = Scheduler(LIMITS, 4)
    for name in "abcd":
        scheduler.add(make_sequence(name, 2, 3))  # four tokens at most: one page
    assert len(scheduler.schedule().chunks) == 4 and scheduler.pool.num_free == 0
    growing = Scheduler(LIMITS, 4)
    for name in "abcd":
        growing.add(make_sequence(name, 2, 4))
    assert len(growing.schedule().chunks) == 2, "the others' pages are kept for the growth of the first two"


def test_a_page_returned_twice_is_caught():
    pool = PagePool(3, 4)
    pages = pool.take(2)
    pool.give_back(pages)
    pool.check()
    with pytest.raises(AssertionError, match="was not taken"):
        pool.give_back(pages)
