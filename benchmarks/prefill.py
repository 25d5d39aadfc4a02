"""Prefill of one long prompt, request to first token: `python benchmarks/prefill.py --scratch DIR --write`.

Beside it, in the same run: the same matrix products through torch (cuBLAS, bf16), and the attention's operations at 72 % of the matrix limit.
A prompt that would fill all positions of the model is one token shorter, since the token that it gives needs a position.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Iterator

import torch
from engines import add_engine_arguments, build_engine, make_checkpoint, release, weights_name
from random_checkpoint import shape_config
from results_table import report, show
from scratch import open_scratch
from work import ATTENTION_SHARE, Machine, Work, time_on_gpu

import tilewright as tw
from tilewright.measure import random_prompt

COLUMNS = ["shape", "weights", "tokens", "ms", "spread", "cuBLAS ms", "attention ms", "ratio", "TFLOP/s"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_engine_arguments(parser, shapes=["llama-3-8b"], quantize=["none"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--step-tokens", type=int, default=8192, help="max_tokens of the engine: longer prompts run in chunks of it")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    machine = None if args.build_only else Machine.measure()
    rows = [show(COLUMNS, row) for shape in args.shapes for row in measure_shape(shape, args, machine)]
    if rows:
        notes = f"Median of {args.repeat}; ratio is (cuBLAS + attention) / measured; {machine or 'limits not measured'}."
        report("Prefill", notes, COLUMNS, rows, write=args.write)


def measure_shape(shape: str, args: argparse.Namespace, machine: Machine | None) -> Iterator[list[str]]:
    config = shape_config(shape, args.layers)
    lengths = [min(tokens, config.max_position_embeddings - 1) for tokens in args.tokens]
    with open_scratch(args.scratch, shape) as scratch:
        model = make_checkpoint(shape, scratch, args)
        for quantize in args.quantize:
            engine = build_engine(
                model, quantize, args, max_batch_size=8, max_input_len=max(lengths), max_output_len=1, max_tokens=args.step_tokens
            )
            if args.build_only:
                continue
            llm = tw.LLM(engine)
            work = Work.of(llm.manifest, config)
            for tokens in lengths:
                times = time_prefills(llm, tokens, args.repeat)
                yield [shape, weights_name(quantize, args), str(tokens), *cells(times, tokens, work, machine)]
            del llm
            release()


def time_prefills(llm: tw.LLM, tokens: int, repeat: int) -> list[float]:
    """Milliseconds from the request to its token, after two that are not counted."""
    params = tw.SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
    times = []
    for seed in range(repeat + 2):
        prompt = random_prompt(llm.manifest.model.vocab_size, tokens, seed=seed)
        started = time.perf_counter()
        llm.generate([prompt], params, use_progress=False)
        times.append((time.perf_counter() - started) * 1e3)
    return times[2:]


def cells(times: list[float], tokens: int, work: Work, machine: Machine | None) -> list[str]:
    median, spread = statistics.median(times), max(times) - min(times)
    pairs = tokens * (tokens + 1) // 2
    done = work.linear_operations(tokens, 1) + pairs * work.attention_operations
    rate = f"{done / median / 1e9:.0f}"
    if machine is None:
        return [f"{median:.2f}", f"{spread:.2f}", "-", "-", "-", rate]
    products = time_products(work, tokens)
    attention = pairs * work.attention_operations / (machine.operations_per_second * ATTENTION_SHARE) * 1e3
    return [f"{median:.2f}", f"{spread:.2f}", f"{products:.2f}", f"{attention:.2f}", f"{(products + attention) / median:.2f}", rate]


def time_products(work: Work, tokens: int) -> float:
    """Milliseconds of all the linears' products through torch, one after the other: each shape's best time, as often as it stands in the model."""
    total = 0.0
    for (rows, columns), count in Counter(work.products).items():
        weight = torch.randn(rows, columns, dtype=torch.bfloat16, device="cuda")
        x = torch.randn(tokens, columns, dtype=torch.bfloat16, device="cuda")
        total += count * min(time_on_gpu(lambda x=x, weight=weight: torch.nn.functional.linear(x, weight), 10)) * 1e3
    return total


if __name__ == "__main__":
    main()
