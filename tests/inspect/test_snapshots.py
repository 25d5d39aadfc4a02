"""Snapshots: they read back byte for byte, fold to little more than one layer, are written fast and small, and before anything can go wrong."""

import gc
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import zoo
from recorded import llama, llama_run, mixture, stack

import tilewright as tw
from tilewright.inspect import load
from tilewright.ir.errors import EngineError
from tilewright.ir.fold import fold_text
from tilewright.ir.graph import Graph, is_same_structure
from tilewright.ir.parser import parse_graph
from tilewright.ir.printer import print_graph
from tilewright.passes.manager import PassManager
from tilewright.passes.pipelines import default_pipeline


@pytest.mark.parametrize("family", ["llama3", "gemma2", "qwen3", "phi3", "gpt2", "falcon_40b"])
def test_every_snapshot_of_a_family_reads_back_byte_for_byte(family, tmp_path):
    tw.optimize(tw.trace(zoo.build(family, layers=4)), length=24, dump=tmp_path)
    texts = {file.name: file.read_text() for file in tmp_path.glob("*.ir")}
    assert len(texts) >= 5
    for text in texts.values():
        graph = parse_graph(text)
        flat = print_graph(graph)
        again = parse_graph(flat)
        assert is_same_structure(graph, again)
        assert fold_text(graph) == text and fold_text(again) == text and print_graph(again) == flat


# -- folding --------------------------------------------------------------------------------------------------------------------
def num_rows(text: str) -> int:
    return sum(" = " in line and "repeat" not in line for line in text.splitlines())


def check_fold(graph: Graph, unique: int) -> None:
    text = fold_text(graph)
    assert is_same_structure(parse_graph(text), graph)
    assert num_rows(text) <= 1.3 * unique, text


@pytest.mark.parametrize("layers", [32, 80])
def test_a_llama_folds_at_every_stage(layers):
    """Unique ops: those of one layer and those outside of layers, as a Llama of two layers has them."""
    small, large = llama_run(2), llama_run(layers)
    for few, many in zip(small.passes, large.passes):
        if few.status == "same" or (layers > 32 and few.name not in ("simplify", "split-attention")):
            continue
        layer = [op for op in few.after.ops if small.layers.layer(op.results[0].name) == 0]
        outside = [op for op in few.after.ops if small.layers.layer(op.results[0].name) is None]
        check_fold(many.after, len(layer) + len(outside))


@pytest.mark.parametrize("period", [2, 6])
@pytest.mark.parametrize("layers", [32, 80])
def test_layers_that_alternate_fold(layers, period):
    turn, rest = 7 * period, 7 * (layers % period)  # ops: those layers that fill no turn stand for themselves
    check_fold(stack(layers, period=period), turn + rest + 3)


@pytest.mark.parametrize("layers, dense", [(32, 1), (32, 3), (80, 3)])
def test_a_mixture_of_experts_behind_dense_layers_folds(layers, dense):
    graph = mixture(layers, dense=dense, experts=8)
    check_fold(graph, unique=4 + (3 + 8 * 2) + 2)


# -- cost -----------------------------------------------------------------------------------------------------------------------
def test_a_snapshot_of_3600_ops_takes_50_ms_and_60_kB_at_most(tmp_path):
    """CPU time of what the manager does for a pass beside running it; the least of three, since others share the machine."""
    graph = llama(71)
    for op in graph.ops:  # as traced, which the text it comes from is not
        op.loc = replace(op.loc, sources=(f"transformers/models/llama/modeling_llama.py:{len(op.name)}",))
    assert 3500 < len(graph) < 3800
    assert least_seconds(lambda: fold_text(graph)) <= 0.050
    manager = PassManager.of(default_pipeline(length=64, quantize="int8"), dump=tmp_path)
    dump, costs = manager._dump_row, []

    def dump_thrice(*args):
        costs.append(least_seconds(lambda: dump(*args)))
        return dump(*args)

    manager._dump_row = dump_thrice  # type: ignore[method-assign]
    manager.run(graph)
    sizes = [sum(file.stat().st_size for file in tmp_path.glob(f"{number:02d}-*")) for number in range(len(manager.steps) + 1)]
    places = (tmp_path / "provenance.jsonl").stat().st_size
    print(f"{max(costs) * 1e3:.0f} ms, {max(sizes) / 1e3:.0f} kB, {places / 1e3:.0f} kB of source lines")
    assert places <= 60_000
    assert max(costs) <= 0.050 and max(sizes) <= 60_000


def least_seconds(function) -> float:
    def once() -> float:
        started = time.process_time()
        function()
        return time.process_time() - started

    gc.collect()
    gc.freeze()  # what other tests of this process keep is not searched for garbage meanwhile
    try:
        return min(once() for _ in range(3))
    finally:
        gc.unfreeze()


# -- builds that die ------------------------------------------------------------------------------------------------------------
KILLER = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import zoo
import tilewright as tw

@tw.register_pass("die")
def die(graph, rw):
    os.kill(os.getpid(), signal.SIGKILL)

tw.compile(zoo.build("llama3", layers=2), {out!r}, target="cpu", pipeline="simplify,raise-rms-norm,die,default", max_input_len=16, max_output_len=8)
"""


def test_a_build_that_is_killed_in_a_pass_leaves_the_graph_before_it(tmp_path):
    out = tmp_path / "engine"
    code = KILLER.format(tests=str(Path(__file__).parents[1]), out=str(out))
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("engine.building.")
    run = load(left)
    assert [p.name for p in run.passes] == ["simplify", "raise-rms-norm"] and run.final.find("rms_norm")
    assert not list(left.glob("*.part")) and "in memory" in (left / "REPRO.sh").read_text()
    assert "raise-rms-norm" in str(run) and run["raise-rms-norm"].diff()


def test_what_a_failed_build_left_fails_again_in_the_same_way(tmp_path):
    model, pipeline = zoo.save("llama3", tmp_path / "model"), "simplify,raise-rms-norm,quantize{skip=head}"
    with pytest.raises(tw.TilewrightError) as caught:
        tw.compile(model, tmp_path / "engine", target="cpu", pipeline=pipeline, max_input_len=16, max_output_len=8)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    words = ["sh", tmp_path / "engine.failed" / "REPRO.sh", tmp_path / "again"]
    again = subprocess.run(words, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)
    assert again.returncode == 2 and str(caught.value) in again.stderr
    left = [sorted(f.name for f in (tmp_path / f"{name}.failed").iterdir()) for name in ("engine", "again")]
    assert left[0] == left[1] and "03-quantize.FAILED.ir" in left[0]
    graph = (tmp_path / "engine.failed" / "03-quantize.FAILED.ir").read_text()
    assert is_same_structure(parse_graph(graph), load(tmp_path / "engine.failed").final)


def test_a_pass_that_fails_leaves_the_graph_before_it_the_traceback_and_how_to_see_it_again(tmp_path):
    @tw.register_pass("test-raise")
    def fail(graph, rw):
        raise ValueError("lost")

    model = zoo.save("llama3", tmp_path / "model")
    with pytest.raises(tw.TilewrightError) as caught:
        tw.compile(model, tmp_path / "engine", target="cpu", pipeline="simplify,test-raise", max_input_len=16, max_output_len=8)
    assert str(tmp_path / "engine.failed") in "".join(caught.value.__notes__)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["engine.failed", "model"]
    run = load(tmp_path / "engine.failed")
    assert [(p.name, p.status) for p in run.passes] == [("simplify", "changed"), ("test-raise", "failed")]
    assert "--pipeline simplify,test-raise" in (run.path / "REPRO.sh").read_text()
    assert 'ValueError("lost")' in (run.path / "02-test-raise.traceback.txt").read_text()
    with pytest.raises(EngineError, match="pass 02-test-raise failed; ask for the graph before it"):
        run["test-raise"].diff()
    assert "FAILED" in str(run)
