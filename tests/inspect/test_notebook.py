"""From Python: rows as tables, values on terminals and in notebooks, the page inside of an output, lenses, switches and instruments."""

import html
import importlib.metadata
import io
import json
import sys
import types

import pytest
from recorded import engine, engine_run, llama
from rich.console import Console

import tilewright as tw
from tilewright.environment import SwitchError, read_environment
from tilewright.inspect.report.data import collect
from tilewright.inspect.report.lenses import look_through
from tilewright.inspect.rows import Rows
from tilewright.ir.errors import PassError, TilewrightError

PIPELINE = "simplify,raise-rms-norm,raise-gated,drop-dead-ops"


# -- rows and views -------------------------------------------------------------------------------------------------------------
def test_rows_are_tables_in_notebooks_and_frames_where_there_is_pandas(monkeypatch):
    run = engine_run("llama3")
    events = run["raise-rms-norm"].events
    assert [record["rule"] for record in events.records()] == ["raise-rms-norm"] * len(events) and isinstance(events[:2], Rows)
    assert run.passes._repr_html_().count("<tr>") == len(run.passes) + 1 and "<td>fuse-qkv</td>" in run.passes._repr_html_()
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=lambda records: ("frame", records)))
    assert run.passes.df() == ("frame", run.passes.records())
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(TilewrightError, match="pandas is not installed; pip install pandas, or use records"):
        events.df()


def test_rich_shows_colours_and_the_same_words():
    run = engine_run("llama3")
    found = run["fuse-qkv"].diff()
    console = Console(file=io.StringIO(), force_terminal=True, width=400, color_system="standard")
    console.print(found)
    assert "\x1b[" in console.file.getvalue()
    plain = Console(file=io.StringIO(), width=400)
    plain.print(found)
    assert [line.rstrip() for line in plain.file.getvalue().splitlines()] == [line.rstrip() for line in str(found).splitlines()]


def test_a_view_is_a_frame_that_holds_the_whole_page_at_its_place():
    view = tw.Engine.open(engine("llama3")).inspect.view("passes", pass_="fuse-qkv", tensor="model.norm")
    text = view._repr_html_()
    assert len(text) < 1_000_000 and text.startswith("<iframe sandbox=") and "allow-same-origin" not in text
    page = html.unescape(text.partition('srcdoc="')[2].rpartition('"')[0])
    assert 'data-start="#passes?pass=17&amp;tensor=model.norm"' in page and "default-src &#x27;none&#x27;" not in page


def test_a_report_and_a_kernel_are_one_call_away(tmp_path):
    run = engine_run("llama3")
    assert "<!doctype html>" in run.report(tmp_path / "r.html", lints=False).read_text(encoding="utf-8")
    assert "F.linear" in run.kernel("lm_head").source
    with pytest.raises(TilewrightError, match="folder of dumps, which has no kernels"):
        type(run)(run.folder, run.folder, None).kernel("lm_head")


# -- lenses ---------------------------------------------------------------------------------------------------------------------
def test_lenses_of_other_packages_are_tables_and_their_failures_are_shown(monkeypatch):
    def weights(run):
        yield from ({"weight": name, "bytes": value.type.num_bytes({})} for name, value in run.graph(0).params.items())

    def broken(run):
        raise ValueError("no such thing")

    points = [types.SimpleNamespace(name=name, load=lambda lens=lens: lens) for name, lens in (("weight-sizes", weights), ("mine", broken))]
    real = importlib.metadata.entry_points
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points if group == "tilewright.lenses" else real(group=group))
    run = engine_run("llama3")
    sizes, failed = look_through(run)
    assert sizes.table.columns == ("weight", "bytes") and len(sizes.table.rows) == len(run.graph(0).params)
    assert failed.table is None and failed.failure == "ValueError: no such thing"
    assert collect(run, lints=False).lenses == (sizes, failed)


# -- switches and instruments ---------------------------------------------------------------------------------------------------
def test_switches_hold_inside_of_the_block_alone(monkeypatch):
    monkeypatch.setenv("TILEWRIGHT_OPT_LIMIT", "7")
    with tw.inspecting(print="fuse-*", no=("quant", "cudagraph"), inspect=2):
        found = read_environment()
        assert (found.print, found.no, found.inspect, found.opt_limit) == ("fuse-*", ("quant", "cudagraph"), 2, 7)
        with tw.inspecting(opt_limit=3, validate=True):
            assert (read_environment().opt_limit, read_environment().validate, read_environment().inspect) == (3, True, 2)
    assert (read_environment().print, read_environment().opt_limit) == ("", 7)
    with pytest.raises(SwitchError, match="TILEWRIGHT_OPT_LIMT: is no switch; did you mean 'TILEWRIGHT_OPT_LIMIT'"), tw.inspecting(opt_limt=3):
        pass


def test_a_rewrite_that_is_refused_does_not_happen_and_the_others_do():
    norm = "model.layers.1.input_layernorm"
    with tw.inspecting(on_rewrite=lambda event: event.anchor != norm):
        held = tw.optimize(llama(3), PIPELINE)
    whole = tw.optimize(llama(3), PIPELINE)
    norms = [{v.name for op in done.graph.find("rms_norm") for v in op.results} for done in (whole, held)]
    assert norms[0] - norms[1] == {norm}
    events = [event for row in held.report.rows for event in row.events]
    assert [event.number for event in events] == list(range(1, len(events) + 1)) and norm not in [event.anchor for event in events]


def test_an_instrument_sees_passes_and_may_leave_some_out():
    class Watch(tw.Instrument):
        def __init__(self):
            self.seen = []

        def should_run(self, name):
            return name != "raise-gated"

        def before_pass(self, name, graph):
            self.seen.append((name, len(graph)))

        def on_error(self, name, error):
            self.seen.append((name, type(error).__name__))

    watch = Watch()
    with tw.inspecting(instrument=watch):
        done = tw.optimize(llama(2), PIPELINE)
        with pytest.raises(PassError):
            tw.optimize(llama(2), "quantize{skip=nothing_alike}")
    assert [name for name, _ in watch.seen] == ["simplify", "raise-rms-norm", "drop-dead-ops", "quantize", "quantize"]
    assert watch.seen[-1] == ("quantize", "PassError") and not done.graph.find("gated") and done.graph.find("silu")


def test_a_pass_that_does_not_listen_is_refused():
    @tw.register_pass("test-deaf")
    def deaf(graph, rw):
        rw.insert_after(graph.value("model.norm"), "neg")

    said = r"test-deaf at %model.norm: the pass rewrites there though on_rewrite said no"
    with pytest.raises(PassError, match=said), tw.inspecting(on_rewrite=lambda event: False):
        tw.optimize(llama(2), "test-deaf")


def test_level_3_measures_what_it_built(tmp_path):
    import zoo

    with tw.inspecting(inspect=3):
        built = tw.compile(zoo.build("llama3", layers=1), tmp_path / "engine", target="cpu", max_input_len=16, max_output_len=8)
    folder = built.path / "inspect"
    values = [json.loads(line) for line in (folder / "numerics" / "values.jsonl").read_text().splitlines()]
    assert values and not [row for row in values if row["level"] == "red"] and len(list((folder / "perf").glob("*.json"))) == 1
    report = collect(built.inspect, lints=False)
    assert report.profiles and report.heat and report.numerics
