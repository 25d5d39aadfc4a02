"""Profiles are kept beside an engine, which stays the same engine, and the report shows them: parts and whole, limits, and what cannot be."""

import dataclasses
import json
import shutil

import pytest
from recorded import engine as engine_of

import tilewright as tw
from tilewright.cli import app
from tilewright.inspect import load
from tilewright.inspect.perf import read_profiles
from tilewright.inspect.report.data import collect
from tilewright.inspect.report.time_rows import collect_profiles
from tilewright.inspect.substitute import substitute
from tilewright.ir.errors import EngineError


def call(*words):
    with pytest.raises(SystemExit) as ended:
        app([str(word) for word in words])
    assert not ended.value.code


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """An engine with two profiles: one as measured here, one on a machine with known limits."""
    out = tmp_path_factory.mktemp("profiled") / "engine"
    shutil.copytree(engine_of("llama3"), out)
    for batch in (1, 3):
        call("profile", out, "--batch", batch, "--context", 16)
    (file,) = (out / "inspect" / "perf").glob("decode*-batch-3-*.json")
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, "device": "Somebody's GPU", "read_limit": 1e12, "compute_limit": 4e12, "wall_us": data["step_us"] + 100}))
    return out


def test_what_is_kept_says_where_and_when_and_the_engine_stays_the_same(profiled):
    first, second = read_profiles(load(profiled))
    assert (first.batch, second.batch, second.device) == (1, 3, "Somebody's GPU")
    assert "CPU" in first.device and first.read_limit is None and first.date[:2] == "20" and {"torch", "tilewright"} <= set(first.versions)
    assert [launch.kernel for launch in first.launches] == [
        launch.kernel for p in load(profiled).engine.manifest.programs if p.name == first.program for launch in p.launches
    ]
    assert tw.LLM(profiled).generate([[1, 2, 3]], tw.SamplingParams(max_tokens=2))[0].token_ids  # hashes are checked


def test_times_of_kernels_and_modules_add_up(profiled):
    for step in collect(load(profiled), lints=False).profiles:
        assert sum(row.us for row in step.kernels) == pytest.approx(step.sum_us) == pytest.approx(sum(us for _, _, us in step.launches))
        assert step.modules["model"] <= step.sum_us * 1.0001 and step.modules["model.layers.{L}.mlp"] <= step.modules["model.layers.{L}"]
        assert [row.us for row in step.kernels] == sorted((row.us for row in step.kernels), reverse=True)


def test_the_limit_that_binds_is_the_larger_of_bytes_and_operations(profiled):
    profile = read_profiles(load(profiled))[1]
    launch = dataclasses.replace(profile.launches[0], num_bytes=3_000_000, operations=0)
    assert profile.least_us(launch) == pytest.approx(3.0)
    assert profile.least_us(dataclasses.replace(launch, operations=40_000_000)) == pytest.approx(10.0)


def test_what_cannot_be_is_a_warning(profiled):
    run = load(profiled)
    _, step = collect_profiles(run)
    assert any(note.startswith("A step as the runtime runs it takes 100.0 µs more") for note in step.notes)
    (file,) = (profiled / "inspect" / "perf").glob("decode*-batch-3-*.json")
    before = file.read_text()
    data = json.loads(before)
    data["launches"][0] |= {"us": 1.0, "num_bytes": 4_000_000}
    data["step_us"] = 2 * sum(launch["us"] for launch in data["launches"])
    file.write_text(json.dumps(data))
    notes = collect_profiles(run)[1].notes
    file.write_text(before)
    assert any(note.startswith("! The launches one by one add up to 50.0% less") for note in notes)
    assert any(note.startswith(f"! {data['launches'][0]['kernel']} is at ") for note in notes)


def test_a_profile_of_another_schema_is_refused(profiled, tmp_path):
    copy = shutil.copytree(profiled / "inspect", tmp_path / "inspect")
    (copy / "perf" / "x.json").write_text('{"schema": 9}')
    with pytest.raises(EngineError, match="profile schema 9, this version reads schema 1"):
        read_profiles(load(copy))


def test_an_exchanged_kernel_has_no_times(profiled, tmp_path):
    kernel = load(profiled).engine.manifest.kernels[0]
    source = tmp_path / "mine.py"
    source.write_text((profiled / kernel.file).read_text() + "\n# mine\n")
    assert read_profiles(substitute(profiled, tmp_path / "out", {kernel.name: source})) == ()
