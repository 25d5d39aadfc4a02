"""ONNX files as graphs: ours come back equal, others by their operators; what cannot be read is one sentence that names the node."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_models import fresh_steps

import tilewright as tw
from tilewright.frontend.onnx_import import import_onnx
from tilewright.ir.errors import CheckpointError, TraceError
from tilewright.ir.graph import is_same_structure
from tilewright.ir.interpreter import interpret
from tilewright.ir.parser import parse_graph
from tilewright.ir.printer import print_graph


def logits(model, step):
    return interpret(model.graph, step, model.weights)[0]


# -- our own files --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stage", ["import", "semantic", "optimized", "int8"])
@pytest.mark.parametrize("name", ["llama2", "gptj", "falcon_7b"])
def test_what_was_exported_comes_back_equal(name, stage, staged, tmp_path):
    model = staged(name, stage)
    back = import_onnx(tw.export_onnx(model, tmp_path / "one.onnx"))
    again = import_onnx(tw.export_onnx(back, tmp_path / "two.onnx"))
    for step in fresh_steps((1, 9, 40)):
        assert torch.equal(logits(back, step), logits(model, step))
        assert torch.equal(logits(again, step), logits(back, step))


@pytest.mark.parametrize("name", ["gemma2", "falcon_alibi", "mistral", "gpt_neox", "qwen3"])
def test_windows_caps_and_slopes_are_read_from_the_mask(name, staged, tmp_path):
    model = staged(name, "semantic")
    back = import_onnx(tw.export_onnx(model, tmp_path / "one.onnx"))
    kept = [[op.attrs[a] for a in ("window", "softcap", "heads", "kv_heads", "layer")] for op in back.graph.find("attention")]
    assert kept == [[op.attrs[a] for a in ("window", "softcap", "heads", "kv_heads", "layer")] for op in model.graph.find("attention")]
    for step in fresh_steps((1, 40)):
        torch.testing.assert_close(logits(back, step), logits(model, step), rtol=1e-6, atol=1e-6)


def test_a_mask_that_values_decide_is_no_window():
    nodes = [
        helper.make_node("Cast", ["m"], ["seen"], to=TensorProto.BOOL),
        helper.make_node("Attention", ["x", "x", "x", "seen"], ["y"], q_num_heads=2, kv_num_heads=2),
    ]
    model = import_onnx(make(nodes, [("x", TensorProto.FLOAT, [1, 5, 8]), ("m", TensorProto.INT64, [5, 5])]))
    assert not model.graph.find("attention") and model.graph.find("where")


def test_a_second_round_trip_changes_nothing(staged, tmp_path):
    first = import_onnx(tw.export_onnx(staged("llama2", "semantic"), tmp_path / "one.onnx"))
    second = import_onnx(tw.export_onnx(first, tmp_path / "two.onnx"))
    assert is_same_structure(first.graph, second.graph)


def test_names_modules_and_ops_survive(staged, tmp_path):
    model = staged("llama2", "semantic")
    back = import_onnx(tw.export_onnx(model, tmp_path / "one.onnx"))
    found = {name: len(back.graph.find(name)) for name in ("rms_norm", "rotary", "attention", "gated", "linear")}
    assert found == {name: len(model.graph.find(name)) for name in found}
    norm = back.graph.value("model.layers.1.input_layernorm").producer
    assert norm.name == "rms_norm" and norm.attrs["eps"] == 1e-5 and norm.loc.modules == ("model.layers.1.input_layernorm",)


def test_an_imported_graph_is_text_that_parses_back(staged, tmp_path):
    graph = import_onnx(tw.export_onnx(staged("gptj", "import"), tmp_path / "one.onnx")).graph
    assert is_same_structure(parse_graph(print_graph(graph)), graph)


def test_quantized_weights_stay_integers(staged, tmp_path):
    back = import_onnx(tw.export_onnx(staged("llama2", "int8"), tmp_path / "one.onnx"))
    assert len(back.graph.find("encode")) == 9
    assert all(op.inputs[1].type.encoding is not None for op in back.graph.find("linear"))


def test_the_passes_run_on_an_imported_graph(staged, tmp_path):
    back = import_onnx(tw.export_onnx(staged("llama2", "semantic"), tmp_path / "one.onnx"))
    optimized = tw.optimize(back, length=64)
    assert len(optimized.graph.find("attend")) == 2 and len(optimized.graph.find("linear")) == 9
    step = next(fresh_steps((11,)))
    torch.testing.assert_close(interpret(optimized.graph, step, back.weights)[0], logits(back, step), rtol=1e-5, atol=1e-5)


def test_an_engine_of_an_imported_graph_is_refused_with_what_to_do(staged, tmp_path):
    imported = tw.optimize(import_onnx(tw.export_onnx(staged("llama2", "import"), tmp_path / "one.onnx")), "simplify")
    said = "it came from an ONNX file, which tells .*; for an engine compile.* the checkpoint that it was exported"
    with pytest.raises(tw.TilewrightError, match=said):
        tw.build(imported, tmp_path / "engine", target="cpu")


def test_weights_beside_the_file_are_read_when_asked_for(staged, tmp_path):
    file = tw.export_onnx(staged("gptj", "import"), tmp_path / "one.onnx", external=True)
    back = import_onnx(file)
    (tmp_path / "one.onnx.data").unlink()
    with pytest.raises(CheckpointError, match=r"keep the \.data file beside the model"):
        back.weights.load("lm_head.weight")


# -- other files ----------------------------------------------------------------------------------------------------------------
def make(nodes, inputs, output="y", weights=None, opset=23):
    values = [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs]
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in (weights or {}).items()]
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_model(helper.make_graph(nodes, "g", values, [result], tensors), opset_imports=[helper.make_opsetid("", opset)])


X = [("x", TensorProto.FLOAT, ["batch", "seq", 8])]
WEIGHT = np.random.default_rng(1).standard_normal((8, 6)).astype(np.float32)


def test_a_batch_of_one_leaves_the_tokens_of_a_step():
    made = make([helper.make_node("MatMul", ["x", "w"], ["y"])], X, weights={"w": WEIGHT})
    model = import_onnx(made, dims={"batch": 1})
    assert str(model.graph.inputs[0].type) == "f32[1, T, 8]"
    assert [op.name for op in model.graph.ops] == ["transpose", "linear"]


def test_shapes_computed_from_shapes_are_worked_out():
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Gather", ["s", "one"], ["t"]), helper.make_node("Unsqueeze", ["t", "axis"], ["u"]),
        helper.make_node("Concat", ["u", "heads"], ["shape"], axis=0), helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ]  # fmt: skip
    ints = {"one": np.array(1), "axis": np.array([0]), "heads": np.array([2, -1])}
    model = import_onnx(make(nodes, X, weights=ints), dims={"batch": 1})
    assert str(model.graph.outputs[0].type) == "f32[T, 2, 4]" and not model.graph.params


def test_functions_of_others_are_written_out():
    made = make([helper.make_node("double", ["x"], ["y"], domain="theirs")], X)
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    made.functions.append(helper.make_function("theirs", "double", ["a"], ["b"], body, [helper.make_opsetid("", 23)]))
    made.opset_import.append(helper.make_opsetid("theirs", 1))
    assert [op.name for op in import_onnx(made, dims={"batch": 1}).graph.ops] == ["add"]


def test_an_import_of_numbers_is_what_onnxruntime_computes(tmp_path):
    import onnxruntime

    nodes = [helper.make_node("LayerNormalization", ["x", "g"], ["n"]), helper.make_node("Gemm", ["n", "w", "b"], ["y"])]
    made = make(nodes, [("x", TensorProto.FLOAT, ["seq", 8])], weights={"g": WEIGHT[:, 0].copy(), "w": WEIGHT, "b": WEIGHT[0].copy()})
    model, x = import_onnx(made), torch.randn(5, 8)
    onnx.save(made, tmp_path / "m.onnx")
    (expected,) = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"x": x.numpy()})
    torch.testing.assert_close(logits(model, {"x": x}), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


# -- what cannot be read --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "node, said",
    [
        (helper.make_node("NonZero", ["x"], ["y"], name="here"), "onnx NonZero 'here': is not in the table of operators"),
        (helper.make_node("FusedMatMul", ["x", "x"], ["y"], domain="com.microsoft"), "is of the domain com.microsoft; only standard operators"),
        (helper.make_node("Reshape", ["x", "x"], ["y"]), "onnx Reshape 'y': its input 'x' is computed by the step, and must be known"),
        (helper.make_node("Relu", ["z"], ["y"]), "onnx z: is used, and nothing defines it"),
        (helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT8E5M2), "onnx Cast y: is of the type FLOAT8E5M2; the IR has no such type"),
        (helper.make_node("Transpose", ["x"], ["y"], perm=[0, 0, 1]), "transpose: perm (0, 0, 1) of f32[batch, seq, 8]"),
    ],
)
def test_what_is_not_read_is_named(node, said):
    with pytest.raises(TraceError) as caught:
        import_onnx(make([node], X))
    assert said in str(caught.value)


def test_a_file_that_is_no_onnx_is_one_sentence(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"\xff\xfe not a protobuf at all")
    with pytest.raises(TraceError, match=r"is not an ONNX file; pass a \.onnx file that is complete"):
        import_onnx(tmp_path / "a.onnx")
    (tmp_path / "b.onnx").write_bytes(b"")
    with pytest.raises(TraceError, match="holds no graph"):
        import_onnx(tmp_path / "b.onnx")
    with pytest.raises(TraceError, match=r"cannot be read \(No such file or directory\)"):
        import_onnx(tmp_path / "c.onnx")
