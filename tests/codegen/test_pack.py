"""Engine directories: whole or absent, the same bytes for the same input, what their manifest says."""

import hashlib

import pytest
import torch
from codegen_toys import FUSED_CUTS, LIMITS, ToyWeights, lower_toy, toy_graph
from safetensors.torch import load_file

from tilewright.codegen import weight_files
from tilewright.codegen.pack import pack
from tilewright.ir.errors import CheckpointError, EngineError
from tilewright.ir.interpreter import evaluate_constant
from tilewright.ir.manifest import Manifest, ModelInfo

MODEL = ModelInfo("toy", "ToyForCausalLM", 37, "f32", "int8", 12345, 64, None, (2,))
FILES = {"tokenizer.json": b"{}", "inspect/passes/00.ir": b"graph"}


def pack_toy(out, weights=None, **options):
    graph = toy_graph(int8=True)
    lowered = lower_toy(graph, "cpu", FUSED_CUTS)
    weights = weights or ToyWeights(graph)
    return pack(out, lowered, weights, model=MODEL, limits=LIMITS, producer="0.0", files=FILES, **options), lowered, weights


def read_all(directory):
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_the_manifest_reads_back_and_every_file_has_its_hash(tmp_path):
    manifest, lowered, _ = pack_toy(tmp_path / "engine")
    assert Manifest.read(tmp_path / "engine") == manifest
    files = read_all(tmp_path / "engine")
    del files["manifest.json"]
    assert {name: hashlib.sha256(data).hexdigest() for name, data in files.items()} == manifest.files
    assert {"tokenizer.json", "inspect/passes/00.ir", lowered.kernels[0].file} <= set(files)


def test_weights_are_the_evaluated_constants(tmp_path):
    manifest, lowered, weights = pack_toy(tmp_path / "engine")
    stored = {}
    for file in {w.file for w in manifest.weights}:
        stored |= load_file(tmp_path / "engine" / file)
    assert list(stored) and set(stored) == {w.name for w in manifest.weights}
    quantized = evaluate_constant(lowered.constants["layers.1.qkv.weight.q"], weights)
    assert torch.equal(stored["layers.1.qkv.weight.q"], quantized.data)
    assert torch.equal(stored["layers.1.qkv.weight.q.scale"], quantized.scale)
    assert torch.equal(stored["embed.weight"], weights.load("embed.weight"))


def test_packing_twice_gives_the_same_bytes(tmp_path):
    pack_toy(tmp_path / "a")
    pack_toy(tmp_path / "b")
    assert read_all(tmp_path / "a") == read_all(tmp_path / "b")


def test_an_engine_is_replaced_and_nothing_else_is_left(tmp_path):
    pack_toy(tmp_path / "engine")
    (tmp_path / "engine" / "stale").write_text("x")
    pack_toy(tmp_path / "engine")
    assert [p.name for p in tmp_path.iterdir()] == ["engine"] and not (tmp_path / "engine" / "stale").exists()


def test_a_foreign_directory_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(EngineError, match=r"holds files and no manifest.json"):
        pack_toy(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_failing_build_leaves_nothing(tmp_path):
    class Broken(ToyWeights):
        def load(self, name):
            if name == "layers.1.down.weight":
                raise CheckpointError(name, "is cut short")
            return super().load(name)

    with pytest.raises(CheckpointError):
        pack_toy(tmp_path / "engine", Broken(toy_graph(int8=True)))
    assert list(tmp_path.iterdir()) == []


def test_files_are_split_by_size_and_a_tensor_is_loaded_when_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "SHARD_BYTES", 4000)
    steps = []
    manifest, lowered, _ = pack_toy(tmp_path / "engine", progress=lambda *step: steps.append(step))
    assert len({w.file for w in manifest.weights}) > 3
    assert [s for s in steps if s[0] == "weights"][-1][1:3] == (len(lowered.constants), len(lowered.constants))
