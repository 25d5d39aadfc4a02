"""Reports of tiny models, written once a process."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import zoo
from recorded import folder, llama_run
from serving import engine_of

import tilewright as tw
from tilewright.inspect import Run, load
from tilewright.inspect.report import write_report

LAYERS = 32
LIMITS = {"max_batch_size": 4, "max_input_len": 16, "max_output_len": 8}


@cache
def deep_run(quantize: str | None = "int8") -> Run:
    """32 layers for the CPU, from a checkpoint whose path is nobody's business."""
    model = folder() / "home" / "somebody" / "deep"
    if not model.exists():
        zoo.save("llama3", model, layers=LAYERS)
    out = folder() / f"deep-{quantize}"
    tw.compile(model, out, target="cpu", quantize=quantize, **LIMITS)
    return load(out)


@cache
def gpu_run() -> Run:
    return load(engine_of("llama3", "sm_90", torch.bfloat16, "int8").path)


@cache
def report_file(name: str) -> Path:
    """deep, vs (deep against itself without quantization), sm_90, dumps (80 layers that no engine was made of)."""
    run, vs = {
        "deep": lambda: (deep_run(), None),
        "vs": lambda: (deep_run(), deep_run(None)),
        "sm_90": lambda: (gpu_run(), None),
        "dumps": lambda: (llama_run(80), None),
    }[name]()
    return write_report(run, folder() / f"{name}.html", vs, lints=False)
