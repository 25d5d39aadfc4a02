"""Output tokens per second of many requests served together in flight: `python benchmarks/throughput.py --scratch DIR --write`.

The ceiling is what the machine allows at most if nothing overlaps: every prompt's products and attention, then steps that read weights, keys and
values once, all at limits that are measured in the same run. "GPU waits" is the share of the time in which no step is on the GPU.
Peers get the same token ids: `--peers vllm` where vLLM is installed, `--server URL` for any server with OpenAI's completions.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path

import peers
from engines import add_engine_arguments, build_engine, make_checkpoint, release, weights_name
from random_checkpoint import shape_config
from results_table import report, show
from scratch import open_scratch
from step_trace import show_share, trace_steps
from work import Machine, Work

import tilewright as tw
from tilewright.measure import Requests, Throughput, measure_throughput

COLUMNS = ["shape", "what", "output tokens/s", "spread", "seconds", "of ceiling", "decode steps", "ragged steps", "preemptions", "GPU waits"]


def main() -> None:
    args = parse_arguments()
    machine = None if args.build_only else Machine.measure()
    rows = [show(COLUMNS, row) for shape in args.shapes for row in measure_shape(shape, args, machine)]
    if rows:
        lengths = f"prompts of {args.prompt[0]} to {args.prompt[1]}, outputs of {args.output[0]} to {args.output[1]} tokens"
        notes = f"{args.requests} requests at once, {lengths}; median of {args.repeat}; {machine or 'limits not measured'}."
        report("Throughput", notes, COLUMNS, rows, write=args.write)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_engine_arguments(parser, shapes=["llama-3-8b", "qwen3-0.6b"], quantize=["none"])
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--prompt", type=int, nargs=2, default=[100, 1024], help="shortest and longest, in tokens")
    parser.add_argument("--output", type=int, nargs=2, default=[100, 1024], help="shortest and longest, in tokens")
    parser.add_argument("--batch", type=int, default=256, help="max_batch_size")
    parser.add_argument("--step-tokens", type=int, default=8192, help="max_tokens: of one step, all sequences together")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=[], choices=["vllm"])
    parser.add_argument("--server", help="URL of a server that holds the (one) shape's checkpoint")
    parser.add_argument("--server-model", help="its name there; default: the first that the server names")
    return parser.parse_args()


def measure_shape(shape: str, args: argparse.Namespace, machine: Machine | None) -> Iterator[list[str]]:
    config = shape_config(shape, args.layers)
    requests = Requests.draw(config.vocab_size, args.requests, tuple(args.prompt), tuple(args.output))
    with open_scratch(args.scratch, shape) as scratch:
        model = make_checkpoint(shape, scratch, args)
        for quantize in args.quantize:
            engine = build_engine(
                model, quantize, args, max_batch_size=args.batch, max_input_len=args.prompt[1], max_output_len=args.output[1],
                max_tokens=args.step_tokens,
            )  # fmt: skip
            if not args.build_only:
                yield [shape, f"tilewright {weights_name(quantize, args)}", *measure_engine(engine, requests, shape, args, machine)]
                release()
        if not args.build_only:
            yield from measure_peers(shape, model, requests, args)


def measure_engine(engine: Path, requests: Requests, shape: str, args: argparse.Namespace, machine: Machine | None) -> list[str]:
    llm = tw.LLM(engine)
    found, traces, preempted = [], [], []
    for _ in range(args.repeat):
        before = llm.core.scheduler.num_preemptions
        with trace_steps(llm) as trace:
            found.append(measure_throughput(llm, requests, use_progress=False))
        traces.append(trace)
        preempted.append(llm.core.scheduler.num_preemptions - before)
    middle = sorted(range(args.repeat), key=lambda i: found[i].seconds)[args.repeat // 2]
    work = Work.of(llm.manifest, shape_config(shape, args.layers))
    least = machine and work.serving_seconds([len(p) for p in requests.prompts], requests.output_lens, machine)
    share = f"{least / found[middle].seconds:.0%}" if least else "-"
    trace = traces[middle]
    steps = [str(trace.num_decode), str(trace.num_ragged), str(preempted[middle]), show_share(trace.wait_share)]
    return [*rate_cells(found), share, *steps]


def measure_peers(shape: str, model: Path, requests: Requests, args: argparse.Namespace) -> Iterator[list[str]]:
    runs = {}
    if "vllm" in args.peers:
        runs["vLLM bf16"] = lambda: peers.open_vllm(model, requests, batch=args.batch, max_len=args.prompt[1] + args.output[1])
    if args.server:
        runs[f"server {args.server}"] = lambda: peers.open_server(args.server, args.server_model, requests)
    for name, open_peer in runs.items():
        run = open_peer()
        run()  # its first run may still compile or capture
        yield [shape, name, *rate_cells([run() for _ in range(args.repeat)]), "-", "-", "-", "-", "-"]


def rate_cells(found: list[Throughput]) -> list[str]:
    rates = [reading.output_tokens_per_second for reading in found]
    seconds = statistics.median(reading.seconds for reading in found)
    return [f"{statistics.median(rates):.0f}", f"{max(rates) - min(rates):.0f}", f"{seconds:.2f}"]


if __name__ == "__main__":
    main()
