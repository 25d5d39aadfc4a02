"""A graph at any stage as an ONNX model: it passes the checker, and onnxruntime computes what the reference interpreter does."""

import os
import subprocess
import sys

import onnx
import pytest
import torch
from onnx_models import fresh_steps, largest_error, operators, run_file

import tilewright as tw
from tilewright.codegen.onnx_export import export_onnx
from tilewright.codegen.onnx_nodes import NODES
from tilewright.ir.errors import CodegenError, TilewrightError
from tilewright.ir.graph import Graph
from tilewright.ir.interpreter import interpret
from tilewright.ir.opdef import OPS
from tilewright.ir.reference import TORCH_DTYPES
from tilewright.ir.types import Bounds, TensorType

EVALUATED = {"iota", "full", "quantize", "encode"}  # always constants, which are evaluated


@pytest.mark.parametrize("stage", ["import", "semantic", "optimized", "int8"])
@pytest.mark.parametrize("name", ["llama2", "gptj", "falcon_7b"])
def test_onnxruntime_agrees_with_the_reference_at_every_stage(name, stage, staged, tmp_path):
    model = staged(name, stage)
    file = tw.export_onnx(model, tmp_path / "model.onnx")
    onnx.checker.check_model(str(file), full_check=True)
    assert largest_error(file, model) < 1e-5


@pytest.mark.parametrize("name", ["gemma2", "falcon_alibi", "gpt_neox", "mistral"])  # window and softcap, slopes, partial rotary, window
def test_windows_caps_and_slopes_are_said_in_standard_operators(name, staged, tmp_path):
    model = staged(name, "optimized")
    file = tw.export_onnx(model, tmp_path / "model.onnx")
    onnx.checker.check_model(str(file), full_check=True)
    found = [op for op in operators(file) if op.lower().startswith("attention")]
    assert sorted(found) == (["attention_capped", "attention_capped_window_8"] if name == "gemma2" else ["Attention"] * 2)
    assert largest_error(file, model) < 1e-5


def test_a_raised_llama_is_made_of_standard_operators(staged, tmp_path):
    found = operators(tw.export_onnx(staged("llama2", "int8"), tmp_path / "model.onnx"))
    counts = {name: found.count(name) for name in ("RMSNormalization", "RotaryEmbedding", "Attention", "DequantizeLinear")}
    assert counts == {"RMSNormalization": 5, "RotaryEmbedding": 4, "Attention": 2, "DequantizeLinear": 9}


def test_int8_weights_stay_integers_in_the_file(staged, tmp_path):
    file = tw.export_onnx(staged("llama2", "int8"), tmp_path / "model.onnx")
    weights = {t.name: t for t in onnx.load(file).graph.initializer}
    encoded = [t for name, t in weights.items() if f"{name}.scale" in weights]
    assert len(encoded) == 9 and all(t.data_type == onnx.TensorProto.INT8 for t in encoded)


def test_nodes_know_the_module_that_they_come_from(staged, tmp_path):
    model = onnx.load(tw.export_onnx(staged("llama2", "semantic"), tmp_path / "model.onnx"))
    attention = next(n for n in model.graph.node if n.op_type == "Attention")
    told = {p.key: p.value for p in attention.metadata_props}
    assert told["tilewright.op"] == "attention" and told["tilewright.modules"] == "model.layers.0.self_attn"


def test_external_weights_are_those_inside(staged, tmp_path):
    model = staged("gptj", "optimized")
    inside = tw.export_onnx(model, tmp_path / "inside.onnx", external=False)
    beside = tw.export_onnx(model, tmp_path / "beside.onnx", external=True)
    onnx.checker.check_model(str(beside), full_check=True)
    assert {f.name for f in tmp_path.iterdir()} == {"inside.onnx", "beside.onnx", "beside.onnx.data"}
    assert beside.stat().st_size < inside.stat().st_size / 5
    step = next(fresh_steps((9,)))
    assert torch.equal(run_file(inside, step), run_file(beside, step))


def test_equal_exports_are_equal_bytes(staged, tmp_path):
    files = [tw.export_onnx(staged("gptj", "semantic"), tmp_path / f"{i}.onnx") for i in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_only_one_weight_is_in_memory_at_a_time(staged, tmp_path):
    import weakref

    model, alive = staged("gptj", "import"), weakref.WeakSet()

    class Counting:
        def load(self, name):
            tensor = model.weights.load(name).clone()
            alive.add(tensor)
            assert len(alive) == 1
            return tensor

    export_onnx(model.graph, Counting(), tmp_path / "model.onnx", external=True)


def test_an_export_that_stops_leaves_no_file(staged, tmp_path):
    class Empty:
        def load(self, name):
            raise TilewrightError(f"@{name}", "is not there")

    with pytest.raises(TilewrightError):
        export_onnx(staged("gptj", "import").graph, Empty(), tmp_path / "model.onnx", external=True)
    assert list(tmp_path.iterdir()) == []


# -- single ops -----------------------------------------------------------------------------------------------------------------
def test_every_op_has_nodes_or_is_always_a_constant():
    ours = {name for name, definition in OPS.items() if definition.infer.__module__.startswith("tilewright.")}
    assert ours - EVALUATED <= set(NODES)


X, I = ("f32", ("T", 24)), ("i32", ("T", 24))
SINGLE = [
    ("add", [X], {"scalar": 2}), ("sub", [X], {"scalar": 2.5, "reverse": True}), ("div", [I], {"scalar": 2.5}), ("maximum", [X], {"scalar": 0.5}),
    ("pow", [X], {"exponent": 3.0}),
    ("rsqrt", [X], {}), ("round", [X], {}), ("less", [X, X], {}), ("equal", [I], {"scalar": 3}),
    ("pow", [X, X], {}), ("erf", [X], {}), ("gelu", [X], {"approximate": "tanh"}),
    ("cast", [X], {"dtype": "i32"}), ("where", [("i1", ("T", 24)), X, X], {}),
    ("expand", [("f32", (1, 24))], {"shape": ("T", 24)}), ("reshape", [X], {"shape": ("T", 2, 12)}), ("transpose", [X], {"perm": (1, 0)}),
    ("slice", [X], {"axis": -1, "start": 1, "stop": 20, "step": 3}), ("interleave", [("f32", (3, 4)), ("f32", (3, 4))], {}),
    ("mean", [X], {"axis": 1, "keepdim": False}), ("sum", [I], {"axis": 0}), ("max", [X], {}), ("softmax", [X], {"axis": 0}),
    ("linear", [("f32", (3, "T", 24)), ("f32", (7, 24)), ("f32", (7,))], {}), ("matmul", [("f32", (3, "T", 8)), ("f32", (3, 8, 5))], {}),
    ("rms_norm", [X], {"eps": 1e-5}), ("rms_norm", [X, ("f32", (24,))], {"eps": 1e-5, "rounding": "after_scale", "offset": 1.0}),
    ("rms_norm", [("f16", ("T", 24)), ("f16", (24,))], {"eps": 1e-5, "rounding": "after_scale", "offset": 1.0}),
    ("layer_norm", [X], {"eps": 1e-5}),
    ("rotary", [X, ("f32", ("T", 8)), ("f32", ("T", 8))], {"head_dim": 8}),
    ("rotary", [X, ("f32", ("T", 4)), ("f32", ("T", 4))], {"head_dim": 8, "layout": "interleaved"}),
    ("gated", [X, X], {"activation": "gelu_tanh"}), ("gated", [X], {"activation": "relu"}),
    ("attention", [X, ("f32", ("T", 8)), ("f32", ("T", 16))], {"heads": 3, "kv_heads": 1, "scale": 0.3, "layer": 0, "window": 4, "softcap": 9.0}),
    ("attention", [X, X, X, ("f32", (3,))], {"heads": 3, "kv_heads": 3, "scale": 0.3, "layer": 0, "window": 3}),
]  # fmt: skip


@pytest.mark.parametrize("name, operands, attrs", SINGLE, ids=[f"{c[0]}-{i}" for i, c in enumerate(SINGLE)])
def test_one_op_exports_as_its_formula(name, operands, attrs, tmp_path):
    graph, data = Graph("one", {"T": Bounds(1, 64)}), {"size": torch.zeros(7)}
    graph.add_input("size", TensorType("f32", ("T",)))
    values = [graph.add_input(f"x{i}", TensorType(*operand)) for i, operand in enumerate(operands)]
    for i, (dtype, shape) in enumerate(operands):
        sizes = [7 if d == "T" else d for d in shape]
        drawn = torch.randint(-9, 9, sizes) if dtype == "i32" else torch.rand(sizes) + 0.1
        data[f"x{i}"] = drawn.to(TORCH_DTYPES[dtype])
    graph.outputs = graph.emit(name, values, attrs).results
    file = export_onnx(graph, None, tmp_path / "one.onnx")
    onnx.checker.check_model(str(file), full_check=True)
    (expected,) = interpret(graph, data, None)
    torch.testing.assert_close(run_file(file, data), expected, rtol=1e-5 if expected.dtype != torch.half else 2e-3, atol=1e-6)


# -- what cannot be -------------------------------------------------------------------------------------------------------------
def test_an_op_without_nodes_is_named(tmp_path, monkeypatch):
    monkeypatch.delitem(NODES, "relu")
    graph = Graph("one", {"T": Bounds(1, 64)})
    graph.outputs = graph.emit("relu", [graph.add_input("x", TensorType("f32", ("T",)))], names=["y"]).results
    with pytest.raises(CodegenError, match="%y: no ONNX nodes are known for the op relu"):
        export_onnx(graph, None, tmp_path / "one.onnx")


def test_a_graph_of_text_alone_is_refused(staged, tmp_path):
    optimized = tw.optimize(staged("gptj", "import").graph, "simplify")
    with pytest.raises(TilewrightError, match="came from text, so it has no weights"):
        tw.export_onnx(optimized, tmp_path / "one.onnx")


def test_a_folder_that_is_not_there_is_one_sentence(staged, tmp_path):
    with pytest.raises(TilewrightError, match=r"cannot be written \(No such file or directory\); choose another file"):
        tw.export_onnx(staged("gptj", "import"), tmp_path / "none" / "one.onnx")


def test_without_the_package_the_error_says_what_to_install(tmp_path):
    (tmp_path / "onnx_hidden.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\nu.find_spec = lambda name, *a: None if name == 'onnx' else find(name, *a)\n"
    )
    program = (
        "import onnx_hidden, tilewright as tw\nfrom tilewright.codegen.onnx_export import export_onnx\n"
        "try: export_onnx(None, None, 'x.onnx')\nexcept tw.TilewrightError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=True
    )
    assert done.stdout.strip() == "onnx: the package onnx is not installed; pip install tilewright[onnx]"


