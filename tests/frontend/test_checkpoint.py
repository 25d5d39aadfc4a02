"""Checkpoints: exact tensors, one at a time, and one sentence for everything that can be wrong with a directory."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from zoo import build, save

from tilewright.frontend import checkpoint as checkpoint_module
from tilewright.frontend.checkpoint import Checkpoint, ModelWeights, find_model_directory, read_config
from tilewright.frontend.trace import trace
from tilewright.ir.errors import CheckpointError, TraceError


def meta_model(directory: Path):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(read_config(directory))


def sharded(directory: Path, name: str = "llama2"):
    model = build(name, seed=11)
    model.save_pretrained(directory, max_shard_size="40KB")
    return model


@pytest.mark.parametrize("name", ["llama2", "gpt2", "falcon_40b", "gemma2"])
def test_every_parameter_of_a_sharded_checkpoint_is_exact(tmp_path, name):
    model = sharded(tmp_path, name)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    stored = Checkpoint(tmp_path, meta_model(tmp_path))
    for key, parameter in model.named_parameters():
        assert stored.shape_dtype(key) == (tuple(parameter.shape), torch.float32)
        assert torch.equal(stored.load(key), parameter)


def test_experts_stored_one_by_one_are_stacked_as_transformers_stacks_them(tmp_path):
    sizes = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **sizes, num_local_experts=11))
    model.save_pretrained(tmp_path)
    stored = Checkpoint(tmp_path, meta_model(tmp_path))
    for key, parameter in model.named_parameters():
        assert torch.equal(stored.load(key), parameter), key


def test_a_tied_weight_is_found_under_both_names(tmp_path):
    model = sharded(tmp_path, "llama3")
    stored = Checkpoint(tmp_path, meta_model(tmp_path))
    assert "lm_head.weight" not in stored.names()
    assert torch.equal(stored.load("lm_head.weight"), model.model.embed_tokens.weight)


def test_a_tied_weight_stored_under_the_other_name_is_found(tmp_path):
    model = build("llama3", seed=11)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    assert torch.equal(trace(tmp_path).weights.load("model.embed_tokens.weight"), model.lm_head.weight)


def test_a_tensor_is_read_from_its_own_shard_alone(tmp_path):
    model = sharded(tmp_path)
    stored = Checkpoint(tmp_path, meta_model(tmp_path))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    for other in set(index.values()) - {index["model.norm.weight"]}:
        (tmp_path / other).unlink()
    assert torch.equal(stored.load("model.norm.weight"), model.model.norm.weight)


def test_one_shard_is_open_at_a_time(tmp_path, monkeypatch):
    sharded(tmp_path)
    stored = Checkpoint(tmp_path, meta_model(tmp_path))
    opened = []
    open_shard = checkpoint_module._open_shard
    monkeypatch.setattr(checkpoint_module, "_open_shard", lambda path: opened.append(path.name) or open_shard(path))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    for key in sorted(index, key=lambda k: index[k]):
        stored.load(key)
    assert opened == sorted(set(index.values()))


def test_weights_come_in_the_dtype_of_the_graph(tmp_path):
    model = sharded(tmp_path)
    traced = trace(tmp_path, dtype="bfloat16")
    assert torch.equal(traced.weights.load("model.norm.weight"), model.model.norm.weight.bfloat16())
    assert traced.weights.load("model.rotary_emb.inv_freq").dtype == torch.float32


def test_the_tokenizer_files_are_listed(tmp_path):
    save("gpt2", tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert [path.name for path in trace(tmp_path).tokenizer_files] == ["tokenizer.json", "generation_config.json"]


def test_the_stop_tokens_are_those_of_the_generation_config(tmp_path):
    save("gpt2", tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert trace(tmp_path).info.eos_token_ids == (7, 9)


# -- what is wrong with a directory -------------------------------------------------------------------------------------------------
def test_a_missing_directory_is_named():
    with pytest.raises(CheckpointError, match=r"\./nowhere/at/all: no such directory; pass the directory that holds config.json"):
        trace("./nowhere/at/all")


def test_a_name_that_cannot_be_downloaded_is_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"nobody/nothing-of-the-kind: is neither a local directory nor a model that can be downloaded"):
        find_model_directory("nobody/nothing-of-the-kind")


def test_a_file_in_place_of_a_directory_is_named(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"model\.gguf: is a file; pass the directory"):
        trace(tmp_path / "model.gguf")


def test_a_directory_without_config_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json; pass the directory that save_pretrained wrote"):
        trace(tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"), [("{not json", "is not JSON"), ("{}", "has no model_type"), ('{"model_type": "qwertz"}', "'qwertz' cannot be read")]
)
def test_a_config_that_cannot_be_read_is_named(tmp_path, text, problem):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{problem}"):
        trace(tmp_path)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwertz", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Model"}}')
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\nclass Model: pass\n")
    with pytest.raises(CheckpointError, match="models that need their own code are not run"):
        trace(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_refused_with_the_conversion(tmp_path):
    save("gpt2", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(CheckpointError, match=r"only as pytorch_model\.bin, a pickle.*; convert them: AutoModelForCausalLM.*save_pretrained"):
        trace(tmp_path)


def test_a_directory_without_weights_is_named(tmp_path):
    save("gpt2", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no \*\.safetensors files"):
        trace(tmp_path)


def test_a_truncated_file_is_named(tmp_path):
    save("gpt2", tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is truncated or not a safetensors file \(\d+ bytes: .*; download the file again"):
        trace(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    sharded(tmp_path)
    victim = sorted(tmp_path.glob("*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(CheckpointError, match=f"{victim.name}: the shard is missing"):
        trace(tmp_path)


def test_a_tensor_that_the_index_promises_and_no_shard_holds_is_named(tmp_path):
    sharded(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.extra.weight"] = next(iter(content["weight_map"].values()))
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"lacks 'model\.extra\.weight', which the index says it holds"):
        trace(tmp_path)


def test_a_missing_tensor_is_named_with_the_nearest(tmp_path):
    save("gpt2", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["transformer.h.1.ln_2.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"has no tensor for 'transformer\.h\.1\.ln_2\.weight'; did you mean"):
        trace(tmp_path)


def test_weights_of_another_model_are_refused_before_they_are_loaded(tmp_path):
    save("gpt2", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_inner": 99}))
    with pytest.raises(
        CheckpointError, match=r"@transformer\.h\.0\.mlp\.c_fc\.weight: the checkpoint holds \[48, 192\], config\.json asks for \[48, 99\]"
    ):
        trace(tmp_path)


def test_a_quantized_checkpoint_is_refused(tmp_path):
    save("llama2", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq", "bits": 4}}))
    with pytest.raises(TraceError, match="already quantized"):
        trace(tmp_path)


def test_a_model_without_values_is_refused():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_layer=1, n_embd=24, n_head=2, vocab_size=11))
    with pytest.raises(CheckpointError, match="is on the meta device and has no values"):
        ModelWeights(model)
