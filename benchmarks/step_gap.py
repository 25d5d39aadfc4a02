"""What the copies between two decode steps cost a GPU: `python benchmarks/step_gap.py`.

Replays of one CUDA graph, as long as a small model's step, with what a step sends and fetches between them; the difference to replays alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from results_table import describe_machine

REPEAT, ROUNDS = 300, 3
STEP_BYTES, TOKENS = 1024, 16


class Gap:
    """Replays a graph on a stream of its own; `aside` is a second one."""

    def __init__(self) -> None:
        self.stream, self.aside = torch.cuda.Stream(), torch.cuda.Stream()
        work = torch.zeros(1 << 24, device="cuda")
        self.block, self.tokens = torch.zeros(STEP_BYTES, dtype=torch.uint8, device="cuda"), torch.zeros(TOKENS, dtype=torch.int64, device="cuda")
        self.staging, self.fetched = torch.zeros(STEP_BYTES, dtype=torch.uint8).pin_memory(), torch.zeros(TOKENS, dtype=torch.int64).pin_memory()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream):
            work.add_(1.0)
            self.stream.synchronize()
            with torch.cuda.graph(self.graph, stream=self.stream):
                for _ in range(12):
                    work.add_(1.0)

    def send(self) -> None:
        self.block.copy_(self.staging, non_blocking=True)

    def fetch(self) -> None:
        self.fetched.copy_(self.tokens, non_blocking=True)

    def send_aside(self) -> None:
        """While the step before still runs; the next one waits for it."""
        with torch.cuda.stream(self.aside):
            self.send()
        self.stream.wait_stream(self.aside)

    def fetch_aside(self) -> None:
        """After its step; the next one does not wait for it."""
        self.aside.wait_stream(self.stream)
        with torch.cuda.stream(self.aside):
            self.fetch()

    def time(self, before: Callable[[], None] | None, after: Callable[[], None] | None) -> float:
        """Microseconds of a step."""
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(self.stream):
            for repeat in range(REPEAT + 5):
                if repeat == 5:
                    self.stream.synchronize()
                    start.record()
                if before:
                    before()
                self.graph.replay()
                if after:
                    after()
            stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / REPEAT * 1e3


def main() -> None:
    gap = Gap()
    cases = {
        "nothing": (None, None),
        "inputs sent": (gap.send, None),
        "inputs sent on a stream of their own": (gap.send_aside, None),
        "tokens fetched": (None, gap.fetch),
        "tokens fetched on a stream of their own": (None, gap.fetch_aside),
        "inputs sent, tokens fetched, as served": (gap.send, gap.fetch),
    }
    print(describe_machine())
    for name, (before, after) in cases.items():
        alone, found = (min(gap.time(*case) for _ in range(ROUNDS)) for case in ((None, None), (before, after)))
        print(f"{name:42} {found:8.1f} us, {found - alone:+6.1f}", flush=True)


if __name__ == "__main__":
    main()
