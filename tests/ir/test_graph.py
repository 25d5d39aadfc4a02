"""The graph's verbs, names, canonical order, constants, and the verifier's reports."""

import pytest
import torch
from models import stack

from tilewright.ir.errors import EngineError, GraphError
from tilewright.ir.graph import Graph
from tilewright.ir.interpreter import evaluate_constant, interpret
from tilewright.ir.manifest import MANIFEST_FILE, SCHEMA, Manifest
from tilewright.ir.reference import QuantizedTensor
from tilewright.ir.types import Bounds, Encoding, Loc, TensorType
from tilewright.ir.verifier import verify


def test_a_replacement_of_the_same_tensor_takes_over_name_and_uses():
    graph = stack(1)
    old = graph.value("%model.layers.0.norm")
    assert old.producer
    new = graph.emit("rms_norm", list(old.producer.operands), {"eps": 2e-5}, key=old.producer.key).result
    graph.take_name(new, old)
    graph.erase(old.producer)
    graph.sort()
    verify(graph)
    assert graph.value("model.layers.0.norm") is new and [op.name for op in new.users] == ["linear"]


def test_a_replacement_of_another_type_needs_a_new_name():
    graph = stack(1)
    old = graph.value("%model.layers.0.norm")
    new = graph.emit("cast", [old], {"dtype": "f16"}).result
    with pytest.raises(GraphError, match="needs a new name"):
        graph.take_name(new, old)


def test_names_are_never_used_again():
    graph = stack(1)
    extra = graph.emit("relu", [graph.outputs[0]], names=["spare"])
    graph.erase(extra)
    with pytest.raises(GraphError, match="name is taken"):
        graph.emit("relu", [graph.outputs[0]], names=["spare"])


def test_an_op_that_is_used_cannot_be_erased():
    graph = stack(1)
    with pytest.raises(GraphError, match="still used"):
        graph.erase(graph.find("rms_norm")[0])


def test_ops_of_constants_are_constants():
    graph = stack(1)
    quantized = graph.find("quantize")[0].result
    assert quantized.is_const and quantized.display.startswith("@") and quantized.type.encoding == Encoding("f32")
    assert not graph.find("linear")[0].result.is_const


def test_a_constant_loads_only_what_it_is_made_of():
    loaded = []

    class Weights:
        def load(self, name):
            loaded.append(name)
            return torch.randn(72, 24)

    result = evaluate_constant(stack(2).find("quantize")[1].result, Weights())
    assert isinstance(result, QuantizedTensor) and loaded == ["model.layers.1.attn.weight"]


def test_a_cycle_is_refused():
    graph = Graph("g", {"T": Bounds(1, 4)})
    x = graph.add_input("x", TensorType("f32", ("T", 2)))
    a = graph.emit("relu", [x])
    b = graph.emit("relu", [a.result])
    graph.set_operand(a, 0, b.result)
    with pytest.raises(GraphError, match="depends on itself"):
        graph.sort()


def test_an_unknown_dim_is_refused():
    graph = Graph("g", {"T": Bounds(1, 4)})
    x = graph.add_input("x", TensorType("f32", ("Q", 2)))
    with pytest.raises(GraphError, match="uses dim 'Q', the graph has T"):
        graph.emit("relu", [x])


def test_the_verifier_shows_the_op_among_its_neighbours():
    graph = stack(2)
    norm = graph.find("rms_norm")[1]
    norm.results[0].type = TensorType("f16", ("T", 24))
    with pytest.raises(GraphError) as caught:
        verify(graph)
    text = str(caught.value)
    assert "%model.layers.1.norm is declared f16[T, 24], rms_norm gives f32[T, 24]" in text
    assert "--> %model.layers.1.norm" in text and "loc(model.layers.1.norm)" in text


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda g: g.find("linear")[0].operands.__setitem__(0, g.inputs[0]), "does not list linear among its users"),
        (lambda g: g.outputs.clear(), "returns nothing"),
        (lambda g: setattr(g.find("linear")[0].results[0], "is_const", True), "is a constant, its operands say otherwise"),
        (lambda g: setattr(g.find("add")[0].results[0], "producer", None), "does not know its producer"),
    ],
)
def test_the_verifier_finds_what_was_spoilt(spoil, said):
    graph = stack(2)
    verify(graph)
    spoil(graph)
    with pytest.raises(GraphError) as caught:
        verify(graph)
    assert said in str(caught.value)


def test_the_verifier_refuses_ops_of_a_later_level():
    with pytest.raises(GraphError, match="rms_norm is a semantic op; this stage has core"):
        verify(stack(1), levels=["core"])


def test_use_before_definition_is_found():
    graph = stack(1)
    graph._ops = dict.fromkeys(reversed(graph.ops))
    with pytest.raises(GraphError, match="used before it is defined"):
        verify(graph)


def test_locs_join_in_order_without_repeats():
    joined = Loc(("a",), ("f.py:1",)).join(Loc(("b", "a")), Loc(("c",), ("f.py:1", "f.py:2"))).made_by("fuse")
    assert joined == Loc(("a", "b", "c"), ("f.py:1", "f.py:2"), ("fuse",))


@pytest.mark.parametrize("ids, said", [({}, "input %ids: i32[T] is missing"), ({"ids": torch.zeros(99, dtype=torch.int32)}, "T=99 is outside 1..64")])
def test_the_interpreter_refuses_inputs_that_do_not_fit(ids, said):
    data = {"rows": torch.zeros(1, dtype=torch.int32)} | ids
    with pytest.raises(GraphError) as caught:
        interpret(stack(1), data, None)  # type: ignore[arg-type]
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "text, said",
    [
        ("{}", f"schema None, this version reads schema {SCHEMA}"),
        ('{"schema": 99}', "schema 99"),
        ("[1", "is not JSON"),
        (f'{{"schema": {SCHEMA}}}', "field 'producer' is missing"),
        (f'{{"schema": {SCHEMA}, "colour": 1}}', "unknown field 'colour'"),
    ],
)
def test_a_foreign_manifest_is_refused(tmp_path, text, said):
    (tmp_path / MANIFEST_FILE).write_text(text)
    with pytest.raises(EngineError) as caught:
        Manifest.read(tmp_path)
    assert said in str(caught.value) and "build" in str(caught.value)


def test_a_folder_without_manifest_is_no_engine(tmp_path):
    with pytest.raises(EngineError, match="tilewright build MODEL"):
        Manifest.read(tmp_path)
