"""Batch-1 decode, ms per token, beside transformers in the same run: `python benchmarks/latency.py --write`.

The slope between two output lengths, so that prefill and start-up drop out; weights are random, of the named shape.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
from random_checkpoint import SHAPES, write_checkpoint
from results_table import report
from scratch import open_scratch
from transformers import AutoModelForCausalLM

import tilewright as tw
from tilewright.measure import bytes_per_token, measure_latency, measure_read_limit, random_prompt

COLUMNS = ["shape", "what", "ms/token", "spread", "GB/token", "of the read limit"]


def main() -> None:
    args = parse_arguments()
    if args.build_only:
        for shape in args.shapes:
            with open_scratch(args.scratch, shape) as scratch:
                for quantize in args.quantize:
                    build(write_checkpoint(shape, scratch / "model", layers=args.layers), quantize)
        return
    has_gpu = torch.cuda.is_available()
    limit = measure_read_limit() if has_gpu else None
    rows: list[list[str]] = []
    for shape in args.shapes:
        with open_scratch(args.scratch, shape) as scratch:
            model = write_checkpoint(shape, scratch / "model", layers=args.layers)
            for row in chain(ours(shape, model, args, limit), peers(shape, model, args, limit)):
                print(" | ".join(row), flush=True)  # a run that is cut short has shown what it measured
                rows.append(row)
    notes = f"Prompts of {args.prompt} tokens, slope between {args.outputs[0]} and {args.outputs[1]} output tokens, median of {args.repeat}."
    notes += f" Read limit {limit / 1e12:.2f} TB/s." if limit else ""
    report("Decode at batch 1", notes, COLUMNS, rows, write=args.write)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=["llama-3-8b", "llama-3.2-1b"], choices=list(SHAPES))
    parser.add_argument("--quantize", nargs="+", default=["none", "int8"])
    parser.add_argument("--peers", nargs="*", default=["eager", "compile"], choices=["eager", "compile"])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--outputs", type=int, nargs=2, default=[16, 272])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--scratch", help="folder that keeps checkpoints and engines, to be used again")
    parser.add_argument("--build-only", action="store_true", help="only fill the scratch folder: on a machine that is too busy to time anything")
    parser.add_argument("--write", action="store_true", help="append to RESULTS.md")
    return parser.parse_args()


def build(model: Path, quantize: str) -> Path:
    """The engine beside the checkpoint; one that is there is used as it is."""
    out = model.parent / f"engine-{quantize}"
    if not (out / "manifest.json").exists():
        chosen = None if quantize == "none" else quantize
        tw.compile(model, out, dtype="bfloat16", quantize=chosen, max_batch_size=16, max_input_len=512, max_output_len=512)
    return out


def ours(shape: str, model: Path, args: argparse.Namespace, limit: float | None) -> Iterator[list[str]]:
    for quantize in args.quantize:
        llm = tw.LLM(build(model, quantize))
        reading = measure_latency(llm, prompt_len=args.prompt, outputs=tuple(args.outputs), repeat=args.repeat)
        what = "tilewright bf16" if quantize == "none" else f"tilewright bf16, {quantize} weights"
        yield make_row(shape, what, reading.ms_per_token, reading.spread_ms, bytes_per_token(llm.manifest), limit)
        del llm
        release()


def peers(shape: str, model: Path, args: argparse.Namespace, limit: float | None) -> Iterator[list[str]]:
    if not args.peers:
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    peer = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).to(device).eval()
    read = sum(p.numel() * p.element_size() for p in peer.parameters())
    if not peer.config.tie_word_embeddings:
        read -= peer.get_input_embeddings().weight.numel() * 2
    for kind in args.peers:
        ms, spread = time_transformers(peer, args, static=kind == "compile")
        what = "transformers eager" if kind == "eager" else "transformers static cache + torch.compile"
        yield make_row(shape, what, ms, spread, read, limit)
    del peer
    release()


def time_transformers(model: torch.nn.Module, args: argparse.Namespace, *, static: bool) -> tuple[float, float]:
    """`static`: transformers compiles the decode step by itself for a static cache."""
    ids = torch.tensor([random_prompt(model.config.vocab_size, args.prompt, seed=0)], device=model.device)
    options = {"cache_implementation": "static"} if static else {}

    def seconds(num_tokens: int) -> float:
        synchronize()
        started = time.perf_counter()
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=num_tokens, max_new_tokens=num_tokens,
            pad_token_id=0, **options,
        )  # fmt: skip
        synchronize()
        assert out.shape[1] == args.prompt + num_tokens
        return time.perf_counter() - started

    short, long = args.outputs
    for num_tokens in (short, long, short, long):
        seconds(num_tokens)
    slopes = [(seconds(long) - seconds(short)) / (long - short) * 1e3 for _ in range(args.repeat)]
    return statistics.median(slopes), max(slopes) - min(slopes)


def make_row(shape: str, what: str, ms: float, spread: float, num_bytes: int, limit: float | None) -> list[str]:
    share = f"{num_bytes / (ms / 1e3) / limit:.0%}" if limit else "-"
    return [shape, what, f"{ms:.3f}", f"{spread:.3f}", f"{num_bytes / 1e9:.2f}", share]


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
