"""Differences between graphs: tensor by tensor, grouped over layers, whatever the order of ops."""

import random

import pytest
from recorded import engine_run, llama_run, stack

from tilewright.inspect.diff import diff
from tilewright.inspect.layers import Layers, join_names
from tilewright.ir.graph import Graph
from tilewright.ir.types import Bounds


def shuffle(graph: Graph, seed: int) -> Graph:
    """The same ops in another order that defines each value before its uses."""
    generator, placed, waiting = random.Random(seed), {}, graph.ops
    while waiting:
        ready = [op for op in waiting if all(v.producer is None or v.producer in placed for v in op.inputs)]
        placed[generator.choice(ready)] = None
        waiting = [op for op in waiting if op not in placed]
    graph._ops = placed
    return graph


@pytest.mark.parametrize("seed", range(20))
def test_order_is_no_difference(seed):
    found = diff(stack(6), shuffle(stack(6), seed))
    assert not found and len(found) == 0 and "no value differs" in str(found)


def test_an_op_inserted_in_one_layer_is_one_row_with_that_layer():
    before, after = stack(32), stack(32, extra_in=17)
    found = diff(before, after)
    assert len(found) == 1 and found.groups[0].layers == (17,)
    assert str(found).splitlines()[1:] == [
        "  + x1 [L=17]  %.attn.extra = relu(%.attn) : f32[T, 24]   read by %.out in place of %.attn",
    ]
    assert {v.name for v in after.values()} - {v.name for v in before.values()} == {"model.layers.17.attn.extra"}
    (gone,) = diff(after, before)
    assert gone.tag == "x1 [L=17]" and "reads %.attn instead" in str(diff(after, before))


def test_raising_norms_of_32_layers_is_two_rows_of_events_and_changes_no_line_downstream():
    shown = llama_run()["raise-rms-norm"].diff()
    rows = shown.events.rows
    assert [row[:2] for row in rows] == [
        ("event x64 [L=0..31]", ".{input,post_attention}_layernorm"),
        ("event x1", "model.norm"),
    ]
    assert all(row[2] == "pow mean add rsqrt mul mul -> rms_norm   keeps it" for row in rows)
    changed = [change.name for group in shown.graphs for change in group.items if change.sign != "-"]
    assert len(changed) == 65 and all(name.endswith("norm") for name in changed)


def test_a_near_miss_stands_with_its_layer_and_reason():
    text = str(llama_run()["raise-bias"].diff())
    assert 'missed x31 [L=1..31]  .add    "%h: f32[T, 72] is no constant of one value for each column"' in text


def test_a_change_of_type_shows_both_types():
    found = diff(stack(3), stack(3, hidden=30))
    assert "@.norm.weight: param : f32[24] -> param : f32[30]" in str(found)


def test_a_range_that_differs_is_a_difference():
    other = stack(2)
    other.dims["T"] = Bounds(1, 99)
    found = diff(stack(2), other)
    assert found and "~ dims: T in 1..64, S in 1..8 -> T in 1..99, S in 1..8" in str(found)


def test_layers_that_change_alike_are_one_row_though_the_first_reads_something_else():
    found = diff(stack(8), stack(8, period=2))
    assert [group.tag for group in found] == ["x4 [L=1..7 step 2]"]
    assert "attention(" in str(found) and "layer={L}" in str(found)


def test_two_engines_differ_in_graphs_and_kernels():
    plain, quantized = engine_run("llama3"), engine_run("llama3", quantize="int8")
    found = plain.diff(quantized)
    assert found and {sign for sign, _, _ in found.kernels} == {"+", "-"}
    assert "x2 [L=0..1]" in str(found) and "kernels" in found.stat and "kernel " in str(found)
    assert not plain.diff(quantized, "raise-rotary")
    assert not plain.diff(plain)


def test_numbers_outside_of_module_lists_are_no_layers():
    layers = Layers.of_paths(["model.layers.3.mlp", "model.norm"])
    assert layers.split("model.layers.12.mlp.mul.1") == ("model.layers.", 12)
    assert layers.split("model.rotary_emb.reshape.1") is None
    assert layers.shorten("%model.layers.3.x, %model.layers.33.x", "model.layers.3.y") == "%.x, %model.layers.33.x"


@pytest.mark.parametrize(
    "names, joined",
    [
        (["a.q_norm", "a.k_norm"], "a.{q,k}_norm"),
        (["input_layernorm", "post_attention_layernorm"], "{input,post_attention}_layernorm"),
        (["a.x", "a.x"], "a.x"),
        (["x", "y"], "x, y"),
    ],
)
def test_siblings_are_joined(names, joined):
    assert join_names(names) == joined
