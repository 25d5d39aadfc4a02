"""What a new user may get wrong, each answered by one sentence that says what to do, and nothing half written."""

import errno
import json
import math
import os
import shutil
import signal
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import zoo
from safetensors.torch import load_file, save_file

import tilewright as tw
from tilewright.cli import app
from tilewright.ir.manifest import SCHEMA

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
    said = refusal(lambda: tw.compile(model, **{"out": tmp_path / "out", "target": "cpu", **LIMITS, **options}))
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


@pytest.mark.parametrize("thing, kind", [(None, "NoneType"), (7, "int"), (torch.nn.Linear(2, 2), "Linear")])
def test_something_that_is_no_model(tmp_path, thing, kind):
    assert f"model: is a {kind}; pass a directory, a hub id, or a transformers causal language model" in refused_build(tmp_path, thing)


def test_a_config_with_a_field_of_another_type(tmp_path, model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))
    assert "'hidden_size' expected int, got str" in refused_build(tmp_path, model)


def test_a_hub_id_without_network(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = refused_build(tmp_path, "someone/some-model-that-is-not-here")
    assert said.startswith("someone/some-model-that-is-not-here: is neither a local directory nor a model that can be downloaded")


# -- options --------------------------------------------------------------------------------------------------------------------
def test_an_unknown_pass(tmp_path):
    assert "did you mean" in refused_build(tmp_path, checkpoint(), pipeline="drop-dead-opz")


@pytest.mark.parametrize("quantize", ["int3", "", 8])
def test_an_unknown_quantization(tmp_path, quantize):
    said = refused_build(tmp_path, checkpoint(), quantize=quantize)
    assert said == f"quantize: is {quantize!r}; use none, int8, int8-keep-head or the text of a pass"


def test_a_pipeline_that_is_no_text(tmp_path):
    assert "pipeline: is a list" in refused_build(tmp_path, checkpoint(), pipeline=["simplify"])


@pytest.mark.parametrize("dtype", ["float8", "", 8, torch.float64])
def test_an_unknown_dtype(tmp_path, dtype):
    assert "float32, float16 or bfloat16" in refused_build(tmp_path, checkpoint(), dtype=dtype)


@pytest.mark.parametrize("target", ["tpu", "", 90])
def test_an_unknown_target(tmp_path, target):
    assert "none of cpu, cuda and sm_<number>" in refused_build(tmp_path, checkpoint(), target=target)


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


@pytest.mark.parametrize("out, said", [("letter.txt/engine", "Not a directory"), ("x" * 300, "File name too long"), ("a\0b", "null byte")])
def test_a_destination_where_nothing_can_be_written(tmp_path, out, said):
    (tmp_path / "letter.txt").write_text("dear reader")
    assert said in refused_build(tmp_path, checkpoint(), out=tmp_path / out)


def test_a_destination_on_a_file_system_that_takes_no_files(tmp_path):
    assert "engine '/proc/engines/a': cannot be written there" in refused_build(tmp_path, checkpoint(), out="/proc/engines/a")


def test_a_destination_that_is_a_mount_point(tmp_path, monkeypatch):
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path / "out")
    assert "is a mount point" in refused_build(tmp_path, checkpoint())


def test_a_destination_that_is_a_link_is_written_where_it_leads(tmp_path, copy):
    (tmp_path / "link").symlink_to(copy)
    built = tw.compile(checkpoint(), tmp_path / "link", target="cpu", **LIMITS)
    assert built.path == copy and (tmp_path / "link").is_symlink()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["engine", "link"]


def test_a_destination_that_is_no_path(tmp_path):
    assert "out: is a NoneType" in refused_build(tmp_path, checkpoint(), out=None)


@pytest.mark.parametrize("out", ["new/folder/engine", "engine"])
def test_a_disk_that_fills_up_leaves_what_was_there(tmp_path, monkeypatch, copy, out):
    def fill(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tilewright.codegen.pack.write_shard", fill)
    assert "No space left on device" in refused_build(tmp_path, checkpoint(), out=tmp_path / out)
    assert tw.LLM(copy).generate([[1, 2]], tw.SamplingParams(max_tokens=2))[0].finish_reason == "length"


def test_an_engine_survives_a_rebuild_from_weights_that_are_cut_short(tmp_path, copy, model):
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    refused_build(tmp_path, model, out=copy)
    assert tw.LLM(copy).generate([[1, 2]], tw.SamplingParams(max_tokens=2))[0].finish_reason == "length"


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


@pytest.mark.parametrize("prompts", [None, 5, {"prompt": "hello"}, b"hello"])
def test_something_that_is_no_prompt(prompts):
    said = refusal(lambda: llm().generate(prompts))
    assert said == f"prompt 0: the prompt is a {type(prompts).__name__}; pass text, a list of token ids or a list of chat messages"


@pytest.mark.parametrize("params", [{"max_tokens": 3}, 7, [{"max_tokens": 3}]])
def test_sampling_parameters_of_another_type(params):
    assert "pass SamplingParams(" in refusal(lambda: llm().generate([[1]], params))


def test_a_temperature_that_overflows():
    assert "temperature=1e+300; pass a number from 0 to 1e+30" in refused_request([1], temperature=1e300)


# -- engines --------------------------------------------------------------------------------------------------------------------
def test_an_engine_of_another_schema(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "schema": 99}))
    assert f"has schema 99, this version reads schema {SCHEMA}; rebuild it with: tilewright build" in refusal(lambda: tw.LLM(copy))


def test_an_engine_whose_weights_are_cut_short(copy):
    file = next((copy / "weights").iterdir())
    file.write_bytes(file.read_bytes()[:-100])
    assert "was changed or cut short" in refusal(lambda: tw.LLM(copy))


def test_a_kernel_that_was_tampered_with(copy):
    file = next((copy / "kernels").glob("*.py"))
    file.write_text(file.read_text() + "\nraise SystemExit('other code ran')\n")
    assert "was changed or cut short" in refusal(lambda: tw.LLM(copy))


@pytest.mark.parametrize("place", ["kernels/other.py", "../other.py"])
def test_a_kernel_that_the_manifest_has_no_hash_for(copy, place):
    (copy / place).write_text("raise SystemExit('other code ran')\n")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["kernels"][0]["file"] = place
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert f"manifest.json has no hash for {place!r}" in refusal(lambda: tw.LLM(copy))


@pytest.mark.parametrize("tokens", [0, -4, 1.5, "64", True])
def test_a_cache_of_no_size(tokens):
    assert f"max_cache_tokens: is {tokens!r}; pass at least" in refusal(lambda: tw.LLM(engine(), max_cache_tokens=tokens))


def test_a_cache_larger_than_the_engine_can_use_is_as_large_as_it_can_use():
    limits = llm().manifest.limits
    assert tw.LLM(engine(), max_cache_tokens=10**15).runner.num_pages == limits.max_batch_size * limits.max_pages_per_sequence


@pytest.mark.parametrize("device", ["tpu", "mps", 1.5])
def test_a_device_that_engines_do_not_run_on(device):
    assert "pass cuda, cuda:1 or cpu" in refusal(lambda: tw.LLM(engine(), device=device))


def test_a_model_where_an_engine_is_wanted():
    said = refusal(lambda: tw.LLM(checkpoint()))
    assert "is a model, not an engine" in said and f"tilewright build {checkpoint()} OUT" in said


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


@pytest.mark.parametrize(
    "words, said",
    [
        (["build"], "tilewright build: Missing argument"),
        (["buidl", "a", "b"], "No such command 'buidl'"),
        (["run", "engine", "--temperature", "hot"], "tilewright run: Invalid value for '--temperature'"),
        (["run", "engine", "--top-q", "1"], "No such option: --top-q"),
        (["bench", "latency", "engine", "--repeat", "0"], "Invalid value for '--repeat'"),
    ],
)
def test_words_that_cannot_be_are_answered_by_one_sentence(capsys, words, said):
    code, out, err = exit_of(capsys, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err and err.endswith(" --help\n")


@pytest.mark.parametrize(
    "words, said",
    [
        (["throughput", "--prompt-lens", "9", "4"], "--prompt-lens is 9 4; pass whole numbers of at least 1, the smaller one first"),
        (["throughput", "--output-lens", "0", "4"], "--output-lens is 0 4"),
        (["latency", "--outputs", "4", "4"], "--outputs is 4 4"),
        (["latency", "--prompt-len", "17"], "--prompt-len is 17, this engine has max_input_len=16"),
    ],
)
def test_lengths_that_cannot_be_timed(capsys, words, said):
    code, _, err = exit_of(capsys, "bench", words[0], engine(), *words[1:])
    assert code == 2 and said in err


def test_a_file_that_opt_cannot_write(capsys, tmp_path):
    (tmp_path / "a.ir").write_text("graph @g(%x: f32[T, 4]) dims(T in 1..8) {\n  %y = relu(%x) : f32[T, 4]\n  return %y\n}\n")
    code, _, err = exit_of(capsys, "opt", tmp_path / "a.ir", "-p", "simplify", "-o", tmp_path / "no" / "b.ir")
    assert code == 2 and f"{tmp_path}/no/b.ir: cannot be written" in err


def test_a_build_that_is_killed_leaves_nothing(capsys, monkeypatch, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("tilewright.codegen.pack.write_shard", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    code, _, _ = exit_of(capsys, "build", checkpoint(), tmp_path / "out", "--target", "cpu", "--max-input-len", "16", "--max-output-len", "8")
    signal.signal(signal.SIGTERM, before)
    assert code == 128 + signal.SIGTERM and not list(tmp_path.iterdir())
