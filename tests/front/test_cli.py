"""The command line on text alone and on a small engine; the package as a user imports it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import zoo
from transformers import AutoModelForCausalLM

import tilewright as tw
from tilewright.cli import app
from tilewright.ir.graph import is_same_structure
from tilewright.ir.parser import parse_graph

DEMO = Path(__file__).parents[2] / "examples" / "demo_model"
DEAD = """graph @g(%x: f32[T, 4]) dims(T in 1..8) {
  %y = relu(%x) : f32[T, 4]
  %unused = neg(%x) : f32[T, 4]
  return %y
}
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    return tw.compile(zoo.save("llama3", folder / "model", layers=3), folder / "engine", target="cpu", max_input_len=32, max_output_len=32).path


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return tw.compile(DEMO, tmp_path_factory.mktemp("demo") / "engine", target="cpu", dtype="float32", max_input_len=64, max_output_len=64).path


@pytest.fixture
def run(capsys):
    """Runs the program; gives what it printed on stdout and stderr."""

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            app([str(word) for word in words])
        out, err = capsys.readouterr()
        assert ended.value.code in (0, None), err
        return out, err

    return run


# -- graphs ---------------------------------------------------------------------------------------------------------------------
def test_opt_runs_passes_on_text_without_weights(run, tmp_path):
    file = tmp_path / "a.ir"
    file.write_text(DEAD)
    out, err = run("opt", file, "-p", "drop-dead-ops", "--print-after-all")
    assert "relu" in out and "neg" not in out
    assert "// after drop-dead-ops" in err


def test_what_opt_prints_can_be_read_back(run, engine, tmp_path):
    imported = sorted((engine / "inspect" / "passes").glob("00*.ir"))[0]
    folded, _ = run("opt", imported, "-p", "raise-rms-norm")
    flat, _ = run("opt", imported, "-p", "raise-rms-norm", "--flat")
    assert is_same_structure(parse_graph(folded), parse_graph(flat))
    assert len(folded.splitlines()) < len(flat.splitlines())


def test_show_folds_equal_layers_unless_asked_not_to(run, engine):
    folded, _ = run("show", engine)
    flat, _ = run("show", engine, "--flat")
    assert "repeat L in " in folded and "repeat" not in flat
    assert is_same_structure(parse_graph(folded), parse_graph(flat))


def test_show_gives_a_stage_by_name_or_number(run, engine):
    by_number, _ = run("show", engine, "0")
    by_name, _ = run("show", engine, "import")
    assert by_number == by_name and "rms_norm" not in by_name


def test_show_gives_one_layer(run, engine):
    out, _ = run("show", engine, "--layer", "1")
    assert "layers.1." in out and "layers.2.mlp" not in out


def test_show_lists_kernels_with_the_modules_they_come_from(run, engine):
    out, _ = run("show", engine, "kernels")
    assert "down_proj" in out


def test_passes_lists_the_default_pipeline_and_explains_one_pass(run):
    listed, _ = run("passes")
    assert "raise-rms-norm" in listed and "fuse-qkv" in listed
    one, _ = run("passes", "quantize")
    assert "dtype" in one and "head" in one


# -- engines --------------------------------------------------------------------------------------------------------------------
def test_run_streams_the_text_that_generate_returns(run, demo):
    out, err = run("run", demo, "Once upon a time", "--max-tokens", "24")
    (expected,) = tw.LLM(demo).generate(["Once upon a time"], tw.SamplingParams(max_tokens=24, temperature=0.0))
    assert out == "Once upon a time" + expected.text + "\n"
    assert "tokens/s" in err


def test_run_takes_token_ids_where_there_is_no_tokenizer(run, engine):
    out, _ = run("run", engine, "--ids", "1 2 3", "--max-tokens", "5")
    assert len(out.split()) == 5 and all(word.isdigit() for word in out.split())


def test_run_and_bench_keep_to_the_engine_s_limits_where_nothing_is_asked(run, engine):
    out, _ = run("run", engine, "--ids", "1 2 3", "--ignore-eos")
    assert len(out.split()) == 32
    assert "ms/token" in run("bench", "latency", engine, "--repeat", "1")[0]
    assert "2 requests" in run("bench", "throughput", engine, "--requests", "2")[0]


def test_every_stage_can_be_shown(run, engine):
    for file in (engine / "inspect" / "passes").glob("*.ir"):
        assert is_same_structure(parse_graph(run("show", engine, file.stem)[0]), parse_graph(file.read_text()))


def test_bench_prints_one_line(run, engine):
    latency, _ = run("bench", "latency", engine, "--prompt-len", "4", "--outputs", "2", "6", "--repeat", "1")
    assert "ms/token" in latency
    throughput, _ = run("bench", "throughput", engine, "--requests", "3", "--prompt-lens", "2", "5", "--output-lens", "2", "5")
    assert "3 requests" in throughput


# -- the package ----------------------------------------------------------------------------------------------------------------
def test_importing_the_package_and_asking_for_help_loads_no_torch():
    code = "import sys, tilewright, tilewright.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_can_be_had():
    assert all(getattr(tw, name) is not None for name in tw.__all__)


def test_a_model_object_brings_the_tokenizer_of_the_directory_that_it_came_from(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    engine = tw.compile(model, out=tmp_path / "engine", target="cpu", max_input_len=16, max_output_len=8)
    (result,) = tw.LLM(engine.path).generate("Once upon a time", tw.SamplingParams(max_tokens=4, temperature=0.0))
    ids = model.generate(torch.tensor([result.prompt_token_ids]), max_new_tokens=4, do_sample=False)[0, -4:].tolist()
    assert result.token_ids == ids and result.text


def test_what_stages_return_is_shown_in_one_line():
    traced = tw.trace(zoo.build("llama3", layers=2))
    optimized = tw.optimize(traced, "simplify,drop-dead-ops")
    assert repr(traced) == f"<LlamaForCausalLM as {len(traced.graph)} ops>"
    assert repr(optimized) == f"<{len(optimized.graph)} ops after simplify,drop-dead-ops>"
    assert "repeat L in 0..1" in str(traced)


def test_build_says_what_it_wants_where_optimize_was_left_out(tmp_path):
    traced = tw.trace(zoo.build("llama3", layers=1))
    for given, said in ((traced, "got a Trace"), (tw.optimize(traced.graph), "the graph came from text, so it has no weights")):
        with pytest.raises(tw.TilewrightError, match=f"build: {said}.*pass what optimize"):
            tw.build(given, out=tmp_path / "out", target="cpu")


def test_stages_read_as_text(tmp_path):
    traced = tw.trace(zoo.build("llama3", layers=2))
    assert "graph @" in str(traced) and "embedding" in str(traced)
    optimized = tw.optimize(traced)
    assert "rms_norm" in str(optimized) and "rms_norm" not in str(traced)
    engine = tw.build(optimized, out=tmp_path / "engine", target="cpu", max_input_len=16, max_output_len=8)
    assert "LlamaForCausalLM" in str(engine) and "decode" in str(engine)
    assert tw.LLM(engine.path).generate([[1, 2]], tw.SamplingParams(max_tokens=3))[0].finish_reason == "length"
