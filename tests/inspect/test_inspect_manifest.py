"""`inspect/` describes itself, is the same for equal builds, holds nothing private, and is refused where another version wrote it."""

import getpass
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import zoo
from recorded import engine, engine_run

import tilewright as tw
from tilewright.inspect import load
from tilewright.ir.errors import EngineError

TESTS = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden" / "schema-1"


def test_the_manifest_tells_of_each_pass_what_the_run_reads():
    run = engine_run("llama3", quantize="int8")
    manifest = run.manifest
    assert manifest is not None and manifest.schema == 1 and manifest.target == "cpu" and "torch" in manifest.versions
    assert manifest.pipeline == (run.path / "inspect" / "pipeline.txt").read_text().strip()
    assert hashlib.sha256((run.folder / "00-import.ir").read_bytes()).hexdigest() == manifest.imported
    before = manifest.imported
    for record, entry in zip(run.passes, manifest.passes, strict=True):
        assert (record.number, record.name, record.status) == (entry.number, entry.name.partition("{")[0], entry.status)
        assert (entry.ops_before, entry.ops_after) == (len(record.before), len(record.after))
        assert (entry.num_events, entry.num_misses) == (len(record.events), len(record.misses))
        text = run.folder / f"{record.stem}.ir"
        before = hashlib.sha256(text.read_bytes()).hexdigest() if entry.status == "changed" else before
        assert entry.sha256 == before
    assert run["tabulate-positions"].title == "09 tabulate-positions{length=24}"


def test_regions_name_the_values_that_their_kernels_compute():
    run = engine_run("llama3", quantize="int8")
    launched = {(p.name, launch.region) for p in run.engine.manifest.programs for launch in p.launches}
    assert {(r.program, r.name) for r in run.regions} == launched
    computed = {name for region in run.regions for name in region.values}
    assert computed >= {v.name for op in run.final.ops for v in op.results if not v.is_const}


# -- equal builds ---------------------------------------------------------------------------------------------------------------
BUILD = """
import sys
sys.path.insert(0, {tests!r})
import tilewright as tw
tw.compile({model!r}, {out!r}, target="cpu", quantize="int8", max_input_len=16, max_output_len=8)
"""


def test_two_builds_are_equal_whatever_the_hash_seed_folder_and_threads(tmp_path):
    model = str(zoo.save("llama3", tmp_path / "model", layers=3))
    builds = []
    for seed, threads in (("1", "1"), ("77", "2")):
        cwd = tmp_path / f"cwd-{seed}"
        cwd.mkdir()
        out = cwd / "engine"
        env = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads}
        code = BUILD.format(tests=str(TESTS), model=model, out=str(out))
        subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, check=True, capture_output=True)
        files = [f for part in ("inspect", "kernels") for f in (out / part).rglob("*") if f.is_file()]
        builds.append({f.relative_to(out).as_posix(): f.read_bytes() for f in files})
    assert builds[0] == builds[1]
    assert any(name.startswith("inspect/passes/") for name in builds[0]) and any(name.startswith("kernels/") for name in builds[0])


def test_nothing_private_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "somebody"))
    monkeypatch.setenv("SECRET_TOKEN", "hunter2hunter2")
    model = zoo.save("llama3", tmp_path / "home" / "somebody" / "models" / "llama")
    out = tw.compile(model, tmp_path / "engine", target="cpu", max_input_len=16, max_output_len=8).path
    weights = zoo.build("llama3").state_dict()["model.norm.weight"]
    private = [str(tmp_path), str(Path.cwd()), "hunter2", "SECRET_TOKEN", "site-packages", f"{float(weights[0]):.4f}"]
    private += [name for name in (f"/home/{getpass.getuser()}", f"/{getpass.getuser()}/", socket.gethostname()) if len(name) > 3]
    for file in (out / "inspect").rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert weights.numpy().tobytes() not in data
            found = [word for word in private if word in data.decode()]
            assert not found, f"{file.name} holds {found}"
    assert 'build "$HOME"/models/llama "$1"' in (out / "inspect" / "REPRO.sh").read_text()


# -- other versions -------------------------------------------------------------------------------------------------------------
def test_a_folder_of_schema_1_opens():
    run = load(GOLDEN)
    assert [(p.name, p.status) for p in run.passes] == [
        ("simplify", "changed"), ("raise-bias", "same"), ("merge-equal-ops", "same"), ("raise-rms-norm", "changed"), ("fuse-qkv", "same"),
    ]  # fmt: skip
    assert len(run.final.find("rms_norm")) == 7 and run.graph(0).name == "llama"
    assert len(run["raise-rms-norm"].events) == 7 and len(run["raise-bias"].misses) == 6
    assert "05 raise-rms" not in str(run) and "ops" in str(run) and run.regions
    assert run["raise-rms-norm"].diff() and run.why("raise-rms-norm") and str(run.blame("model.norm"))


def test_a_folder_of_another_schema_is_refused_with_both_numbers(tmp_path):
    copy = shutil.copytree(GOLDEN, tmp_path / "run")
    data = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**data, "schema": 99}))
    with pytest.raises(EngineError, match="has inspection schema 99, this version reads schema 1; build the engine again"):
        load(copy)


@pytest.mark.parametrize("name", ["manifest.json", "regions.jsonl", "passes/01-simplify.events.jsonl", "passes/00-import.ir"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    copy = shutil.copytree(GOLDEN, tmp_path / "run")
    (copy / name).write_text('{"n": "0", "event": {}')
    with pytest.raises(tw.TilewrightError, match=name.partition("/")[0] if name == "manifest.json" else name):
        run = load(copy)
        print(run["simplify"].events, run.graph(0), run.regions)


def test_an_engine_s_inspect_folder_opens_on_its_own():
    out = engine("llama3")
    run = load(out / "inspect")
    assert len(run) == len(engine_run("llama3")) and run.regions and run.manifest
    assert "region" in str(run.tensor("model.layers.0.mlp.mul"))
