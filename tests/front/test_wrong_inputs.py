"""What a new user may get wrong, each answered by one sentence that says what to do, and nothing half written."""

import json
import math
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import zoo
from safetensors.torch import load_file, save_file

import tilewright as tw
from tilewright.cli import app

_FOLDER = TemporaryDirectory(prefix="tilewright-tests-")
LIMITS = {"max_batch_size": 2, "max_input_len": 16, "max_output_len": 8}


@cache
def checkpoint():
    return zoo.save("llama3", Path(_FOLDER.name) / "model", layers=1)


@cache
def engine():
    return tw.compile(checkpoint(), Path(_FOLDER.name) / "engine", target="cpu", **LIMITS).path


@cache
def llm():
    return tw.LLM(engine())


@pytest.fixture
def model(tmp_path):
    """A copy of the checkpoint that a test may spoil."""
    return Path(shutil.copytree(checkpoint(), tmp_path / "model"))


@pytest.fixture
def copy(tmp_path):
    """A copy of the engine that a test may spoil."""
    return Path(shutil.copytree(engine(), tmp_path / "engine"))


def refusal(action):
    """The one sentence of an error that says what to do."""
    with pytest.raises(tw.TilewrightError) as caught:
        action()
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused_build(tmp_path, model, **options):
    """The sentence with which a build ends, having left nothing."""
    before = sorted(tmp_path.rglob("*"))
    said = refusal(lambda: tw.compile(model, tmp_path / "out", **{"target": "cpu", **LIMITS, **options}))
    assert sorted(tmp_path.rglob("*")) == before
    return said


def refused_request(prompt, **params):
    return refusal(lambda: llm().generate([prompt], tw.SamplingParams(**params)))


# -- models ---------------------------------------------------------------------------------------------------------------------
def test_a_missing_directory(tmp_path):
    assert "no such directory" in refused_build(tmp_path, "./no/such/model")


def test_a_directory_without_config(tmp_path, model):
    (model / "config.json").unlink()
    assert "has no config.json" in refused_build(tmp_path, model)


def test_a_checkpoint_of_bin_files_only(tmp_path, model):
    torch.save({}, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    assert "safetensors" in refused_build(tmp_path, model)


def test_an_architecture_that_does_not_trace(tmp_path, model):
    from transformers import MambaConfig

    MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4).save_pretrained(model)
    assert "Mamba" in refused_build(tmp_path, model)


def test_truncated_weights(tmp_path, model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert "model.safetensors" in refused_build(tmp_path, model)


def test_a_weight_that_is_missing(tmp_path, model):
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.0.mlp.up_proj.weight" in refused_build(tmp_path, model)


# -- options --------------------------------------------------------------------------------------------------------------------
def test_an_unknown_pass(tmp_path):
    assert "did you mean" in refused_build(tmp_path, checkpoint(), pipeline="drop-dead-opz")


def test_an_unknown_quantization(tmp_path):
    assert "int7" in refused_build(tmp_path, checkpoint(), quantize="int7")


def test_an_unknown_dtype(tmp_path):
    assert "float32, float16 or bfloat16" in refused_build(tmp_path, checkpoint(), dtype="float8")


def test_an_unknown_target(tmp_path):
    assert "none of cpu, cuda and sm_<number>" in refused_build(tmp_path, checkpoint(), target="tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_asked_for_where_none_is(tmp_path):
    assert "no NVIDIA GPU" in refused_build(tmp_path, checkpoint(), target="cuda")


@pytest.mark.parametrize(
    "limits, said",
    [
        ({"max_input_len": 300}, "past the model's 256 positions"),
        ({"max_input_len": 200, "max_output_len": 57}, "past the model's 256 positions"),
        ({"max_batch_size": 0}, "max_batch_size: is 0"),
        ({"max_batch_size": 8, "max_tokens": 4}, "at least one token for each sequence"),
        ({"page_size": 17}, "page_size: is 17"),
    ],
)
def test_limits_that_cannot_be(tmp_path, limits, said):
    assert said in refused_build(tmp_path, checkpoint(), **limits)


def test_a_destination_that_holds_other_files(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear reader")
    assert "it is no engine" in refused_build(tmp_path, checkpoint())


# -- requests -------------------------------------------------------------------------------------------------------------------
def test_a_prompt_that_is_too_long():
    assert "17 tokens, this engine takes max_input_len=16" in refused_request([1] * 17)


@pytest.mark.parametrize("prompt", [[], ""])
def test_an_empty_prompt(prompt):
    assert "the prompt is empty" in refused_request(prompt)


def test_text_for_an_engine_without_tokenizer():
    assert "has no tokenizer; pass token ids" in refused_request("hello")


@pytest.mark.parametrize("token", [-1, zoo.VOCAB])
def test_a_token_id_outside_the_vocabulary(token):
    assert f"token id {token} is outside the vocabulary of {zoo.VOCAB}" in refused_request([1, token])


def test_a_temperature_that_is_no_number():
    assert "temperature=nan" in refused_request([1], temperature=math.nan)


def test_more_output_than_the_engine_allows():
    assert "max_output_len=8" in refused_request([1], max_tokens=9)


# -- engines --------------------------------------------------------------------------------------------------------------------
def test_an_engine_of_another_schema(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))
    assert "has schema 99, this version reads schema 1; rebuild it with: tilewright build" in refusal(lambda: tw.LLM(copy))


def test_an_engine_whose_weights_are_cut_short(copy):
    file = next((copy / "weights").iterdir())
    file.write_bytes(file.read_bytes()[:-100])
    assert "was changed or cut short" in refusal(lambda: tw.LLM(copy))


def test_a_directory_that_is_no_engine(tmp_path):
    assert "no manifest.json in it; build one with" in refusal(lambda: tw.LLM(tmp_path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_an_engine_for_a_gpu_where_none_is(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "target": "sm_90"}))
    assert "made for sm_90, this machine has no NVIDIA GPU" in refusal(lambda: tw.LLM(copy))


# -- the command line -----------------------------------------------------------------------------------------------------------
def exit_of(capsys, *words):
    """Exit code, stdout and stderr of the program."""
    with pytest.raises(SystemExit) as caught:
        app([str(word) for word in words])
    out, err = capsys.readouterr()
    return caught.value.code, out, err


def test_the_program_says_one_sentence_and_ends_with_2(capsys, tmp_path):
    code, out, err = exit_of(capsys, "build", tmp_path / "nothing", tmp_path / "out")
    assert (code, out) == (2, "")
    assert err.startswith("tilewright: ") and err.count("\n") == 1 and "no such directory" in err


def test_malformed_ir_is_shown_with_its_position(capsys, tmp_path):
    file = tmp_path / "a.ir"
    file.write_text("graph @g(%x: f32[T, 4]) dims(T in 1..8) {\n  %y = raelu(%x) : f32[T, 4]\n  return %y\n}\n")
    code, _, err = exit_of(capsys, "opt", file, "-p", "drop-dead-ops")
    assert code == 2 and f"{file}:2:1" in err and "did you mean 'relu'" in err
