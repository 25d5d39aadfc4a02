"""The manager: what a run records, dumps, limits and refuses, on two Llama layers."""

import re
from dataclasses import dataclass

import pytest
from llama_graph import llama

from tilewright.ir.errors import GraphError, PassError
from tilewright.ir.fold import fold_text
from tilewright.ir.graph import Graph, is_same_structure
from tilewright.ir.parser import parse_graph
from tilewright.ir.records import read_records
from tilewright.ir.types import TensorType
from tilewright.ir.verifier import verify
from tilewright.pass_cases import check_round_trip, validate_on_fresh_data
from tilewright.passes.manager import PassManager
from tilewright.passes.pipelines import default_pipeline
from tilewright.passes.registry import parse_pipeline, print_pipeline, register_pass, rewrite
from tilewright.passes.rewriter import Rewriter

DEFAULT = default_pipeline(length=64, quantize="quantize{skip=embed_tokens}")


def run(graph: Graph, pipeline: str = DEFAULT, **options) -> PassManager:
    manager = PassManager.of(pipeline, **options)
    manager.report = manager.run(graph)  # type: ignore[attr-defined]
    return manager


# -- passes that fail -----------------------------------------------------------------------------------------------------------
@register_pass("test-fail")
@dataclass(frozen=True)
class Fail:
    """Replaces the first op of a name, then fails."""

    op: str = "silu"

    def run(self, graph: Graph, rw: Rewriter) -> None:
        first = graph.find(self.op)[0]
        rw.replace(first.result, "relu", first.operands)
        raise KeyError("lost")


@register_pass("test-break-order")
def break_order(graph: Graph, rw: Rewriter) -> None:
    """Reads a value through the operand list, behind the graph's back."""
    graph.find("silu")[0].operands[0] = graph.find("linear")[0].result


@register_pass("test-break-type")
def break_type(graph: Graph, rw: Rewriter) -> None:
    graph.find("silu")[0].result.type = TensorType("f16", ("T", 100))


@register_pass("test-core-only", levels=("core",))
def do_nothing(graph: Graph, rw: Rewriter) -> None:
    """Says that only core ops may stand after it."""


@rewrite("test-silu", "silu(x)", per_layer="attention")
def name_silu(m, rw):
    """Fires for the first layer only."""
    if "layers.0" not in m.root.name:
        return "only the first layer is wanted"
    rw.replace(m.root, "mul", [m.x, rw.graph.emit("sigmoid", [m.x]).result])
    return None


# -- records --------------------------------------------------------------------------------------------------------------------
def test_rows_count_events_and_chain_the_numbers_of_ops():
    rows = run(llama()).report.rows
    assert [row.number for row in rows] == list(range(1, len(rows) + 1))
    assert [row.ops_before for row in rows][1:] == [row.ops_after for row in rows][:-1]
    fired = {row.name: len(row.events) for row in rows}
    assert (fired["raise-rms-norm"], fired["raise-rotary"], fired["raise-gated"]) == (5, 4, 2)
    assert (fired["tabulate-positions{length=64}"], fired["fuse-qkv"], fired["fuse-gate-up"], fired["gather-rows-early"]) == (2, 2, 2, 1)
    assert (fired["quantize{skip=embed_tokens}"], fired["split-attention"]) == (8, 2)
    assert not any(row.warnings for row in rows)


def test_a_run_is_the_same_twice():
    graphs = [llama(), llama()]
    logs = [run(graph).log for graph in graphs]
    assert logs[0].events == logs[1].events and logs[0].misses == logs[1].misses
    assert fold_text(graphs[0]) == fold_text(graphs[1])


def test_a_pass_that_fires_in_some_layers_only_is_warned_about_with_layer_and_reason():
    (row,) = run(llama(), "test-silu").report.rows
    reason = "model.layers.1.mlp.act_fn: only the first layer is wanted"
    assert row.warnings == (f"test-silu fired 1 times for 2 layers ({reason})",)
    assert f"warning: {row.warnings[0]}" in str(row)


def test_on_pass_is_called_after_each_pass():
    names = []
    run(llama(), "simplify,raise-bias", on_pass=lambda row: names.append(row.name))
    assert names == ["simplify", "raise-bias"]


# -- limits ---------------------------------------------------------------------------------------------------------------------
def test_the_limit_stops_at_exactly_that_many_rewrites():
    every = run(llama()).log.events
    for limit in [*range(0, len(every), 4), len(every) - 1, len(every), len(every) + 1]:
        graph = llama()
        log = run(graph, limit=limit).log
        assert log.events == every[:limit]
        verify(graph)


@pytest.mark.parametrize("limit", [17, 60])
def test_a_graph_that_the_limit_left_is_right_in_numbers(limit):
    graph = llama()
    manager = run(graph, limit=limit, validator=validate_on_fresh_data(graph, [3, 2]))
    assert len(manager.log.events) == limit
    check_round_trip(graph)


def test_the_limit_holds_within_one_op_that_is_rewritten_twice():
    text = """graph @g(%x: f32[T, 4], %rows: i32[S]) dims(T in 1..8, S in 1..8) {
      param @w : f32[4]
      %n = rms_norm(%x, @w) {eps=1e-05} : f32[T, 4]
      %h = cast(%n) {dtype=f64} : f64[T, 4]
      %y = gather_rows(%h, %rows) : f64[S, 4]
      return %y
    }"""
    graph = parse_graph(text)
    assert len(run(graph, "gather-rows-early", limit=1).log.events) == 1
    assert [op.name for op in graph.ops] == ["rms_norm", "gather_rows", "cast"]


def test_stop_after_runs_no_pass_behind_it():
    report = run(llama(), stop_after="raise-gated").report
    assert report.rows[-1].name == "raise-gated" and len(report.rows) < len(parse_pipeline(DEFAULT))


def test_stop_after_names_a_pass_of_the_pipeline():
    with pytest.raises(PassError, match="stop_after='raise-gate' names none of its passes; simplify,raise-bias"):
        run(llama(), "simplify,raise-bias", stop_after="raise-gate")


# -- dumps ----------------------------------------------------------------------------------------------------------------------
def test_dumps_are_numbered_parse_back_and_hold_the_events(tmp_path):
    after = {}
    graph = llama()
    imported = graph.copy()
    report = run(graph, dump=tmp_path / "passes", on_pass=lambda row: after.update({row.number: graph.copy()})).report
    found = {file.name: file.read_text() for file in (tmp_path / "passes").iterdir()}
    assert is_same_structure(parse_graph(found.pop("00-import.ir")), imported)
    before = imported
    for row in report.rows:
        stem = f"{row.number:02d}-{row.name.partition('{')[0]}"
        now = after[row.number]
        if is_same_structure(before, now):
            assert found.pop(f"{stem}.same") == ""
        else:
            assert is_same_structure(parse_graph(found.pop(f"{stem}.ir")), now)
        assert read_records(found.pop(f"{stem}.events.jsonl", "")) == (list(row.events), list(row.misses))
        before = now
    assert not found


def test_a_pass_that_fails_leaves_a_graph_that_fails_again(tmp_path):
    pipeline = "simplify,test-fail{op=silu},raise-gated"
    with pytest.raises(PassError, match=r"pass test-fail\{op=silu\}: failed: KeyError\('lost'\); raised in .*test_manager.py:\d+") as caught:
        run(llama(), pipeline, dump=tmp_path)
    assert caught.value.__notes__ == ["in pass 2, test-fail{op=silu}"]
    crash = (tmp_path / "02-test-fail.FAILED.ir").read_text()
    assert is_same_structure(parse_graph(crash), parse_graph((tmp_path / "01-simplify.ir").read_text()))
    named = re.match(r"// run again: tilewright opt 02-test-fail.FAILED.ir -p '(.*)'\n", crash)
    assert named is not None and named[1] == "test-fail{op=silu}"
    with pytest.raises(PassError, match=r"KeyError\('lost'\)"):
        run(parse_graph(crash), named[1])
    trace = (tmp_path / "02-test-fail.traceback.txt").read_text()
    assert "raise KeyError" in trace and not (tmp_path / "03-raise-gated.ir").exists()


def test_an_error_of_a_pass_names_the_pass_and_its_place():
    with pytest.raises(PassError) as caught:
        run(llama(), "simplify,quantize{skip=head}")
    assert str(caught.value) == "quantize: skip='head' names no linear weight; give a part of a module path, as in skip=lm_head"
    assert caught.value.__notes__ == ["in pass 2, quantize{skip=head}"]


@pytest.mark.parametrize(
    "pipeline, said",
    [
        ("test-break-order", "does not list silu among its users"),
        ("test-break-type", "%model.layers.0.mlp.act_fn is declared f16[T, 100], silu gives f32[T, 100]"),
        ("raise-rms-norm,test-core-only", "rms_norm is a semantic op; this stage has core"),
    ],
)
def test_a_pass_that_leaves_a_broken_graph_is_named_with_the_op(tmp_path, pipeline, said):
    name = pipeline.rpartition(",")[2]
    with pytest.raises(GraphError) as caught:
        run(llama(), pipeline, dump=tmp_path)
    assert said in str(caught.value) and name in caught.value.__notes__[0]
    assert "--> %model.layers.0." in str(caught.value)
    assert list(tmp_path.glob(f"*-{name}.FAILED.ir"))


def test_a_graph_that_is_broken_before_the_first_pass_is_refused():
    graph = llama()
    break_type(graph, None)  # type: ignore[arg-type]
    with pytest.raises(GraphError, match=r"is declared f16\[T, 100\]"):
        run(graph)


# -- pipelines ------------------------------------------------------------------------------------------------------------------
def test_a_pipeline_is_text_with_comments_that_prints_on_one_line():
    steps = parse_pipeline("# first\nsimplify,  # second\n  quantize{dtype=i8 head=false},\n")
    assert print_pipeline(steps) == "simplify,quantize{dtype=i8 head=false}"
    assert parse_pipeline(print_pipeline(parse_pipeline(DEFAULT))) == parse_pipeline(DEFAULT)


@pytest.mark.parametrize(
    "text, said",
    [
        ("fuse-qvk", "no pass named 'fuse-qvk'; did you mean 'fuse-qkv'?"),
        ("simplify fuse-qkv", "cannot read 'simplify fuse-qkv'; write pass-name{option=value}"),
        ("quantize{dtype=i8", "cannot read 'quantize{dtype=i8'"),
        ("{dtype=i8}", "cannot read"),
    ],
)
def test_a_pipeline_that_cannot_be_read_is_refused(text, said):
    with pytest.raises(PassError) as caught:
        parse_pipeline(text)
    assert str(caught.value).startswith("pipeline") and said in str(caught.value)


def test_a_name_is_registered_once():
    with pytest.raises(PassError, match=r"pass 'simplify': is registered by tilewright.passes.clean_up.simplify and again by .*mine; choose"):

        @register_pass("simplify")
        def mine(graph, rw): ...
