"""Text round trip, flat and folded, and what the parser says of malformed text."""

import random

import pytest
from models import stack

from tilewright.ir.errors import ParseError
from tilewright.ir.fold import fold_text
from tilewright.ir.graph import is_same_structure
from tilewright.ir.parser import parse_graph
from tilewright.ir.printer import print_graph


@pytest.mark.parametrize("layers, period", [(1, 1), (2, 1), (5, 1), (6, 2), (7, 3), (12, 6)])
def test_text_reads_back_to_the_same_graph_flat_and_folded(layers, period):
    graph = stack(layers, period=period)
    flat, folded = print_graph(graph), fold_text(graph)
    for text in (flat, folded):
        again = parse_graph(text)
        assert is_same_structure(graph, again)
        assert print_graph(again) == flat
        assert fold_text(again) == folded


def test_equal_layers_fold_into_one_block_whatever_their_number():
    lengths = {len(fold_text(stack(n)).splitlines()) for n in (4, 32, 80)}
    assert len(lengths) == 1


def test_layers_of_period_two_fold_two_at_a_time():
    text = fold_text(stack(8, period=2))
    assert "step 2" in text and text.count("softcap") == 1


def test_a_layer_that_differs_stays_outside_the_block():
    graph = stack(9, extra_in=4)
    text = fold_text(graph)
    assert is_same_structure(graph, parse_graph(text))
    assert text.count("relu") == 1
    assert "repeat L in 0..3 " in text and "repeat L in 5..8 " in text


def test_printing_does_not_depend_on_the_order_in_which_ops_stand():
    graph = stack(4)
    expected = print_graph(graph)
    for seed in range(20):
        shuffled = graph.ops
        random.Random(seed).shuffle(shuffled)
        graph._ops = dict.fromkeys(shuffled)
        graph.sort()
        assert print_graph(graph) == expected


TEXT = """graph @g(%x: f32[T, 4]) dims(T in 1..8) {
  param @w : f32[3, 4]
  %y = linear(%x, @w) : f32[T, 3]  loc(model.up)
  return %y
}
"""


@pytest.mark.parametrize(
    "old, new, where, said",
    [
        ("linear", "linaer", "3:1", "did you mean 'linear'"),
        (": f32[T, 3]", ": f32[T, 5]", "3:1", "written as f32[T, 5], linear gives f32[T, 3]"),
        ("(%x, @w)", "(%z, @w)", "3:15", "%z is not defined above"),
        ("(%x, @w)", "(%x @w)", "3:18", "expected ')'"),
        ("f32[3, 4]", "f99[3, 4]", "2:", "no dtype 'f99'"),
        ("%y = linear", "@y = linear", "3:1", "@y should be %y"),
        ("  return %y\n", "", "4:1", "no return"),
        ("}\n", "", "4:", "not closed"),
        ("[T, 4]", "[T, 4", "1:", "expected"),
        ("%y = linear", "%y ? linear", "3:6", "unexpected '?'"),
        ("3, 4]", "3, 5]", "3:1", "differ in K"),
    ],
)
def test_malformed_text_is_refused_with_its_position(old, new, where, said):
    assert parse_graph(TEXT).outputs
    with pytest.raises(ParseError) as caught:
        parse_graph(TEXT.replace(old, new, 1), file="a.ir")
    assert str(caught.value).startswith(f"a.ir:{where}") and said in str(caught.value)


def test_an_empty_file_is_no_graph():
    with pytest.raises(ParseError, match="no graph in it"):
        parse_graph("// nothing\n", file="empty.ir")


def test_a_repeat_block_that_does_not_close_is_refused():
    with pytest.raises(ParseError, match="repeat block is not closed"):
        parse_graph("graph @g() dims() {\n  repeat L in 0..3 as m.layers {\n", file="a.ir")
