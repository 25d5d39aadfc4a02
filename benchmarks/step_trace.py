"""Records the steps that a runtime launches: their kind and size, what the host spends on a launch, and how long the GPU waits between two."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import torch

import tilewright as tw


@dataclass(frozen=True, slots=True)
class TracedStep:
    is_decode: bool
    num_tokens: int
    num_sequences: int
    launched: float  # seconds, when the host began to launch it
    host_us: float  # until the launch returned
    start: torch.cuda.Event | None  # before its first operation on the GPU; None on the CPU
    end: torch.cuda.Event | None  # after its last one


@dataclass(slots=True)
class StepTrace:
    steps: list[TracedStep] = field(default_factory=list)

    def of_batch(self, batch: int) -> StepTrace:
        """Its longest row of decode steps of so many sequences."""
        longest: list[TracedStep] = []
        current: list[TracedStep] = []
        for step in self.steps:
            current = [*current, step] if step.is_decode and step.num_sequences == batch else []
            longest = max(longest, current, key=len)
        return StepTrace(longest)

    def skip(self, count: int) -> StepTrace:
        return StepTrace(self.steps[count:])

    @property
    def num_decode(self) -> int:
        return sum(step.is_decode for step in self.steps)

    @property
    def num_ragged(self) -> int:
        return len(self.steps) - self.num_decode

    @property
    def step_us(self) -> float:
        """Median time from the start of one step to that of the next, on the GPU where there is one."""
        gaps = [self._elapsed_us(a.start, b.start) if a.start and b.start else (b.launched - a.launched) * 1e6 for a, b in pairwise(self.steps)]
        return statistics.median(gaps) if gaps else 0.0

    @property
    def launch_us(self) -> float:
        """Median time of the host for a launch."""
        return statistics.median(step.host_us for step in self.steps) if self.steps else 0.0

    @property
    def wait_share(self) -> float | None:
        """Share of the time between the first step's start and the last one's end that the GPU spent between two steps; None on the CPU.

        Where the host launches in time, a step starts when the one before it ends; what remains then is the time of two events.
        """
        if len(self.steps) < 2 or self.steps[0].start is None:
            return None
        waited = sum(self._elapsed_us(a.end, b.start) for a, b in pairwise(self.steps))
        return waited / self._elapsed_us(self.steps[0].start, self.steps[-1].end)

    @staticmethod
    def _elapsed_us(first: torch.cuda.Event | None, second: torch.cuda.Event | None) -> float:
        assert first is not None and second is not None
        return max(0.0, first.elapsed_time(second)) * 1e3


@contextmanager
def trace_steps(llm: tw.LLM) -> Iterator[StepTrace]:
    """The trace may be read after the block, which waits for the GPU."""
    trace, launch = StepTrace(), llm.runner.launch
    on_gpu = llm.engine.backend.device.type == "cuda"

    def record() -> torch.cuda.Event | None:
        if not on_gpu:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def traced(step):
        launched, start = time.perf_counter(), record()
        pending = launch(step)
        host_us = (time.perf_counter() - launched) * 1e6
        trace.steps.append(TracedStep(step.is_decode, step.num_tokens, len(step.starts), launched, host_us, start, record()))
        return pending

    llm.runner.launch = traced
    try:
        yield trace
    finally:
        llm.runner.launch = launch
        if on_gpu:
            torch.cuda.synchronize()


def show_share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
