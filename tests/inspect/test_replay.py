"""A pipeline goes on from any snapshot: unchanged it gives the same engine, and after an edit what follows from it and no more."""

import re
import stat

import faulty_passes  # noqa: F401
import pytest
import studied
import torch
import typer

from tilewright.cli_check import register
from tilewright.environment import SwitchError, read_environment
from tilewright.inspect import load
from tilewright.inspect.check import Bench
from tilewright.inspect.numerics import signature
from tilewright.inspect.replay import replay
from tilewright.inspect.substitute import substitute
from tilewright.ir.errors import EngineError, PassError, TilewrightError
from tilewright.ir.fold import fold_text
from tilewright.ir.graph import is_same_structure
from tilewright.ir.parser import parse_graph
from tilewright.runtime.cuda_backend import CudaBackend
from tilewright.targets import choose_target


@pytest.fixture(scope="module")
def run():
    return studied.run_of("qwen2")


def go_on(run, start, out, **options):
    return replay(run, start, out, weights=studied.traced("qwen2").weights, **options)


def kernels_of(run):
    return {kernel.name: (run.engine.path / kernel.file).read_text() for kernel in run.engine.manifest.kernels}


@pytest.mark.parametrize("start", [0, 7, 22])
def test_unchanged_it_gives_the_same_engine(run, start, tmp_path):
    again = go_on(run, start, tmp_path / "again")
    assert fold_text(again.final) == fold_text(run.final) and kernels_of(again) == kernels_of(run)
    assert again.engine.manifest.programs == run.engine.manifest.programs
    assert len(again.passes) == len(run.passes) - start and is_same_structure(again.graph(0), run.graph(start))


def test_an_edit_changes_itself_and_what_follows_from_it_alone(run, tmp_path):
    """One norm's epsilon, edited before the pass that raises it."""
    name = "model.layers.1.input_layernorm"
    start = 4
    text = fold_text(run.graph(start))
    edited = parse_graph(text)
    edited.value(f"{name}.add").producer.attrs["scalar"] = 0.5
    again = go_on(run, start, tmp_path / "edited", graph=edited)
    (mine,), (old,) = changed_ops(again.final, run.final), changed_ops(run.final, again.final)
    assert mine.result.name == old.result.name == name
    assert (mine.attrs["eps"], old.attrs["eps"]) == (0.5, 1e-6)
    rerun = {record.name: len(record.events) for record in again.passes}
    assert rerun["raise-rms-norm"] == len(run["raise-rms-norm"].events) and rerun["split-attention"] == studied.LAYERS
    values = Bench.of(again, studied.traced("qwen2").weights).check().values
    assert all(row.level == "ok" for row in values)  # the edited snapshot is what it is compared with


def changed_ops(a, b):
    known = {signature(op) for op in b.ops}
    return [op for op in a.ops if signature(op) not in known]


def test_one_pass_alone_gives_dumps_and_no_engine(run, tmp_path):
    again = go_on(run, 3, tmp_path / "only", only="raise-rotary")
    assert again.engine is None and [record.name for record in again.passes] == ["raise-rotary"]
    assert again.final.find("rotary") and not again.final.find("rms_norm")
    with pytest.raises(PassError, match="--only 'fuse-qvk' is no pass after 3; did you mean 'fuse-qkv'"):
        go_on(run, 3, tmp_path / "none", only="fuse-qvk")


def test_dumps_go_on_without_weights(run, tmp_path):
    dumps = load(run.folder.parent)
    assert dumps.engine is None
    again = replay(dumps, 8, tmp_path / "dumps")
    assert fold_text(again.final) == fold_text(run.final) and not (tmp_path / "dumps" / "manifest.json").exists()


def call(*arguments):
    app = typer.Typer()
    register(app)
    typer.main.get_command(app)([str(argument) for argument in arguments], standalone_mode=False)


def test_the_editor_gets_the_snapshot_and_what_it_leaves_is_built(run, tmp_path, monkeypatch):
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nsed -i 's/eps=1e-06/eps=0.25/' \"$1\"\n")
    editor.chmod(editor.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("EDITOR", str(editor))
    monkeypatch.delenv("VISUAL", raising=False)
    call("replay", run.path, "--from", "raise-rms-norm", "--edit", "-o", tmp_path / "out")
    again = load(tmp_path / "out")
    assert {op.attrs["eps"] for op in again.final.find("rms_norm")} == {0.25}
    assert again.engine is not None and (tmp_path / "out.edited.ir").is_file()


def test_a_graph_that_does_not_verify_is_refused_with_its_line(run, tmp_path):
    file = tmp_path / "wrong.ir"
    file.write_text(fold_text(run.graph(5)).replace("{eps=1e-06} : f32[T, 72]", "{eps=1e-06} : f32[T, 73]", 1))
    with pytest.raises(TilewrightError, match=re.escape(str(file)) + r":\d+"):
        call("replay", run.path, "--from", 5, "--graph", file, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_neither_from_nor_kernel_is_refused(run, tmp_path):
    with pytest.raises(TilewrightError, match="got neither --from nor --kernel"):
        call("replay", run.path, "-o", tmp_path / "out")


# -- kernels --------------------------------------------------------------------------------------------------------------------
def source_of(run, stem):
    kernel = next(kernel for kernel in run.engine.manifest.kernels if kernel.name.startswith(stem))
    return kernel, (run.engine.path / kernel.file).read_text()


def test_a_kernel_is_exchanged(run, tmp_path):
    kernel, text = source_of(run, "down_proj")
    file = tmp_path / "mine.py"
    file.write_text(text.replace("x_2 + linear", "x_2 + 2 * linear"))
    call("replay", run.path, "--kernel", f"{kernel.name}={file}", "-o", tmp_path / "out")
    bench = Bench.of(load(tmp_path / "out"), studied.traced("qwen2").weights)
    assert {name for row in bench.launches() if row.severity > 1 for name in row.kernels} == {kernel.name}
    assert source_of(run, "down_proj")[1] == text


def test_another_signature_is_refused(run, tmp_path):
    kernel, text = source_of(run, "down_proj")
    file = tmp_path / "mine.py"
    file.write_text(text.replace("(x, weight, x_2, out)", "(x, weight, out, x_2)"))
    expected = r"takes \(x, weight, out, x_2\), the launches of .* pass \(x, weight, x_2, out\); keep the signature"
    with pytest.raises(EngineError, match=expected):
        substitute(run.path, tmp_path / "out", {kernel.name: file})
    with pytest.raises(EngineError, match="has no kernel 'down'; "):
        substitute(run.path, tmp_path / "out", {"down": file})
    assert not (tmp_path / "out").exists()


def test_a_triton_kernel_is_compiled_again(tmp_path):
    run = studied.run_of("qwen2", target="sm_90", dtype=torch.bfloat16)
    kernel, text = source_of(run, "gather_rows")
    file = tmp_path / "mine.py"
    file.write_text(text.replace("1e-06", "0.5"))
    assert "0.5" in file.read_text()
    again = substitute(run.path, tmp_path / "out", {kernel.name: file})
    binary = again.engine.manifest.files[kernel.binaries["sm_90"].file]
    assert binary != run.engine.manifest.files[kernel.binaries["sm_90"].file]
    bench = Bench.of(again, studied.traced("qwen2", torch.bfloat16).weights)
    assert {name for row in bench.launches() if row.severity > 1 for name in row.kernels} == {kernel.name}


def test_a_kernel_that_samples_is_exchanged_too_and_the_diff_names_it(tmp_path):
    run = studied.run_of("qwen2", target="sm_90", dtype=torch.bfloat16)
    kernel = next(k for k in run.engine.manifest.sampling.kernels if k.entry == "sample_settle_greedy")
    file = tmp_path / "mine.py"
    file.write_text((run.engine.path / kernel.file).read_text() + "\nMINE = 1\n")
    again = substitute(run.path, tmp_path / "out", {kernel.name: file})
    assert again.kernel(kernel.name).source == file.read_text()
    assert run.diff(again).kernels == (("~", kernel.name, "sampling-greedy x1"),) and not run.diff(run)


# -- one off switch a stage -----------------------------------------------------------------------------------------------------
def test_stages_are_left_out_by_a_switch(run, tmp_path, monkeypatch):
    monkeypatch.setenv("TILEWRIGHT_NO", "triton,quant")
    assert choose_target("sm_90") == "cpu"
    quantized = studied.tw.compile(studied.checkpoint_of("qwen2"), tmp_path / "plain", target="sm_90", quantize="int8", **studied.LIMITS)
    assert quantized.manifest.target == "cpu" and quantized.manifest.model.quantization == "none"
    assert kernels_of(load(tmp_path / "plain")) == kernels_of(run)


@pytest.mark.parametrize("name", ["paged", "tritn"])
def test_a_stage_without_another_path_is_refused(name):
    with pytest.raises(SwitchError, match="set it to some of cudagraph, triton and quant, joined by commas"):
        read_environment({"TILEWRIGHT_NO": name})


@pytest.mark.gpu
def test_steps_run_without_graphs_where_they_are_switched_off(monkeypatch):
    monkeypatch.setenv("TILEWRIGHT_NO", "cudagraph")
    run = studied.run_of("qwen2", target="cuda", dtype=torch.bfloat16)
    assert not CudaBackend(run.engine.manifest, run.engine.path, torch.device("cuda")).uses_graphs
