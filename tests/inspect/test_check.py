"""Faults put into one op are named by its isolated error; clean models show nothing red."""

import dataclasses
import re
from functools import cache

import faulty_passes
import pytest
import studied
import torch
import typer

from tilewright.cli_check import register
from tilewright.inspect.check import check
from tilewright.inspect.metrics import Gate, GateError, relative_error
from tilewright.inspect.numerics import value_metrics
from tilewright.ir.errors import TilewrightError
from tilewright.passes.manager import PassManager
from tilewright.runtime.torch_backend import TorchKernel


@cache
def clean(model):
    return studied.bench_of(studied.run_of(model), model).study


def found_red(fault, layer):
    """Names of the values that are red once the fault is in, the worst first."""
    model, _ = faulty_passes.FAULTS[fault]
    study = clean(model)
    graph = study.run.final.copy()
    PassManager.of(f"inject{{fault={fault.__name__} layer={layer}}}").run(graph)
    rows = study.fork(graph).values(graph)
    return [row.name[1:] for row in sorted(rows, key=lambda row: -row.severity) if row.level == "red"]


def test_the_isolated_error_names_the_value_that_a_fault_is_in():
    named, missed = 0, []
    for fault, (_, value) in faulty_passes.FAULTS.items():
        for layer in range(studied.LAYERS):
            red = found_red(fault, layer)
            exact = red == [f"{faulty_passes.STEM}.{layer}.{value}"]
            named += exact
            missed += [] if exact else [f"{fault.__name__} in layer {layer}: {red}"]
    assert named >= 34, missed


def test_a_percent_is_seen_in_bfloat16_too():
    study = studied.bench_of(studied.run_of("qwen2", dtype=torch.bfloat16), "qwen2", torch.bfloat16).study
    graph = study.run.final.copy()
    PassManager.of("inject{fault=scale_by_a_percent layer=2}").run(graph)
    assert [row.name for row in study.fork(graph).values(graph) if row.level == "red"] == ["%model.layers.2.mlp.down_proj"]


def test_the_accumulated_error_names_many_more():
    study = clean("qwen2")
    graph = study.run.final.copy()
    PassManager.of("inject{fault=wrong_eps layer=0}").run(graph)
    rows = study.fork(graph).values(graph)
    assert sum(row.accumulated > 1e-5 for row in rows) > 20 and sum(row.isolated > 1e-5 for row in rows) == 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_clean_model_has_nothing_red(seed, dtype):
    run = studied.run_of("qwen2", dtype=dtype, seed=seed)
    found = studied.bench_of(run, "qwen2", dtype, sample_seed=seed, seed=seed).check()
    assert found.red == [] and found.launches
    assert found.metrics["top1"] > 0.9


@pytest.mark.parametrize("model", ["mistral", "gemma2", "gpt2", "falcon_alibi"])
def test_other_architectures_have_nothing_red(model):
    found = studied.bench_of(studied.run_of(model), model).check()
    assert found.red == [], [row for row in found.red[:3]]


def test_a_quantized_value_is_grey_within_the_budget_of_its_pass():
    found = studied.bench_of(studied.run_of("qwen2", quantize="int8"), "qwen2").check()
    grey = [row for row in found.values if row.level == "grey"]
    assert found.red == [] and {row.op for row in grey} == {"linear"}
    assert all(row.lossy / row.floor > 1000 and row.budget == 0.1 for row in grey)
    assert all(row.ratio < 2 for row in grey), "quantization is no error of the product, which runs the same integers"
    assert {row.name[1:] for row in grey} == {v.name for op in found.run.final.find("linear") for v in op.results if op.inputs[1].type.encoding}
    quantize = next(row for row in found.passes if row.name == "quantize")
    before = found.passes[found.passes.index(quantize) - 1]
    assert before.logits.rel < 1e-5 < 1e-3 < quantize.logits.rel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_percent_is_seen_in_a_product_of_integers_beside_what_quantization_costs(dtype):
    study = studied.bench_of(studied.run_of("qwen2", dtype=dtype, quantize="int8"), "qwen2", dtype).study
    for layer in range(studied.LAYERS):
        graph = study.run.final.copy()
        PassManager.of(f"inject{{fault=scale_by_a_percent layer={layer}}}").run(graph)
        (red,) = [row for row in study.fork(graph).values(graph) if row.level == "red"]
        assert red.name == f"%model.layers.{layer}.mlp.down_proj"
        assert red.isolated == pytest.approx(0.01, rel=0.05) and red.lossy > red.isolated


def test_a_pass_behind_quantization_is_judged_on_the_quantized_weights():
    """Fusions of quantized products give the same tensors: nothing is red, whatever the order of passes."""
    run = studied.run_of("qwen2", pipeline="simplify,quantize,default")
    found = studied.bench_of(run, "qwen2").check()
    assert found.red == [] and any(row.lossy for row in found.values if row.op != "linear")


def test_quantization_beyond_its_budget_is_red():
    study = studied.bench_of(studied.run_of("qwen2", quantize="int8"), "qwen2").study
    graph = study.run.final
    tight = dataclasses.replace(study, budgets=dict.fromkeys(study.budgets, 1e-3)).fork(graph)
    assert {row.op for row in tight.values(graph) if row.level == "red"} == {"linear"}


def test_triton_kernels_are_checked_on_the_interpreter():
    run = studied.run_of("qwen2", target="sm_90", dtype=torch.bfloat16)
    found = studied.bench_of(run, "qwen2", torch.bfloat16).check()
    assert found.red == [] and found.engine.top1 > 0.9
    assert {row.step for row in found.launches} == {"prefill", "continue", "decode"}
    assert {kernel.name for kernel in run.engine.manifest.kernels} == {name for row in found.launches for name in row.kernels}


def spoiled(bench, kernel_stem, old, new):
    """Names of the kernels whose launches are red once one kernel's source is changed; the engine on disk stays as it is."""
    engine = bench.steps.engine
    kernel = next(k for k in engine.manifest.kernels if k.name.startswith(kernel_stem) and k.name in kernels_of_ragged(engine.manifest))
    source = (engine.directory / kernel.file).read_text()
    assert old in source
    namespace = {}
    exec(source.replace(old, new), namespace)
    before = engine.kernels[kernel.name]
    engine.kernels[kernel.name] = TorchKernel(namespace[kernel.entry], kernel.constants)
    red = [row for row in bench.launches() if row.severity > 1]
    logits = bench.engine_logits()
    engine.kernels[kernel.name] = before
    assert {name for row in red for name in row.kernels} == {kernel.name}
    return red, logits


def kernels_of_ragged(manifest):
    return {launch.kernel for program in manifest.programs if program.kind == "ragged" for launch in program.launches}


@pytest.fixture(scope="module")
def qwen2():
    return studied.bench_of(studied.run_of("qwen2"), "qwen2")


def test_a_stale_page_is_found_in_the_kernel_that_reads_it(qwen2):
    red, logits = spoiled(qwen2, "attention", "pages = block_table[sequence", "pages = block_table[0")
    assert {row.step for row in red} == {"prefill", "continue"} and len({row.region for row in red}) == studied.LAYERS
    assert logits.rel > 1e-2


def test_a_fault_at_page_boundaries_alone_is_found(qwen2):
    red, _ = spoiled(qwen2, "kv", "slot % 8] = slice__3", "slot % 8 - slot % 8 // 7] = slice__3")
    assert {row.value for row in red} == {f"%model.layers.{layer}.self_attn.attention.kv" for layer in range(3)}


def test_a_percent_in_a_product_of_integers_is_found_in_its_kernel():
    bench = studied.bench_of(studied.run_of("qwen2", dtype=torch.bfloat16, quantize="int8"), "qwen2", torch.bfloat16)
    red, _ = spoiled(bench, "qkv", "= F.linear(", "= 1.01 * F.linear(")
    assert len({row.region for row in red}) == studied.LAYERS and all(0.005 < row.isolated < 0.02 for row in red)


def test_a_kernel_that_drops_the_residual_is_found_in_each_layer(qwen2):
    red, logits = spoiled(qwen2, "down_proj", "x_2 + linear", "linear")
    assert {row.region for row in red} == {f"model.layers.{layer}.mlp.down_proj" for layer in range(3)}
    assert logits.top1 < 1


def test_a_kernel_that_gives_nan_is_found(qwen2):
    red, logits = spoiled(qwen2, "down_proj", "x_2 + linear", "x_2 + linear * float('nan')")
    assert all(row.not_finite for row in red) and logits.nan > 0


def test_a_nan_in_a_graph_is_a_warning_and_fails_every_gate():
    study = clean("qwen2")
    graph = study.run.final.copy()
    PassManager.of("inject{fault=scale_by_a_percent layer=1}").run(graph)
    next(op for op in graph.find("mul") if op.attrs["scalar"] == 1.01).attrs["scalar"] = float("nan")
    metrics = study.fork(graph).metrics(graph, values=True)
    assert metrics["nan"] > 0 and Gate.parse("kl<1e9").failure(metrics).startswith("kl is nan")
    assert value_metrics(study.fork(graph).values(graph))["red"] >= 1


def test_the_reference_is_what_transformers_computes():
    found = check(studied.run_of("qwen2"), model=studied.checkpoint_of("qwen2"), transformers=True)
    assert found.transformers < 1e-5


def test_a_gate_decides_the_exit_code(tmp_path, capsys):
    engine = str(studied.run_of("qwen2").path)
    (tmp_path / "prompts.txt").write_text("1 2 3 4 5 6 7 8 9\n\n[10, 11]\n")
    app = typer.Typer()
    register(app)
    arguments = ["check", engine, "--prompts", str(tmp_path / "prompts.txt"), "--gate"]
    typer.main.get_command(app)([*arguments, "kl<1e-3 and top1>=0.99"], standalone_mode=False)
    assert "2 prompts, 11 tokens" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        typer.main.get_command(app)([*arguments, "rel<1e-12"], standalone_mode=False)
    assert ended.value.code == 1
    assert re.fullmatch(r"tilewright check: rel is \S+, the gate asks for rel<1e-12\n", capsys.readouterr().err)


def test_dumps_alone_name_no_checkpoint():
    run = studied.run_of("qwen2")
    with pytest.raises(TilewrightError, match="names no checkpoint; pass --model DIR"):
        check(type(run)(run.folder, run.folder, None))


def test_a_checkpoint_of_another_model_is_refused():
    with pytest.raises(TilewrightError, match="pass --model DIR"):
        check(studied.run_of("qwen2"), model=studied.checkpoint_of("mistral"))


@pytest.mark.parametrize("text", ["kl", "kl<", "speed>3", "kl<one", "kl!=3"])
def test_a_gate_that_means_nothing_is_refused(text):
    with pytest.raises(GateError):
        Gate.parse(text)


def test_relative_errors_of_zeros_infinities_and_nan():
    one, nan = torch.ones(2), torch.tensor([1.0, float("nan")])
    assert relative_error(one, one) == 0 and relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_error(1.5 * one, one) == pytest.approx(0.5)
    assert relative_error(one / 0, one / 0) == 0 and relative_error(nan, one) != relative_error(nan, one)


def test_the_rows_are_kept_as_json_lines(tmp_path, qwen2):
    found = qwen2.check()
    found.save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"passes.jsonl", "values.jsonl", "launches.jsonl"}
    assert len((tmp_path / "values.jsonl").read_text().splitlines()) == len(found.values)
    assert found.by_pass()[0].name == "import" and len(found.worst(3)) == 3


@pytest.mark.gpu
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_compiled_kernels_are_checked_on_the_gpu(quantize):
    run = studied.run_of("qwen2", target="cuda", dtype=torch.bfloat16, quantize=quantize)
    found = studied.bench_of(run, "qwen2", torch.bfloat16).check()
    assert found.red == [] and found.engine.top1 > 0.9
