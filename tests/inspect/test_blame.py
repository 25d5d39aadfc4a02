"""The history of tensors, kernels and modules: both ways through all passes, to a kernel at the end."""

import re

import pytest
import zoo
from recorded import engine, engine_run, llama_run

from tilewright.inspect import load
from tilewright.inspect.blame_places import KernelOrigin, ModuleFate, homeless_ops, uncovered_modules
from tilewright.ir.errors import EngineError

Q = "model.layers.1.self_attn.q_proj"


def test_a_tensor_tells_how_it_is_made_at_each_stage_and_by_which_kernel_at_the_end():
    tensor = engine_run("llama3", quantize="int8").tensor(f"%{Q}")
    made = {stage.title: stage.made.op for stage in tensor.history.stages if stage.made}
    assert made == {"00 import": "linear", "17 fuse-qkv": "slice"}
    (event,) = tensor.history.stages[-1].events
    assert event.rule == "fuse-qkv" and event.anchor == Q
    assert f"{Q}.weight" not in str(tensor) or "linear(" in str(tensor)
    assert [text.partition(":")[0] for text in tensor.kernels] == ["decode", "ragged"]
    assert Q in tensor.modules


def test_a_tensor_that_is_gone_tells_what_took_its_place():
    run = engine_run("llama3")
    tensor = run.tensor("model.layers.0.input_layernorm.pow")
    assert tensor.value is None and tensor.history.stages[-1].is_gone
    assert tensor.history.after[0].name == "model.layers.0.input_layernorm"
    assert "05 raise-rms-norm  is gone" in str(tensor)


def test_a_tensor_that_a_pass_made_tells_what_it_is_made_of():
    history = engine_run("llama3", quantize="int8").tensor("model.layers.0.self_attn.qkv.weight.i8").history
    assert history.before[0].name == "model.layers.0.self_attn.qkv.weight" and "quantize of it" in history.before[0].how
    assert "when weights are packed" in str(history)


def test_readers_are_led_from_a_tensor_that_became_another():
    history = llama_run().tensor("model.rotary_emb.mul").history
    assert history.after[0].name == "model.rotary_emb.cos"
    assert any(relation.name == "model.rotary_emb.mul" for relation in llama_run().tensor("model.rotary_emb.cos").history.before)


def test_a_kernel_tells_its_launches_values_modules_rules_and_cut():
    run = engine_run("llama3", quantize="int8")
    name = next(k.name for k in run.engine.manifest.kernels if "gate_up" in k.name)
    origin = run.blame(name)
    assert isinstance(origin, KernelOrigin)
    assert "model.layers.1.mlp.mul.gate_up" in origin.values and "model.layers.1.mlp.act_fn" in origin.modules
    text = str(origin)
    for words in ("decode x2", "fuse-gate-up (18-fuse-gate-up)", "%.mlp.mul x2 [L=0..1]", "cut"):
        assert words in text
    assert str(run.blame(name.rpartition("_")[0])) == text


def test_a_module_comes_before_the_kernel_that_is_named_after_it():
    run = engine_run("llama3")
    (kernel,) = [k.name for k in run.engine.manifest.kernels if k.name.startswith("lm_head_")]
    assert isinstance(run.blame("lm_head"), ModuleFate) and isinstance(run.blame(kernel), KernelOrigin)


def test_a_module_tells_its_kernels_values_and_events():
    run = engine_run("llama3")
    fate = run.blame("model.layers.1.mlp.down_proj")
    assert isinstance(fate, ModuleFate) and fate.tensor is not None and fate.kernels and fate.folded_by is None
    whole = str(run.blame("model.layers.1"))
    assert whole.startswith("module model.layers.1\n") and "raise-rms-norm x2" in whole


def test_a_module_of_which_nothing_is_left_is_folded_by_a_pass():
    run = llama_run(4, "simplify,test-drop-norms,drop-dead-ops")
    fate = run.blame("model.norm")
    assert isinstance(fate, ModuleFate)
    assert fate.folded_by is not None and fate.folded_by[0].name == "drop-dead-ops" and fate.folded_by[1]
    assert "folded  by pass 03 drop-dead-ops" in str(fate)


def test_a_tensor_tells_its_lines_of_python_at_every_stage():
    run = engine_run("llama3", quantize="int8")
    norm = "model.layers.1.input_layernorm"
    imported = [set(run.graph(0).value(name).producer.loc.sources) for name in (norm, f"{norm}.pow", f"{norm}.rsqrt")]
    assert all(len(lines) == 1 for lines in imported) and len(set.union(*imported)) > 1
    fused = run.final.value(norm).producer
    assert fused.name == "rms_norm" and set(fused.loc.sources) >= set.union(*imported) and run.tensor(norm).sources == fused.loc.sources
    assert all(re.fullmatch(r"transformers/[\w/]+\.py:\d+", line) for op in run.final.ops for line in op.loc.sources)
    assert [op for op in run.final.ops if not op.loc.sources] == []
    assert re.search(r"^  source +transformers/models/llama/modeling_llama.py:", str(run.blame(f"%{norm}")), re.MULTILINE)


def test_a_kernel_s_header_and_its_origin_tell_the_lines():
    run = engine_run("llama3")
    kernel = next(k for k in run.engine.manifest.kernels if k.name.startswith("gate_up"))
    (line,) = run.graph(0).value("model.layers.0.mlp.act_fn").producer.loc.sources
    text = (run.engine.path / kernel.file).read_text()
    assert f"# lines   {line}" in text and f"  {line.rpartition('/')[2]}\n" in text
    assert line in str(run.blame(kernel.name)) and line in str(run.blame("model.layers.0.mlp.act_fn"))


@pytest.mark.parametrize(
    "name, said",
    [("layers.1.q_proj", f"did you mean '{Q}'?"), ("nothing_alike", "tilewright show .* prints them"), (f"{Q}x", f"did you mean '{Q}'?")],
)
def test_a_name_that_is_none_gets_a_suggestion(name, said):
    with pytest.raises(EngineError, match=f"no tensor, kernel or module '{name}'; {said}".replace("?", r"\?")):
        engine_run("llama3").blame(name)


@pytest.mark.parametrize("family", sorted(zoo.ARCHITECTURES))
def test_every_op_names_a_module_and_every_module_ends_in_a_kernel_or_a_pass(family):
    run = load(engine(family))
    assert homeless_ops(run) == []
    assert uncovered_modules(run) == []


def test_values_read_well_in_a_notebook():
    run = engine_run("llama3")
    tensor = run.find("rms_norm", layer=1)[0]
    assert tensor.name == "model.layers.1.input_layernorm"
    assert repr(tensor).startswith("<%model.layers.1.input_layernorm: f32[T, 72] of ")
    for shown in (run, run["fuse-qkv"], run["fuse-qkv"].diff(), tensor, tensor.history, run.why("fuse-qkv")):
        html = shown._repr_html_()
        assert html.startswith("<pre>") and "->" not in html and str(shown)
