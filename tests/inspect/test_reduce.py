"""What a faulty pass needs to go wrong, and no more."""

import subprocess

import faulty_passes  # noqa: F401
import pytest
import studied
from warm_python import warm_python

from tilewright.inspect.bisect import Bisection
from tilewright.inspect.metrics import Gate
from tilewright.inspect.reduce import Reduction
from tilewright.inspect.shrink import halve, resize, sizes_of
from tilewright.ir.errors import GraphError, TilewrightError
from tilewright.ir.parser import parse_graph


def reduce(run, out, gate="rel<1e-4", **options):
    ladder = Bisection(studied.bench_of(run, "qwen2"), Gate.parse(gate), out, str(studied.checkpoint_of("qwen2")))
    return Reduction(ladder, **options)


def test_a_fault_of_one_op_becomes_a_graph_of_one_op(tmp_path):
    run = studied.run_of("qwen2", pipeline="default,inject{fault=wrong_eps layer=1}")
    found = reduce(run, tmp_path, gate="red<1").find()
    assert len(found.best.graph) == 1 and found.best.graph.ops[0].name == "rms_norm" and found.best.num_tokens == 1
    assert len(found.first.graph) == len(run.final) and found.finding.value == "%model.layers.1.input_layernorm"
    graph = parse_graph((tmp_path / "best.ir").read_text())
    assert len(graph) == 1 and max(sizes_of(graph), default=1) <= 8
    ended = subprocess.run([warm_python(), str(found.file)], capture_output=True, text=True)
    assert ended.returncode == 1, ended.stderr
    assert f"{found}".splitlines()[1].startswith(f"reduced in {found.num_tries} tries: {len(run.final)} ops, 7 tokens, ")


def test_a_fault_in_the_third_rewrite_keeps_three(tmp_path):
    run = studied.run_of("qwen2", pipeline="default,corrupt-nth{n=3}")
    found = reduce(run, tmp_path).find()
    assert [op.name for op in found.best.graph.ops] == ["add"] * 3


def test_the_best_so_far_is_on_disk_when_the_time_is_over(tmp_path):
    run = studied.run_of("qwen2", pipeline="default,corrupt-nth{n=3}")
    found = reduce(run, tmp_path, seconds=0).find()
    assert len(found.best.graph) == len(found.first.graph)
    assert subprocess.run([warm_python(), str(tmp_path / "repro.py")], capture_output=True).returncode == 1


def test_a_gate_that_holds_leaves_nothing_to_reduce(tmp_path):
    assert reduce(studied.run_of("qwen2"), tmp_path).find() is None


def test_what_no_pass_did_is_not_reduced(tmp_path):
    with pytest.raises(TilewrightError, match="reduce: no rewrite is guilty: import"):
        reduce(studied.run_of("qwen2"), tmp_path, gate="rel<1e-12").find()


TEXT = """graph @g(%x: f32[T, 8]) dims(T in 1..8) {
  param @w : f32[12, 8]
  %y = linear(%x, @w) : f32[T, 12]
  %z = slice(%y) {axis=1, start=4, stop=8} : f32[T, 4]
  return %z
}
"""


def test_sizes_are_halved_with_the_attributes_that_count_them():
    small = resize(parse_graph(TEXT), halve)
    assert [str(v.type) for v in (*small.inputs, *small.params.values(), *small.outputs)] == ["f32[T, 4]", "f32[6, 4]", "f32[T, 2]"]


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(GraphError):
        resize(parse_graph(TEXT), lambda size: 2 if size == 12 else size)
