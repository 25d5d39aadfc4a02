"""Tuning from the front door: what an engine says of its tiles, what later builds take over, and what is refused before any work starts."""

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest
import torch
import zoo
from serving import LIMITS, checkpoint_of, engine_of, serve

import tilewright as tw
from tilewright.cli import app
from tilewright.codegen.aot import default_cache
from tilewright.codegen.choices import Choice, ChoiceFile, Device
from tilewright.environment import override
from tilewright.inspect.kernels import KernelView, print_kernel
from tilewright.inspect.report.data import collect
from tilewright.ir.errors import TilewrightError
from tilewright.ir.manifest import Manifest
from tilewright.show import kernel_table
from tilewright.stages import Stages

DEVICE = Device("sm_90", "Some GPU", importlib.metadata.version("triton"))


class Timer:
    """Takes every move for faster than the default by a fifth."""

    device = DEVICE

    def __init__(self):
        self.opened = []

    def open(self, plan, limits):
        self.opened.append(plan)
        return self

    def run(self, candidate):
        return {"out": torch.ones(2)}

    def time(self, candidate):
        return 8.0 if candidate.move else 10.0


def build(out, **options):
    return tw.compile(checkpoint_of("llama3"), out, target="sm_90", **LIMITS, **options)


def read_all(directory):
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def make_cache(folder):
    """A cache without tuned tiles; compiled kernels stay where they are."""
    default_cache().mkdir(parents=True, exist_ok=True)
    (folder / "tilewright").mkdir(parents=True)
    (folder / "tilewright" / "kernels").symlink_to(default_cache().resolve())
    return str(folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", make_cache(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def tuned(home):
    timer = Timer()
    return build(home / "engine", tune=timer, tune_candidates=1), timer


def heavy(engine):
    return [kernel for kernel in engine.manifest.kernels if kernel.tuned]


def test_kernels_say_what_was_tuned_and_what_it_gained(tuned):
    engine, timer = tuned
    assert len(heavy(engine)) == len(timer.opened) > 10
    assert Manifest.read(engine.path) == engine.manifest
    for kernel in heavy(engine):
        assert (kernel.tuned.gpu, kernel.tuned.us, kernel.tuned.default_us) == ("Some GPU", 8.0, 10.0) and kernel.tuned.tile
    text = print_kernel(KernelView(engine, heavy(engine)[0]))
    assert "tuned     8.00 us, with the default tile 10.00 us: 20.0% less, on Some GPU" in text
    assert "2 tiles measured" in text and "8.00 us * " in text and "10.00 us   the default" in text
    assert "tuned: 20.0% less time than the default" in kernel_table(engine)


def test_every_trial_is_recorded_and_in_the_report(tuned):
    engine, _ = tuned
    for kernel in heavy(engine):
        lines = (engine.path / "inspect" / "kernels" / kernel.name / "tune.jsonl").read_text().splitlines()
        assert [(json.loads(line)["us"], json.loads(line)["chosen"]) for line in lines] == [(10.0, False), (8.0, True)]
    rows = {row.name: row for row in collect(engine.inspect, lints=False).kernels}
    assert all(len(rows[kernel.name].trials) == 2 and "20.0% less" in rows[kernel.name].tuned for kernel in heavy(engine))


def test_it_generates_what_the_untuned_engine_does(tuned):
    prompts = zoo.ragged_prompts(n=4)
    assert serve(tuned[0], prompts, "cpu") == serve(engine_of("llama3", "sm_90"), prompts, "cpu")


def test_known_tiles_are_not_measured_again(tuned, home):
    engine = build(home / "again", tune=(timer := Timer()))
    assert timer.opened == [] and heavy(engine) == heavy(tuned[0])


def test_its_file_of_tiles_builds_the_same_engine_elsewhere(tuned, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", make_cache(tmp_path / "cache"))
    engine = build(tmp_path / "engine", tuned=tuned[0].path / "inspect" / "tuned.json")
    assert engine.manifest.kernels == tuned[0].manifest.kernels
    assert build(tmp_path / "plain").manifest.kernels == engine_of("llama3", "sm_90").manifest.kernels


def test_the_recorded_command_names_the_tiles(tuned, monkeypatch, tmp_path):
    program = tmp_path / "tilewright"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tilewright "$@"\n')
    program.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin", "XDG_CACHE_HOME": make_cache(tmp_path / "cache")}
    words = ["sh", str(tuned[0].path / "inspect" / "REPRO.sh"), str(tmp_path / "engine")]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Manifest.read(tmp_path / "engine").kernels == tuned[0].manifest.kernels
    assert "--tuned none" in (engine_of("llama3", "sm_90").path / "inspect" / "REPRO.sh").read_text()


def test_a_build_without_tiles_has_the_bytes_that_it_had(home, tmp_path):
    build(tmp_path / "a", tuned="none")
    build(tmp_path / "b", tuned="none")
    found = read_all(tmp_path / "a")
    assert found == read_all(tmp_path / "b")
    assert b"tuned" not in found["manifest.json"] and not any("tune" in name for name in found)


class Impatient(Timer):
    def open(self, plan, limits):
        if len(self.opened) == 2:
            raise KeyboardInterrupt
        return super().open(plan, limits)


def test_an_interrupted_build_says_what_it_keeps(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", make_cache(tmp_path / "cache"))
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "engine", tune=Impatient(), tune_candidates=1, stages=Stages(lines=True))
    file = tmp_path / "cache" / "tilewright" / "tuned" / DEVICE.file_name
    assert f"tune: stopped after 2 kernels, whose tiles are kept in {file}" in capsys.readouterr().err
    assert len(ChoiceFile.read(file).choices) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


# -- what is refused ------------------------------------------------------------------------------------------------------------
def refuse(tmp_path, message, target="sm_90", **options):
    with pytest.raises(TilewrightError, match=message):
        tw.compile("no model is looked for", tmp_path / "engine", target=target, **options)
    assert not (tmp_path / "engine").exists()


def test_a_cpu_target_has_no_tiles(tmp_path):
    refuse(tmp_path, "tune: the target is cpu, whose kernels are torch code without tiles; leave tune out", target="cpu", tune=True)
    refuse(tmp_path, "tuned: is 'x.json', and the target is cpu", target="cpu", tuned="x.json")


def test_another_gpu_than_the_targets_measures_nothing_for_it(tmp_path):
    refuse(tmp_path, "tune: the target is sm_80, and the GPU here, Some GPU, is sm_90; tune where there is a sm_80", target="sm_80", tune=Timer())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_machine_without_a_gpu_measures_nothing(tmp_path, capsys):
    refuse(tmp_path, "tune: this machine has no NVIDIA GPU that torch can use", tune=True)
    with pytest.raises(SystemExit) as ended:
        app(["build", str(checkpoint_of("llama3")), str(tmp_path / "engine"), "--target", "sm_90", "--tune", "--tune-seconds", "5"])
    assert ended.value.code == 2 and "tune: this machine has no NVIDIA GPU" in capsys.readouterr().err


def test_the_interpreter_measures_nothing(tmp_path):
    with override({"interpret": "1"}):
        refuse(tmp_path, "tune: kernels would run in the interpreter", tune=True)


def test_bounds_and_files_are_checked_first(tmp_path):
    refuse(tmp_path, "tune_seconds: is 5, and nothing is to be tuned", tune_seconds=5)
    refuse(tmp_path, "tuning budget: candidates: is 0; pass a number greater than 0", tune=Timer(), tune_candidates=0)
    refuse(tmp_path, "nothing.json: cannot be read", tuned=tmp_path / "nothing.json")
    other = tmp_path / "other.json"
    ChoiceFile(Device("sm_80", "Old GPU", DEVICE.triton), {"linear": Choice("linear", "0", {}, 1.0, 1.0)}).write(other)
    refuse(tmp_path, "other.json: measured for sm_80, this build is for sm_90", tuned=other)


# -- on a GPU -------------------------------------------------------------------------------------------------------------------
@pytest.mark.gpu
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_on_a_gpu(tmp_path, monkeypatch, quantize):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model, prompts = checkpoint_of("llama3"), zoo.ragged_prompts(n=8)
    plain = tw.compile(model, tmp_path / "plain", target="cuda", quantize=quantize, tuned="none", **LIMITS)
    first = tw.compile(model, tmp_path / "first", target="cuda", quantize=quantize, tune=True, tune_candidates=6, tune_seconds=120, **LIMITS)
    (file,) = (tmp_path / "cache" / "tilewright" / "tuned").iterdir()
    choices = ChoiceFile.read(file).choices.values()
    assert len(choices) > 10 and all(0 < choice.us <= choice.default_us for choice in choices)
    assert len(trials_of(first)) > 3 * len(choices)
    second = tw.compile(model, tmp_path / "second", target="cuda", quantize=quantize, **LIMITS)
    assert second.manifest.kernels == first.manifest.kernels
    assert serve(second, prompts)[0] == serve(plain, prompts)[0]


@pytest.mark.gpu
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_no_candidate_is_wrong_on_a_gpu(tmp_path, monkeypatch, quantize):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = checkpoint_of("llama3", torch.bfloat16)
    engine = tw.compile(model, tmp_path / "engine", target="cuda", quantize=quantize, tune=True, tune_candidates=12, **LIMITS)
    found = trials_of(engine)
    assert sum(trial["us"] is not None for trial in found) > 50 and not [trial for trial in found if trial["note"].startswith("wrong")]


@pytest.mark.gpu
def test_a_tuned_deterministic_engine_stays_deterministic(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model, prompts = checkpoint_of("llama3", torch.bfloat16), zoo.ragged_prompts(n=8, seed=4)
    engine = tw.compile(model, tmp_path / "engine", target="cuda", deterministic=True, tune=True, tune_candidates=12, **LIMITS)
    assert len(trials_of(engine)) > 20
    assert serve(engine, prompts)[0] == [serve(engine, [prompt])[0][0] for prompt in prompts]


def trials_of(engine):
    return [json.loads(line) for path in engine.path.glob("inspect/kernels/*/tune.jsonl") for line in path.read_text().splitlines()]
