"""Decode steps at several batch sizes, held against what the machine can do at most: `python benchmarks/decode.py --scratch DIR --write`.

"kernels" is one replay of the step's launches as a CUDA graph. "step" is a step as served, with sampling and host. "GPU waits" is the share of
the time in which no step is on the GPU. The limit is that of reading weights, keys and values once, or of the matrix products, whichever is longer.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from engines import add_engine_arguments, build_engine, make_checkpoint, release, weights_name
from random_checkpoint import shape_config
from results_table import report, show
from scratch import open_scratch
from step_trace import StepTrace, show_share, trace_steps
from work import Machine, Work

import tilewright as tw
from tilewright.inspect.profile import profile_decode
from tilewright.measure import random_prompt

COLUMNS = ["shape", "weights", "batch", "kernels us", "limit us", "of limit", "step us", "of limit as served", "tokens/s", "host us", "GPU waits"]
SETTLE = 8  # decode steps of the whole batch that are not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_engine_arguments(parser, shapes=["llama-3-8b"], quantize=["none", "int8"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--context", type=int, default=512, help="tokens of each sequence")
    parser.add_argument("--steps", type=int, default=64, help="decode steps of the whole batch that are counted")
    parser.add_argument("--temperature", type=float, default=0.0, help="over 0: sampled steps, with top-k 50 and top-p 0.9")
    args = parser.parse_args()
    machine = None if args.build_only else Machine.measure()
    rows = [show(COLUMNS, row) for shape in args.shapes for row in measure_shape(shape, args, machine)]
    if rows:
        how = "greedy" if args.temperature == 0 else f"temperature {args.temperature}, top-k 50, top-p 0.9"
        report("Decode", f"Sequences of {args.context} tokens, {how}; {machine or 'limits not measured'}.", COLUMNS, rows, write=args.write)


def measure_shape(shape: str, args: argparse.Namespace, machine: Machine | None) -> Iterator[list[str]]:
    with open_scratch(args.scratch, shape) as scratch:
        model = make_checkpoint(shape, scratch, args)
        for quantize in args.quantize:
            engine = build_engine(
                model, quantize, args, max_batch_size=max(args.batches), max_input_len=args.context,
                max_output_len=2 * args.steps + max(args.batches) + 16, max_tokens=max(2048, *args.batches),
            )  # fmt: skip
            if args.build_only:
                continue
            llm = tw.LLM(engine)
            work = Work.of(llm.manifest, shape_config(shape, args.layers))
            for batch in args.batches:
                kernels = profile_decode(llm, batch=batch, context=args.context)
                trace = decode_together(llm, batch, args)
                limit = machine and work.decode_seconds([args.context] * batch, machine) * 1e6
                yield [shape, weights_name(quantize, args), *cells(batch, kernels.step_us, limit, trace)]
            del llm
            release()


def decode_together(llm: tw.LLM, batch: int, args: argparse.Namespace) -> StepTrace:
    """Steps in which the whole batch decodes, the middle one at about `context` tokens."""
    ahead = batch * args.context // llm.manifest.limits.max_tokens + 1  # steps from the first sequence's token to the last one's
    count = SETTLE + args.steps
    prompt = max(1, args.context - args.steps // 2 - ahead)
    chosen = {"temperature": args.temperature, "top_k": 50, "top_p": 0.9} if args.temperature else {"temperature": 0.0}
    params = tw.SamplingParams(max_tokens=count + ahead + 2, ignore_eos=True, **chosen)
    prompts = [random_prompt(llm.manifest.model.vocab_size, prompt, seed=i) for i in range(batch)]
    with trace_steps(llm) as trace:
        llm.generate(prompts, params, use_progress=False)
    return trace.of_batch(batch).skip(SETTLE)


def cells(batch: int, kernels_us: float, limit_us: float | None, trace: StepTrace) -> list[str]:
    step_us = trace.step_us
    limit, of_kernels, of_step = (f"{limit_us:.0f}", f"{limit_us / kernels_us:.0%}", f"{limit_us / step_us:.0%}") if limit_us else ("-", "-", "-")
    rate, host = f"{batch / step_us * 1e6:.0f}", f"{trace.launch_us:.0f}"
    return [str(batch), f"{kernels_us:.0f}", limit, of_kernels, f"{step_us:.0f}", of_step, rate, host, show_share(trace.wait_share)]


if __name__ == "__main__":
    main()
