"""Lines of Python beside the text form: they read back, stay with a value while it stays, and equal layers share a row."""

import random

from tilewright.ir.graph import Graph
from tilewright.ir.places import fold_lines, places_of, print_places, put_places, read_places
from tilewright.ir.types import Bounds, Loc, TensorType


def chain(lines):
    """Ops one after the other; lines: by name, of each."""
    graph = Graph("g", {"T": Bounds(1, 4)})
    value = graph.add_input("x", TensorType("f32", ("T", 8)))
    for name, found in lines.items():
        value = graph.emit("neg", [value], names=[name], loc=Loc((name,), found)).result
    graph.outputs = [value]
    return graph


def random_lines(seed, layers=5):
    draw = random.Random(seed)
    names = [f"model.layers.{layer}.part_{part}" for layer in range(layers) for part in range(4)] + ["model.norm", "lm_head"]
    return {name: tuple(f"a/b_{draw.randrange(2)}.py:{draw.randrange(90)}" for _ in range(draw.randrange(1, 4))) for name in names}


def test_what_passes_change_reads_back_as_it_is_after_each_of_them():
    before, text, stages = {}, "", []
    for number in range(4):
        after = {**random_lines(7), **dict(list(random_lines(number).items())[: 6 * number])}
        text += print_places(number, before, after)
        stages.append(after)
        before = after
    for number, expected in enumerate(stages):
        assert {name: lines for since, name, lines in read_places(text) if since <= number} == expected


def test_equal_layers_share_a_row():
    lines = {f"model.layers.{layer}.mlp": ("modeling.py:7",) for layer in range(80)}
    assert len(print_places(0, {}, lines).splitlines()) == 1


def test_ops_that_know_no_line_get_those_of_their_values():
    lines = random_lines(3)
    bare = chain(dict.fromkeys(lines, ()))
    put_places(bare, lines)
    assert places_of(bare) == lines
    own = chain({"lm_head": ("mine.py:1",)})
    put_places(own, lines)
    assert places_of(own) == {"lm_head": ("mine.py:1",)}


def test_lines_of_a_file_are_joined():
    assert fold_lines(["a.py:4", "b.py:9", "a.py:3", "a.py:4", "a.py:12"]) == ["a.py:3..4, 12", "b.py:9"]
