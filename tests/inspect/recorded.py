"""Builds to read back, made once a process: engines of tiny models, and the dumps of a Llama of many layers that needs no model."""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

import zoo

import tilewright as tw
from tilewright.inspect import Run, load
from tilewright.ir.graph import Graph
from tilewright.ir.parser import parse_graph
from tilewright.passes.manager import PassManager
from tilewright.passes.pipelines import default_pipeline
from tilewright.passes.registry import parse_pipeline, register_pass
from tilewright.passes.rewriter import Rewriter

sys.path.append(str(Path(__file__).parents[1] / "ir"))
from models import mixture, stack

__all__ = ["engine", "engine_run", "llama", "llama_run", "mixture", "mixture_run", "stack"]

LLAMA = Path(__file__).parents[1] / "passes" / "graphs" / "llama.ir"


@cache
def folder() -> Path:
    path = Path(tempfile.mkdtemp(prefix="tilewright-recorded-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@cache
def engine(name: str, layers: int = 2, quantize: str | None = None) -> Path:
    out = folder() / f"{name}-{layers}-{quantize}"
    tw.compile(zoo.build(name, layers=layers), out, target="cpu", quantize=quantize, max_input_len=16, max_output_len=8)
    return out


@cache
def engine_run(name: str, layers: int = 2, quantize: str | None = None) -> Run:
    return load(engine(name, layers, quantize))


def llama(layers: int) -> Graph:
    """The small Llama as imported, with more layers."""
    text = LLAMA.read_text().replace("repeat L in 0..1 ", f"repeat L in 0..{layers - 1} ").replace("layers.1.", f"layers.{layers - 1}.")
    return parse_graph(text.replace("2 equal layers", f"{layers} equal layers"))


@cache
def llama_run(layers: int = 32, pipeline: str = "") -> Run:
    """Its default passes."""
    out = folder() / f"llama-{layers}-{len(pipeline)}"
    PassManager.of(pipeline or default_pipeline(length=64, quantize="int8"), dump=out).run(llama(layers))
    return load(out)


@cache
def mixture_run(layers: int, experts: int) -> Run:
    """A layer of one MLP, then layers of experts, through the default passes but the one that needs positions."""
    out = folder() / f"mixture-{layers}-{experts}"
    steps = parse_pipeline(default_pipeline(length=64, quantize="int8"))
    PassManager([step for step in steps if step.info.name != "tabulate-positions"], dump=out).run(mixture(layers, dense=1, experts=experts))
    return load(out)


@register_pass("test-drop-norms")
def drop_norms(graph: Graph, rw: Rewriter) -> None:
    """Takes the last norm for nothing: no value of it stays."""
    last = graph.value("model.norm")
    source = graph.value("model.norm.pow").producer
    assert source is not None and source.operands[0] is not None and last.producer is not None
    rw.forward(last, source.operands[0])
