"""Decides which tokens of which sequences run in the next step: first come, first served, prefill chunks beside decodes.

Knows pages by number only; no tensors. A step may be scheduled before the tokens of the one before it are known.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from tilewright.ir.errors import RequestError
from tilewright.ir.manifest import Limits
from tilewright.runtime.pages import PagePool
from tilewright.runtime.sequence import NO_SLOT, FinishReason, Sequence, Status


class Chunk(NamedTuple):
    """Tokens [start, start + length) of a sequence run in a step."""

    sequence: Sequence
    start: int
    length: int
    samples: bool  # reaches the last token, so that the next one is sampled


class Step(NamedTuple):
    chunks: list[Chunk]
    sampling: list[Sequence]  # those of chunks that sample, in their order
    admitted: list[Sequence]  # given a slot in this step
    grown: list[Sequence]  # given pages in this step
    num_tokens: int
    is_decode: bool  # every chunk is one token that the device sampled itself, into the sequence's slot


class Scheduler:
    """`schedule` and `complete` are called alternately, or `schedule` runs ahead by a step. Sequences stand in order of arrival."""

    def __init__(self, limits: Limits, num_pages: int) -> None:
        self.limits = limits
        self.pool = PagePool(num_pages, limits.page_size)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._free_slots = list(range(limits.max_batch_size - 1, -1, -1))
        self._num_arrivals = 0
        self._grown: list[Sequence] = []  # given pages since the last step

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Raises RequestError for a sequence that could not finish even if it were alone."""
        most = len(sequence.prompt) + sequence.max_outputs - 1  # the last token is never run
        needed = self.pool.pages_for(most)
        if needed > self.pool.num_pages:
            held = self.pool.num_pages * self.limits.page_size
            asked = f"{len(sequence.prompt)} prompt tokens and max_tokens={sequence.max_outputs}"
            problem = f"{asked} need a cache of {most} tokens, this one holds {held}"
            raise RequestError(f"request {sequence.request_id}", problem, "lower max_tokens, shorten the prompt or raise max_cache_tokens")
        sequence.arrival = self._num_arrivals
        self._num_arrivals += 1
        self.waiting.append(sequence)

    def schedule(self) -> Step:
        """The next step; no chunks where nothing can run before a step in flight completes."""
        preemptions = self.num_preemptions
        chunks = self._continue_running(self.limits.max_tokens)
        budget = self.limits.max_tokens - sum(chunk.length for chunk in chunks)
        admitted: list[Sequence] = []
        if preemptions == self.num_preemptions:
            while budget > 0 and (sequence := self._admit()):
                length = min(sequence.num_uncomputed, budget)
                self._reserve(sequence, length)
                admitted.append(sequence)
                chunks.append(_advance(sequence, length))
                budget -= length
        is_decode = all([chunk.sequence.token_in_slot and chunk.length == 1 for chunk in chunks])
        sampling = [chunk.sequence for chunk in chunks if chunk.samples]
        for sequence in sampling:
            sequence.num_tokens += 1
            sequence.token_in_slot = True
        grown, self._grown = self._grown, []
        return Step(chunks, sampling, admitted, grown, self.limits.max_tokens - budget, is_decode)

    def complete(self, step: Step, tokens: list[int]) -> list[int]:
        """Takes the tokens sampled for `step.sampling`; returns the rows whose sequences got theirs. Finished sequences get none."""
        rows = []
        for row, (sequence, token) in enumerate(zip(step.sampling, tokens, strict=True)):
            if sequence.status is Status.FINISHED:
                continue
            rows.append(row)
            reason = sequence.accept(token)
            if reason is not None:
                self.finish(sequence, reason)
        return rows

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """Pages and slot are free at once: what a step in flight still writes there comes before what a later step writes."""
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            self._release(sequence)
        elif sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        sequence.status, sequence.finish_reason = Status.FINISHED, reason

    def _continue_running(self, budget: int) -> list[Chunk]:
        chunks: list[Chunk] = []
        index = 0
        while index < len(self.running) and budget > 0:
            sequence = self.running[index]
            length = sequence.num_uncomputed
            if length > 0:
                length = min(length, budget)
                if sequence.num_computed + length > sequence.num_reserved and not self._reserve(sequence, sequence.num_computed + length):
                    break
                chunks.append(_advance(sequence, length))
                budget -= length
            index += 1
        return chunks

    def _admit(self) -> Sequence | None:
        """Moves the first waiting sequence to the running ones, if there is room for all its tokens and a page of growth for each other."""
        if not self.waiting or not self._free_slots:
            return None
        sequence = self.waiting[0]
        wanted = self.pool.pages_for(sequence.num_tokens) + len(self.running)
        if sequence.num_pending or (self.running and wanted > self.pool.num_free):
            return None
        self.waiting.popleft()
        self.running.append(sequence)
        sequence.status, sequence.slot = Status.RUNNING, self._free_slots.pop()
        return sequence

    def _reserve(self, sequence: Sequence, num_tokens: int) -> bool:
        """Gives the sequence pages for num_tokens, preempting the latest ones; False if that was itself."""
        missing = self.pool.pages_for(num_tokens) - len(sequence.pages)
        while self.pool.num_free < missing:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        sequence.pages += self.pool.take(missing)
        sequence.num_reserved = len(sequence.pages) * self.pool.page_size
        self._grown.append(sequence)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the head of the queue, to be computed again from its tokens."""
        self.running.remove(sequence)
        self._release(sequence)
        sequence.status, sequence.num_computed = Status.WAITING, 0
        self.waiting.appendleft(sequence)
        self.num_preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self.pool.give_back(sequence.pages)
        self._free_slots.append(sequence.slot)
        sequence.pages, sequence.num_reserved, sequence.slot, sequence.token_in_slot = [], 0, NO_SLOT, False

    def check(self) -> None:
        """Pages and slots belong to one sequence each, none is lost, queues are in order of arrival."""
        self.pool.check()
        owned = [page for sequence in self.running for page in sequence.pages]
        assert len(set(owned)) == len(owned), "a page belongs to two sequences"
        assert len(owned) == self.pool.num_used, f"{self.pool.num_used} pages are taken, sequences own {len(owned)}"
        slots = [sequence.slot for sequence in self.running]
        assert sorted(slots + self._free_slots) == list(range(self.limits.max_batch_size)), "a slot is lost or shared"
        arrivals = [sequence.arrival for sequence in [*self.running, *self.waiting]]
        assert arrivals == sorted(arrivals), "sequences are out of order"
        for sequence in self.running:
            assert sequence.status is Status.RUNNING
            assert len(sequence.pages) == self.pool.pages_for(sequence.num_computed), "pages do not match the tokens computed"
        for sequence in self.waiting:
            assert sequence.status is Status.WAITING and not sequence.pages and sequence.slot == NO_SLOT


def _advance(sequence: Sequence, length: int) -> Chunk:
    start = sequence.num_computed
    sequence.num_computed = end = start + length
    return Chunk(sequence, start, length, end == sequence.num_tokens)
