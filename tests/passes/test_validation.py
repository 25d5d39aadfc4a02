"""Numeric validation catches passes made wrong on purpose, names them, and lets right ones pass."""

import pytest
import torch
from llama_graph import llama

from tilewright.ir.errors import PassError
from tilewright.ir.parser import parse_graph
from tilewright.pass_cases import validate_on_fresh_data
from tilewright.passes.manager import PassManager
from tilewright.passes.pipelines import default_pipeline
from tilewright.passes.registry import register_pass, rewrite

RAISED = default_pipeline(length=64).partition("fuse-gate-up")[0]


@rewrite("wrong-drop-scale", "rms_norm(x, weight)")
def drop_scale(m, rw):
    """Leaves out the norm's weight."""
    rw.replace(m.root, "rms_norm", [m.x], {"eps": m.ops[0].attrs["eps"]})


@rewrite("wrong-swap-gate-and-up", "gated(gate, up)")
def swap_gate_and_up(m, rw):
    """silu(up) * gate"""
    rw.replace(m.root, "gated", [m.up, m.gate], m.ops[0].attrs)


@rewrite("wrong-after-the-first-token", "gather_rows(table, positions)")
def turn_as_the_first_token(m, rw):
    """Every token is turned as the one at position 0: right for that one alone."""
    if not m.table.is_const:
        return "no table"
    with rw.change(m.root, m.ops) as change:
        first = change.emit("slice", [m.table], {"axis": 0, "start": 0, "stop": 1})
        change.take_over(change.emit("expand", [first], {"shape": m.root.type.shape}), m.root)


@rewrite("wrong-reach", "attention(q, k, v)")
def attend_to_one_token(m, rw):
    """A window of one token: right for the first token of a request, and for its request alone."""
    rw.replace(m.root, "attention", [m.q, m.k, m.v], {**m.ops[0].attrs, "window": 1})


@rewrite("wrong-by-nan", "silu(x)")
def divide_by_zero(m, rw):
    """0 / 0"""
    with rw.change(m.root, m.ops) as change:
        zero = change.emit("sub", [m.x, m.x])
        change.take_over(change.emit("div", [zero, zero]), m.root)


@register_pass("wrong-return-less")
def return_less(graph, rw):
    """Forgets what the graph returns."""
    graph.outputs.pop()


@rewrite("right-silu", "silu(x)")
def write_silu_out(m, rw):
    """x / (1 + e ** -x)"""
    with rw.change(m.root, m.ops) as change:
        below = change.emit("add", [change.emit("exp", [change.emit("neg", [m.x])])], {"scalar": 1.0})
        change.take_over(change.emit("div", [m.x, below]), m.root)


@rewrite("rough-silu", "silu(x)", tolerance=0.5)
def approximate_silu(m, rw):
    """x * sigmoid(1.1 x): an approximation that declares what it may cost"""
    with rw.change(m.root, m.ops) as change:
        gate = change.emit("sigmoid", [change.emit("mul", [m.x], {"scalar": 1.1})])
        change.take_over(change.emit("mul", [m.x, gate]), m.root)


@rewrite("exact-silu", "silu(x)", tolerance=0.0)
def claim_to_be_exact(m, rw):
    """Says that no bit changes, and is wrong in the last ones."""
    with rw.change(m.root, []) as change:
        near = change.emit("mul", [change.emit("silu", [m.x])], {"scalar": 1.000001})
        change.take_over(near, m.root)


def check(pipeline, lengths=(4, 3), graph=None):
    """The rows of a validated run."""
    graph = graph or llama()
    return PassManager.of(pipeline, validator=validate_on_fresh_data(graph, list(lengths))).run(graph).rows


WRONG = ["drop-scale", "swap-gate-and-up", "after-the-first-token", "reach"]


@pytest.mark.parametrize("name", [f"wrong-{word}" for word in WRONG])
def test_a_wrong_rewrite_is_caught_and_named(name):
    with pytest.raises(PassError) as caught:
        check(f"{RAISED}{name}")
    assert str(caught.value).startswith(f"pass {name}: changed the outputs by ")
    assert "1.0e-05 is allowed" in str(caught.value) and name in caught.value.__notes__[0]


def test_what_is_wrong_between_tokens_only_needs_more_than_one():
    assert check(f"{RAISED}wrong-reach", lengths=(1, 1))[-1].events


def test_without_a_validator_nothing_is_noticed():
    rows = PassManager.of(f"{RAISED}wrong-drop-scale").run(llama()).rows
    assert rows[-1].error is None and len(rows[-1].events) == 5


def test_a_right_rewrite_passes_with_its_error():
    row = check("right-silu")[-1]
    assert len(row.events) == 2 and row.error is not None and row.error < 1e-5


def test_a_pass_may_declare_a_larger_error_but_no_more():
    row = check("rough-silu")[-1]
    assert row.error is not None and 1e-4 < row.error < 0.5
    with pytest.raises(PassError, match=r"pass exact-silu: changed the outputs by .*, 0.0e\+00 is allowed"):
        check("exact-silu")


def test_each_pass_is_compared_with_what_stood_before_it():
    rows = check("rough-silu,simplify")
    assert rows[-1].error == 0.0


TWO = """graph @g(%x: f32[T, 4]) dims(T in 1..8) {
  %a = relu(%x) : f32[T, 4]
  %b = silu(%x) : f32[T, 4]
  return %a, %b
}
"""


def test_nan_is_caught_in_any_output():
    with pytest.raises(PassError, match="pass wrong-by-nan: changed the outputs by nan"):
        check("wrong-by-nan", graph=parse_graph(TWO))


def test_a_pass_that_returns_less_is_caught():
    with pytest.raises(PassError, match=r"pass wrong-return-less: returns shapes \[\[7, 4\]\], before it \[\[7, 4\], \[7, 4\]\]"):
        check("wrong-return-less", graph=parse_graph(TWO))


def test_inputs_of_another_seed_catch_it_too():
    torch.manual_seed(1)
    with pytest.raises(PassError, match="pass wrong-swap-gate-and-up"):
        check(f"{RAISED}wrong-swap-gate-and-up", lengths=(2, 6))
