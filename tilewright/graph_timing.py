"""Times what a CUDA graph replays."""

from __future__ import annotations

from collections.abc import Callable

import torch


def time_graph(run: Callable[[int], object], count: int, *, replays: int = 12, share: float = 1 / 3) -> float:
    """Microseconds of one run, over replays of a graph of `count` runs: the reading that `share` of the replays do not reach."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())  # where the operands are made, and scratch is zeroed
    with torch.cuda.stream(stream):
        for i in range(2):
            run(i)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for i in range(count):
                run(i)
        times = []
        for _ in range(replays):
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record(stream)
            graph.replay()
            stop.record(stream)
            stop.synchronize()
            times.append(start.elapsed_time(stop) / count * 1e3)
    return sorted(times)[int(len(times) * share)]
