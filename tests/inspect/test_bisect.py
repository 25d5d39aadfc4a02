"""A pass that spoils one of its rewrites is found with that rewrite, in few runs, with a file that shows it alone."""

import json
import shutil
import subprocess

import faulty_passes  # noqa: F401  # registers what is searched for
import pytest
import studied
import torch
from warm_python import warm_python

from tilewright.inspect import load
from tilewright.inspect.bisect import Bisection
from tilewright.inspect.blackbox import BlackBox, judge_by
from tilewright.inspect.engine_steps import EngineSteps
from tilewright.inspect.metrics import Gate, GateError, relative_error
from tilewright.inspect.numerics import changed_numbers
from tilewright.inspect.resume import build_engine, num_questions
from tilewright.ir.reference import REFERENCES
from tilewright.runtime.engine import Engine
from tilewright.runtime.engine_files import hash_file

EVENTS = 2 * studied.LAYERS  # residuals of corrupt-nth


def spoiled_run(n, target="cpu"):
    return studied.run_of("qwen2", target=target, pipeline=f"default,corrupt-nth{{n={n}}}")


def run_alone(file):
    return subprocess.run([warm_python(), str(file)], capture_output=True, text=True)


@pytest.mark.parametrize("n", [1, EVENTS // 2, EVENTS])
def test_pass_and_event_are_named_and_the_repro_fails_alone(n, tmp_path):
    run = spoiled_run(n)
    ladder = Bisection(studied.bench_of(run, "qwen2"), Gate.parse("rel<1e-4"), tmp_path, str(studied.checkpoint_of("qwen2")))
    found = ladder.find()
    layer, value = (n - 1) // 2, ["add", "add.1"][(n - 1) % 2]
    print(found)
    assert found.where == "pass 23 corrupt-nth" and (found.event, found.num_events) == (n, EVENTS)
    assert found.value == f"%model.layers.{layer}.{value}" and found.isolated > 1e-3 and found.siblings == n - 1
    assert str(found).startswith(f"pass 23 corrupt-nth, event {n} of {EVENTS}, L={layer} {value}: isolated rel. error ")
    assert str(found).endswith(f"x floor; {n - 1} sibling event{'' if n == 2 else 's'} clean; repro: {tmp_path / 'repro.py'}")
    ended = run_alone(found.repro)
    assert ended.returncode == 1 and "corrupt-nth" in ended.stdout, ended.stderr


def test_the_repro_ends_well_once_the_pass_is_mended(tmp_path):
    run = spoiled_run(3)
    found = Bisection(studied.bench_of(run, "qwen2"), Gate.parse("rel<1e-4"), tmp_path).find()
    mended = found.repro.read_text().replace("corrupt-nth{n=3}", "corrupt-nth{n=99}")
    (tmp_path / "mended.py").write_text(mended)
    ended = run_alone(tmp_path / "mended.py")
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("n", [1, EVENTS])
def test_a_black_box_needs_few_runs(n, tmp_path):
    run = spoiled_run(n)
    bench = studied.bench_of(run, "qwen2")

    def judge(engine):
        logits = EngineSteps(Engine.load(engine), bench.study.references.sample).logits()
        error = relative_error(logits, bench.study.expected)
        return f"rel is {error}" if error > 1e-4 else ""

    box = BlackBox(Bisection(bench, Gate.parse("rel<1e-4"), tmp_path), judge)
    found = box.find()
    assert found.where == "pass 23 corrupt-nth" and (found.event, found.num_events, found.siblings) == (n, EVENTS, n - 1)
    assert found.num_runs == box.num_runs <= 2 + num_questions(len(run.passes)) + num_questions(EVENTS)
    assert run_alone(found.repro).returncode == 1
    again = BlackBox(Bisection(bench, Gate.parse("rel<1e-4"), tmp_path), judge)
    assert again.find().event == n and again.num_runs == 2


@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
def test_an_engine_can_be_built_after_every_pass(name, tmp_path):
    run = studied.run_of(name)
    bench = studied.bench_of(run, name)
    for number in changed_numbers(run):
        engine = build_engine(run, run.graph(number), bench.study.references.weights, tmp_path / str(number))
        logits = EngineSteps(Engine.load(engine), bench.study.references.sample).logits()
        assert relative_error(logits, bench.study.expected) < 1e-5


def test_a_gate_that_holds_finds_nothing(tmp_path):
    bench = studied.bench_of(studied.run_of("qwen2"), "qwen2")
    assert Bisection(bench, Gate.parse("rel<1e-4"), tmp_path).find() is None
    assert BlackBox(Bisection(bench, Gate(()), tmp_path), lambda engine: "").find() is None


def test_a_flaky_gate_is_refused_at_once(tmp_path, monkeypatch):
    bench = studied.bench_of(studied.run_of("qwen2"), "qwen2")
    noise = iter([0.0] * studied.LAYERS + [1.0] * studied.LAYERS)  # the second run is off
    attend = REFERENCES["attend"]
    monkeypatch.setitem(REFERENCES, "attend", lambda *args, **attrs: attend(*args, **attrs) + next(noise))
    ladder = Bisection(bench, Gate.parse("rel<1e-1"), tmp_path)
    with pytest.raises(GateError, match=r"gate: rel<0.1 is flaky: on the same input it .*; loosen it"):
        ladder.find()
    assert ladder.num_runs <= 4


def test_a_flaky_command_is_refused_at_once(tmp_path):
    bench = studied.bench_of(studied.run_of("qwen2"), "qwen2")
    counter = tmp_path / "count"
    script = f"echo x >> {counter}; test $(wc -l < {counter}) -gt 1"
    box = BlackBox(Bisection(bench, Gate(()), tmp_path), judge_by(["sh", "-c", script]))
    with pytest.raises(GateError, match="the command is flaky: on the same input it sh ends with 1 and then holds"):
        box.find()
    assert box.num_runs == 2 and counter.read_text() == "x\nx\n"


def test_a_command_gets_the_engine_by_name_and_by_variable():
    judge = judge_by(["sh", "-c", 'test "$0" = "$ENGINE" && test -n "$ENGINE"', "{engine}"])
    assert judge(studied.run_of("qwen2").path) == ""
    with pytest.raises(GateError, match="cannot tell"):
        judge_by(["sh", "-c", "exit 125"])(studied.run_of("qwen2").path)


def test_a_wrong_dtype_is_blamed_on_the_import(tmp_path):
    run = studied.run_of("qwen2", dtype=torch.bfloat16)
    found = Bisection(studied.bench_of(run, "qwen2", torch.bfloat16), Gate.parse("rel<1e-5"), tmp_path).find()
    assert found.where == "import" and found.note.startswith("the gate fails before any pass")


def test_quantization_is_blamed_on_its_pass(tmp_path):
    run = studied.run_of("qwen2", quantize="int8")
    found = Bisection(studied.bench_of(run, "qwen2"), Gate.parse("rel<1e-2"), tmp_path).find()
    assert found.where == "pass 20 quantize" and found.isolated > 1e-3 and found.num_events == 13


def test_a_faulty_kernel_is_named_with_its_launch(tmp_path):
    run = studied.run_of("qwen2")
    copied = tmp_path / "engine"
    shutil.copytree(run.path, copied)
    kernel = next(k for k in run.engine.manifest.kernels if k.name.startswith("down_proj"))
    file = copied / kernel.file
    file.write_text(file.read_text().replace("x_2 + linear", "x_2 + 1.01 * linear"))
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["files"][kernel.file] = hash_file(file)
    (copied / "manifest.json").write_text(json.dumps(manifest))
    bench = studied.bench_of(load(copied), "qwen2")
    found = Bisection(bench, Gate.parse("rel<1e-4"), tmp_path, str(studied.checkpoint_of("qwen2"))).find()
    assert found.where == f"kernel {kernel.name}" and found.place.endswith("mlp.down_proj")
    assert ", launch " in str(found) and f"{found.siblings} sibling launches clean; repro: " in str(found)
    assert run_alone(found.repro).returncode == 1


def test_a_run_is_checked_and_bisected_by_its_methods(tmp_path):
    run = spoiled_run(EVENTS)
    found = run.bisect("rel<1e-4", out=tmp_path / "gate")
    assert (found.event, found.siblings) == (EVENTS, EVENTS - 1)
    assert len(run.check(weights=studied.traced("qwen2").weights).red) == 1
