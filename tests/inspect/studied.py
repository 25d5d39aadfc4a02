"""Three-layer models, built once a process, with the weights behind them: shared by the tests that run graphs."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import zoo

import tilewright as tw
from tilewright.inspect import load
from tilewright.inspect.check import Bench, default_sample

LAYERS = 3
LIMITS = {"max_batch_size": 6, "max_input_len": 48, "max_output_len": 16, "max_tokens": 24, "page_size": 8}
_FOLDER = TemporaryDirectory(prefix="tilewright-numerics-")
FOLDER = Path(_FOLDER.name)


@cache
def checkpoint_of(name, seed=0):
    return zoo.save(name, FOLDER / f"{name}-{seed}", torch.float32, seed=seed, layers=LAYERS)


@cache
def traced(name, dtype=torch.float32, seed=0):
    return tw.trace(checkpoint_of(name, seed), dtype, 64)


@cache
def run_of(name, target="cpu", dtype=torch.float32, quantize=None, pipeline=None, seed=0):
    out = FOLDER / f"{name}-{target}-{dtype}-{quantize}-{pipeline}-{seed}".replace(" ", "").replace("/", "-")
    tw.compile(checkpoint_of(name, seed), out, target=target, dtype=dtype, quantize=quantize, pipeline=pipeline, **LIMITS)
    return load(out)


def bench_of(run, name, dtype=torch.float32, sample_seed=0, seed=0):
    return Bench.of(run, traced(name, dtype, seed).weights, default_sample(run, sample_seed))
