"""Builds the engines that benchmarks measure. One that stands in the scratch folder already, made with the same settings, is used as it is."""

from __future__ import annotations

import argparse
import gc
from pathlib import Path

import torch
from random_checkpoint import SHAPES, write_checkpoint

import tilewright as tw
from tilewright.limits import DEFAULT_PAGE


def add_engine_arguments(parser: argparse.ArgumentParser, *, shapes: list[str], quantize: list[str]) -> None:
    parser.add_argument("--shapes", nargs="+", default=shapes, choices=list(SHAPES))
    parser.add_argument("--quantize", nargs="+", default=quantize, help="none, int8 or another scheme: one engine each")
    parser.add_argument("--target", default=None, help="what to build for; default: this machine's GPU")
    parser.add_argument("--page-size", type=int, default=DEFAULT_PAGE, help="tokens of a KV page")
    parser.add_argument("--deterministic", action="store_true", help="engines whose tokens do not depend on what is served beside them")
    parser.add_argument("--layers", type=int, help="fewer layers than the shape has")
    parser.add_argument("--scratch", help="folder that keeps checkpoints and engines, to be used again")
    parser.add_argument("--build-only", action="store_true", help="only fill the scratch folder: on a machine that is too busy to time anything")
    parser.add_argument("--write", action="store_true", help="append to RESULTS.md")


def make_checkpoint(shape: str, scratch: Path, args: argparse.Namespace) -> Path:
    name = "model" if args.layers is None else f"model-{args.layers}-layers"
    return write_checkpoint(shape, scratch / name, layers=args.layers)


def build_engine(model: Path, quantize: str, args: argparse.Namespace, **limits: int) -> Path:
    """The engine beside the checkpoint, for these limits (those of `tw.compile`)."""
    limits = {**limits, "page_size": args.page_size}
    words = [model.name.replace("model", "engine", 1), quantize, args.target or "here", *(["deterministic"] if args.deterministic else [])]
    name = "-".join([*words, *(f"{key.removeprefix('max_')}-{value}" for key, value in limits.items())])
    out = model.parent / name
    if not (out / "manifest.json").exists():
        scheme = None if quantize == "none" else quantize
        tw.compile(model, out, dtype="bfloat16", quantize=scheme, target=args.target, deterministic=args.deterministic, **limits)
    return out


def weights_name(quantize: str, args: argparse.Namespace) -> str:
    return ("bf16" if quantize == "none" else quantize) + (", deterministic" if args.deterministic else "")


def release() -> None:
    """Gives the device's memory back after the last reference to an engine is gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
