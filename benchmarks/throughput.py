"""Output tokens per second of many requests served together in flight: `python benchmarks/throughput.py --write`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from random_checkpoint import SHAPES, write_checkpoint
from results_table import report

import tilewright as tw
from tilewright.measure import measure_throughput


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=["llama-3-8b", "llama-3.2-1b"], choices=list(SHAPES))
    parser.add_argument("--quantize", nargs="+", default=["none"])
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--prompt", type=int, nargs=2, default=[100, 1024], help="shortest and longest, in tokens")
    parser.add_argument("--output", type=int, nargs=2, default=[100, 1024], help="shortest and longest, in tokens")
    parser.add_argument("--batch", type=int, default=256, help="max_batch_size")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--scratch", help="folder for checkpoints and engines")
    parser.add_argument("--write", action="store_true", help="append to RESULTS.md")
    args = parser.parse_args()
    rows = [row for shape in args.shapes for row in measure_shape(shape, args)]
    lengths = f"prompts of {args.prompt[0]} to {args.prompt[1]}, outputs of {args.output[0]} to {args.output[1]} tokens"
    notes = f"{args.requests} requests at once, {lengths}."
    report("Throughput", notes, ["shape", "weights", "prompt tokens", "output tokens", "seconds", "output tokens/s"], rows, write=args.write)


def measure_shape(shape: str, args: argparse.Namespace) -> list[list[str]]:
    rows = []
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        model = write_checkpoint(shape, Path(scratch) / "model", layers=args.layers)
        for quantize in args.quantize:
            engine = tw.compile(
                model, Path(scratch) / f"engine-{quantize}", dtype="bfloat16", quantize=None if quantize == "none" else quantize,
                max_batch_size=args.batch, max_input_len=args.prompt[1], max_output_len=args.output[1],
            )  # fmt: skip
            found = measure_throughput(
                tw.LLM(engine.path), num_requests=args.requests, prompt_lens=tuple(args.prompt), output_lens=tuple(args.output)
            )
            weights = "bf16" if quantize == "none" else quantize
            numbers = [str(found.num_prompt_tokens), str(found.num_output_tokens), f"{found.seconds:.2f}", f"{found.output_tokens_per_second:.0f}"]
            rows.append([shape, weights, *numbers])
    return rows


if __name__ == "__main__":
    main()
