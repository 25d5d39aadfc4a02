"""Weights read, hashed and copied in one pass, compared with what safetensors reads; and files that are not what the manifest says."""

import hashlib
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tilewright.ir.errors import EngineError
from tilewright.ir.manifest import Weight
from tilewright.runtime.dtypes import TORCH_DTYPES
from tilewright.runtime.weight_stream import WeightStream

NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
CPU = torch.device("cpu")


@pytest.fixture
def files(tmp_path):
    """Three files of tensors of several types, most of them where no kernel could read them."""
    torch.manual_seed(5)
    contents = {
        "a.safetensors": {"wide": torch.randn(37, 11, dtype=torch.bfloat16), "odd": torch.randn(3).half(), "scale": torch.randn(5)},
        "b.safetensors": {"ints": torch.randint(-128, 127, (13, 7), dtype=torch.int8), "flags": torch.rand(9) > 0.5},
        "c.safetensors": {"empty": torch.zeros(0, 4), "long": torch.arange(6)},
    }
    weights = []
    for name, tensors in contents.items():
        save_file(tensors, tmp_path / name, metadata={"format": "pt"})
        weights += [Weight(key, NAMES[t.dtype], tuple(t.shape), name) for key, t in tensors.items()]
    hashes = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in contents}
    return SimpleNamespace(directory=tmp_path, weights=tuple(weights), hashes=hashes)


def load(files, weights=None, *, verify=True, buffer_bytes=64):
    stream = WeightStream(files.directory, CPU, files.hashes if verify else {}, buffer_bytes=buffer_bytes)
    return stream.load(files.weights if weights is None else weights)


@pytest.mark.parametrize("buffer_bytes", [1, 64, 1 << 20])
def test_tensors_are_those_of_safetensors_and_aligned(files, buffer_bytes):
    found = load(files, buffer_bytes=buffer_bytes)
    expected = {key: tensor for name in files.hashes for key, tensor in load_file(files.directory / name).items()}
    assert list(found) == [weight.name for weight in files.weights]
    for key, tensor in found.items():
        assert tensor.dtype == expected[key].dtype and torch.equal(tensor, expected[key])
        assert tensor.data_ptr() % 16 == 0


def change(path, edit):
    data = bytearray(path.read_bytes())
    path.write_bytes(edit(data))


def flip_last(data):
    data[-1] ^= 1
    return data


@pytest.mark.parametrize("edit", [flip_last, lambda data: data[:-3], lambda data: data[:5], lambda data: data + b"x", lambda data: b""])
def test_a_changed_file_is_told_by_its_hash(files, edit):
    change(files.directory / "b.safetensors", edit)
    with pytest.raises(EngineError, match=r"'b.safetensors' has sha256 .*it was changed or cut short; copy the directory again"):
        load(files)


@pytest.mark.parametrize("edit", [lambda data: data[:-3], lambda data: data[:5], lambda data: b"\xff" * 100, lambda data: b""])
def test_a_file_cut_short_is_told_without_hashes_too(files, edit):
    change(files.directory / "a.safetensors", edit)
    with pytest.raises(EngineError, match=r"a\.safetensors is not a whole safetensors file"):
        load(files, verify=False)


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (Weight("scale", "f32", (6,), "a.safetensors"), r"scale is f32\[5\] of 20 bytes in a.safetensors, the manifest says f32\[6\]"),
        (Weight("scale", "i32", (5,), "a.safetensors"), r"scale is f32\[5\] .*says i32\[5\]"),
        (Weight("other", "f32", (5,), "a.safetensors"), "a.safetensors has no tensor 'other'"),
        (Weight("w", "f32", (5,), "none.safetensors"), "none.safetensors cannot be read"),
    ],
)
def test_a_tensor_that_is_not_the_manifests_is_refused_with_both_sides(files, weight, said):
    with pytest.raises(EngineError, match=said):
        load(files, (weight,), verify=False)


def test_a_header_that_lies_about_a_tensors_bytes_is_refused(files):
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}}).encode()
    (files.directory / "d.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(EngineError, match=r"w is f32\[4\] of 12 bytes"):
        load(files, (Weight("w", "f32", (4,), "d.safetensors"),), verify=False)
