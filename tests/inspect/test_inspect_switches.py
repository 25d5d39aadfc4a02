"""Switches of a build that say what to record and where: INSPECT_DIR, PRINT, STOP_AFTER."""

import re
import shlex

import pytest
import zoo
from recorded import llama

import tilewright as tw
from tilewright.inspect import load
from tilewright.inspect.pass_printer import PassPrinter
from tilewright.ir.graph import is_same_structure
from tilewright.ir.parser import parse_graph

SIZES = {"target": "cpu", "max_input_len": 16, "max_output_len": 8}


@pytest.fixture(scope="module")
def model():
    return zoo.build("llama3", layers=2)


def test_inspect_dir_takes_what_the_engine_would_keep(model, tmp_path, monkeypatch):
    usual = tw.compile(model, tmp_path / "usual", **SIZES).path / "inspect"
    (tmp_path / "elsewhere" / "passes").mkdir(parents=True)
    (tmp_path / "elsewhere" / "passes" / "99-stale.ir").write_text("of an earlier build")
    monkeypatch.setenv("TILEWRIGHT_INSPECT_DIR", str(tmp_path / "elsewhere"))
    out = tw.compile(model, tmp_path / "engine", **SIZES).path
    assert not (out / "inspect").exists()
    wanted = {f.relative_to(usual): f.read_bytes() for f in usual.rglob("*") if f.is_file()}
    found = {f.relative_to(tmp_path / "elsewhere"): f.read_bytes() for f in (tmp_path / "elsewhere").rglob("*") if f.is_file()}
    assert {path: text for path, text in found.items() if path.name != "REPRO.sh"} == {p: t for p, t in wanted.items() if p.name != "REPRO.sh"}
    assert len(load(tmp_path / "elsewhere")) == len(load(tmp_path / "usual"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "engine", "usual"]


def test_level_0_builds_the_same_engine_without_its_inspect_folder(model, tmp_path, monkeypatch):
    """So that nothing of it can be felt at run time."""
    found = {}
    for level in ("0", "1"):
        monkeypatch.setenv("TILEWRIGHT_INSPECT", level)
        out = tw.compile(model, tmp_path / level, **SIZES).path
        found[level] = {f.relative_to(out).as_posix(): f.read_bytes() for f in out.rglob("*") if f.is_file() and f.name != "manifest.json"}
    assert [name for name in found["0"] if name.startswith("inspect/")] == []
    assert found["0"] == {name: data for name, data in found["1"].items() if not name.startswith("inspect/")} != found["1"]


def test_print_shows_what_matching_passes_change(monkeypatch, capsys):
    monkeypatch.setenv("TILEWRIGHT_PRINT", "raise-r*")
    tw.optimize(llama(4), "simplify,raise-bias,raise-rms-norm,raise-rotary")
    err = capsys.readouterr().err
    assert re.findall(r"^// after (.*)$", err, re.MULTILINE) == ["03-raise-rms-norm", "04-raise-rotary"]
    assert "event x8 [L=0..3]  .{input,post_attention}_layernorm  pow mean add rsqrt mul mul -> rms_norm" in err


def test_print_full_shows_whole_graphs(monkeypatch, capsys):
    monkeypatch.setenv("TILEWRIGHT_PRINT", "all:full")
    optimized = tw.optimize(llama(4), "simplify,raise-rms-norm")
    last = capsys.readouterr().err.partition("// after 02-raise-rms-norm\n")[2]
    assert is_same_structure(parse_graph(last), optimized.graph)


def test_print_says_so_where_no_pass_matches(monkeypatch, capsys):
    monkeypatch.setenv("TILEWRIGHT_PRINT", "fuse-qvk")
    tw.optimize(llama(2), "simplify,fuse-qkv")
    assert capsys.readouterr().err == "TILEWRIGHT_PRINT: no pass of simplify,fuse-qkv fits 'fuse-qvk'\n"


def test_the_printer_keeps_what_the_pass_found():
    graph = llama(2)
    printer = PassPrinter.of("all", graph)
    assert is_same_structure(printer.before, graph) and printer.before is not graph


def test_stop_after_ends_a_build_and_says_how_to_go_on(model, tmp_path, monkeypatch):
    monkeypatch.setenv("TILEWRIGHT_STOP_AFTER", "raise-rotary")
    with pytest.raises(tw.TilewrightError) as caught:
        tw.compile(model, tmp_path / "engine", **SIZES)
    assert [p.name for p in tmp_path.iterdir()] == ["engine.stopped"]
    said = re.match(r"TILEWRIGHT_STOP_AFTER: the build ended after pass 7, raise-rotary; go on with: tilewright opt (.*)$", str(caught.value))
    assert said is not None
    file, flag, left = shlex.split(said[1])
    assert flag == "-p" and left.startswith("raise-gated,tabulate-positions")
    monkeypatch.delenv("TILEWRIGHT_STOP_AFTER")
    went_on = tw.optimize(parse_graph((tmp_path / "engine.stopped" / file.rpartition("/")[2]).read_text()), left)
    at_once = load(tw.compile(model, tmp_path / "engine", **SIZES).path).final
    assert is_same_structure(went_on.graph, at_once)


def test_stop_after_ends_optimize_with_the_graph(monkeypatch):
    monkeypatch.setenv("TILEWRIGHT_STOP_AFTER", "raise-rms-norm")
    stopped = tw.optimize(llama(2), "simplify,raise-rms-norm,raise-rotary")
    assert stopped.graph.find("rms_norm") and not stopped.graph.find("rotary")
    assert stopped.report.left == "raise-rotary"


def test_stop_after_a_pass_that_does_not_run_is_refused(monkeypatch):
    monkeypatch.setenv("TILEWRIGHT_STOP_AFTER", "fuse-qkv")
    with pytest.raises(tw.TilewrightError, match="stop_after='fuse-qkv' names none of its passes"):
        tw.optimize(llama(2), "simplify")
