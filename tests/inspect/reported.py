"""Reports of tiny models, written once a process."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import torch
import zoo
from recorded import folder, llama_run, mixture_run
from serving import engine_of

import tilewright as tw
from tilewright.inspect import Run, load
from tilewright.inspect.perf import save_profile
from tilewright.inspect.profile import LaunchTime, Profile
from tilewright.inspect.report import write_report

LAYERS = 32
RED = "%model.layers.17.mlp.down_proj"
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
def measured_run() -> Run:
    """The deep one with errors, one of them red, and times of a made-up machine beside it."""
    out = folder() / "measured"
    shutil.copytree(deep_run().path, out)
    run = load(out)
    rows = [
        {"name": v.display, "op": op.name, "level": "ok", "isolated": 1e-7, "floor": 1e-7, "ratio": 1.0, "accumulated": 3e-7, "lossy": None}
        for op in run.final.ops for v in op.results if not v.is_const
    ]  # fmt: skip
    for row in rows:
        if row["op"] == "linear":
            row |= {"level": "grey", "lossy": 6e-3}
        if row["name"] == RED:
            row |= {"level": "red", "isolated": 1e-2, "ratio": 1e5}
    (out / "inspect" / "numerics").mkdir()
    (out / "inspect" / "numerics" / "values.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    program = run.engine.manifest.programs[0]
    times = [LaunchTime(launch, 2.0 + at % 3, 1_000_000, 2_000_000) for at, launch in enumerate(program.launches)]
    step = sum(t.us for t in times)
    save_profile(out, Profile(program.name, 2, 24, tuple(times), step, step + 40, 1e12, 1e13), torch.device("cpu"))
    return run


@cache
def report_file(name: str) -> Path:
    """deep, vs (deep against itself without quantization), sm_90, dumps (80 layers that no engine was made of), measured,
    experts (64 in each of 31 layers)."""
    run, vs = {
        "deep": lambda: (deep_run(), None),
        "vs": lambda: (deep_run(), deep_run(None)),
        "sm_90": lambda: (gpu_run(), None),
        "dumps": lambda: (llama_run(80), None),
        "experts": lambda: (mixture_run(LAYERS, 64), None),
        "measured": lambda: (measured_run(), None),
    }[name]()
    return write_report(run, folder() / f"{name}.html", vs, lints=False)
