"""The report: what it says is what the run did, its bytes are the same each time, and it holds nothing private and asks for nothing."""

import dataclasses
import getpass
import json
import re
import socket
from pathlib import Path

import pytest
from recorded import folder, llama_run
from reported import LAYERS, deep_run, gpu_run, measured_run, report_file

from tilewright.cli import app
from tilewright.inspect import load
from tilewright.inspect.diff import diff
from tilewright.inspect.kernels import KernelView, Lint
from tilewright.inspect.report import page, write_report
from tilewright.inspect.report.data import collect
from tilewright.inspect.report.heat import collect_heat
from tilewright.inspect.report.kernel_rows import collect_kernels
from tilewright.inspect.report.ledger import Row, snapshot
from tilewright.inspect.report.measured import collect_numerics
from tilewright.inspect.report.names import Texts, fold_names
from tilewright.inspect.report.overview import collect_warnings
from tilewright.ir.parser import parse_graph
from tilewright.ir.printer import print_graph

ASSETS = Path(page.__file__).parent / "assets"


@pytest.fixture(scope="module")
def report():
    return collect(deep_run(), lints=False)


@pytest.fixture(scope="module")
def text():
    return report_file("deep").read_text(encoding="utf-8")


def data_of(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


# -- data -----------------------------------------------------------------------------------------------------------------------
def test_passes_are_those_of_the_run(report):
    for row, record in zip(report.passes, deep_run().passes, strict=True):
        assert (row.number, row.name, row.status, row.ops_after, row.num_events) == (
            record.number, record.name, record.status, record.ops_after, len(record.events))  # fmt: skip
        assert sum(event.count for event in row.events) == len(record.events) + len(record.misses)
    assert [s.number for s in report.snapshots] == [0, *(p.number for p in report.passes if p.status == "changed")]


def test_rows_of_a_snapshot_are_the_folded_graph(report):
    for shot in report.snapshots:
        lines = [report.texts[place] for place in shot.rows]
        parse_graph("// tilewright-ir 1\n" + "\n".join(lines) + "\n}\n")
        assert len(lines) == len(shot.signs) < 100


def test_signs_are_those_of_the_diff_by_name(report):
    run = deep_run()
    for before, shot in zip(report.snapshots, report.snapshots[1:]):
        found = diff(run.graph(before.number), run.graph(shot.number))
        after, gone = Row.all_of(run.graph(shot.number)), Row.all_of(run.graph(before.number))
        for sign, rows, marks in (("+", after, shot.signs), ("-", gone, shot.before)):
            changed = {change.name for group in found for change in group.items if change.sign == sign}
            assert {name for row, mark in zip(rows, marks, strict=True) if mark == sign for name in row.names} == changed
        assert sorted(shot.merged) == sorted([*range(len(after)), *(-1 - at for at, mark in enumerate(shot.before) if mark == "-")])


SMALL = """// tilewright-ir 1
graph @g(%x: f32[T, 8]) dims(T in 1..4) {
  %a = silu(%x) : f32[T, 8]  loc(a)
  %b = neg(%a) : f32[T, 8]  loc(b)
  %c = neg(%b) : f32[T, 8]  loc(c)
  return %c
}
"""


def test_what_is_gone_stands_where_it_stood():
    first = parse_graph(SMALL)
    second = parse_graph(SMALL.replace("  %b = neg(%a) : f32[T, 8]  loc(b)\n", "").replace("neg(%b)", "neg(%a)"))
    texts = Texts()
    _, rows = snapshot(0, first, texts, None)
    shot, _ = snapshot(1, second, texts, (first, rows))
    assert (shot.signs, shot.before) == ("==>=", "==->=")
    assert shot.merged == (0, 1, -3, 2, 3)


def test_a_change_of_one_layer_is_one_row_that_says_so():
    first = llama_run(8).graph(0)
    lines = print_graph(first).splitlines(keepends=True)
    changed = [line.replace("= silu(", "= neg(") if "%model.layers.3.mlp.act_fn = " in line else line for line in lines]
    second = parse_graph("".join(changed))
    shot, rows = snapshot(1, second, Texts(), (first, Row.all_of(first)))
    marked = [row for row, sign in zip(rows, shot.signs, strict=True) if sign == "~"]
    assert [name for row in marked for name in row.names] == ["model.layers.3.mlp.act_fn"]
    assert set(shot.signs) == {"=", "~"} and [row.names for row, sign in zip(Row.all_of(first), shot.before) if sign == "~"] != []


def test_kernels_have_the_launches_and_resources_of_the_manifest():
    run = gpu_run()
    rows = collect_kernels(run, Texts(), lints=False)
    manifest = run.engine.manifest
    assert [row.name for row in rows] == [k.name for k in manifest.all_kernels] and len(manifest.all_kernels) > len(manifest.kernels)
    for row, kernel in zip(rows, manifest.all_kernels, strict=True):
        binary = kernel.binaries["sm_90"]
        assert (row.registers, row.shared_bytes, row.stack_bytes) == (binary.num_registers, binary.shared_bytes, binary.stack_bytes)
        lists = manifest.launch_lists
        assert row.launches == {name: n for name in lists if (n := sum(launch.kernel == kernel.name for launch in lists[name]))} != {}
        assert row.what and row.modules and "--no-lints" in row.lint_note
        samples = kernel not in manifest.kernels
        assert (row.modules == (("sampling", ""),)) == samples == (not row.values) == (not row.bytes_read)


def test_lints_stand_at_their_lines(monkeypatch):
    monkeypatch.setattr(KernelView, "lints", lambda self: [Lint(0, "spills"), Lint(7, "narrow loads")])
    rows = collect_kernels(gpu_run(), Texts(), lints=True)
    assert all(row.lints == ((0, "spills"), (7, "narrow loads")) and not row.lint_note for row in rows)
    assert all("torch code" in row.lint_note for row in collect_kernels(deep_run(), Texts(), lints=True))


def test_a_kernel_that_spills_is_a_warning(report):
    spilling = dataclasses.replace(report.kernels[0], stack_bytes=48)
    found = collect_warnings(report.passes, [spilling, *report.kernels[1:]])
    assert [w.text for w in found] == [f"kernel {spilling.name} spills 48 bytes of each thread to local memory"]


def test_every_module_is_in_a_kernel_or_folded_by_a_pass(report):
    rows = {m.path: m for m in report.modules}
    layer = rows["model.layers.{L}"]
    assert layer.count == LAYERS and layer.depth == 2 and layer.ops == len([o for o in deep_run().final.ops if "layers." in str(o.loc.modules)])
    assert rows["model"].weight_bytes == sum(v.type.num_bytes({}) for v in deep_run().graph(0).params.values())
    assert all(m.kernels or m.folded_by or not m.ops_imported for m in report.modules)
    dropped = {m.path: m.folded_by for m in collect(llama_run(8, "simplify,test-drop-norms,drop-dead-ops")).modules}
    assert dropped["model.norm"] == "03 drop-dead-ops"


def test_sentences_tell_counts(report):
    said = " ".join(report.sentences)
    assert f"{len(deep_run().graph(0)):,} ops were imported" in said and "Every module with weights is in a kernel" in said
    assert report.facts["Architecture"] == "LlamaForCausalLM" and report.facts["Model"] == "deep" == report.title


def test_names_of_equal_layers_fold():
    names = ["model.layers.0.mlp", "model.layers.1.mlp", "lm_head", "model.layers.3.mlp"]
    assert fold_names(names, deep_run().layers) == (("model.layers.{L}.mlp", "0..1, 3"), ("lm_head", ""))


def test_a_comparison_tells_kernels_and_the_final_graphs_apart():
    found = collect(deep_run(), deep_run(None), lints=False)
    assert (found.title, found.other.title) == ("deep (deep-int8)", "deep (deep-None)")
    assert {k.name for k in found.other.kernels} - {k.name for k in found.kernels} and "-" in found.other.final.before
    assert [name for name, *_ in found.other.passes] == [p.name for p in deep_run(None).passes]


def test_measured_errors_are_shown_where_they_are_kept(tmp_path):
    run = load(llama_run(8).folder)
    run.folder = tmp_path / "passes"
    (tmp_path / "numerics").mkdir(parents=True)
    (tmp_path / "numerics" / "values.jsonl").write_text('{"name": "%x", "op": "silu", "isolated": NaN, "floor": 1e-8, "note": "/home/somebody/x"}\n')
    (table,) = collect_numerics(run)
    assert table.columns == ("name", "op", "isolated", "floor") and table.rows == (("%x", "silu", "nan", 1e-8),)


def test_the_heat_strip_has_a_cell_for_each_value_and_layer():
    heat = collect_heat(measured_run())
    values = [v.name for op in measured_run().final.ops for v in op.results if not v.is_const]
    assert heat.layers == LAYERS and heat.left_out == 0
    assert sum(len(row.cells) for row in (*heat.rows, *heat.outside)) == len(values)
    assert [(row.name, cell.layer) for row in heat.rows for cell in row.cells if cell.level == "red"] == [("model.layers.{L}.mlp.down_proj", 17)]
    assert [layer for layer, (_, isolated) in enumerate(heat.depth) if isolated > 1e-3] == [17]
    assert collect_heat(deep_run()) is None


# -- the file -------------------------------------------------------------------------------------------------------------------
def test_it_is_small_for_32_layers(text):
    assert len(text.encode()) < 3_000_000
    assert len(text.encode()) < 400_000, "each distinct line is stored once"
    assert sum(f.stat().st_size for f in ASSETS.iterdir()) <= 250_000


def test_it_is_small_for_64_experts_in_each_of_31_layers():
    assert report_file("experts").stat().st_size < 400_000


def test_equal_runs_give_equal_bytes(text, tmp_path):
    again = write_report(load(deep_run().path), tmp_path / "again.html", lints=False)
    assert again.read_text(encoding="utf-8") == text


def test_it_names_nothing_outside_itself(text):
    assert page.CSP in text and page.CSP.startswith("default-src 'none'")
    assert set(re.findall(r"https?://[^\s\"'<)]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(link|img|iframe|script)[^>]+(src|href)=\"(?!data:)", text)
    assert "@import" not in text and "url(" not in text and "fetch(" not in text and "eval(" not in text


@pytest.mark.parametrize("name", ["deep", "vs", "sm_90", "measured"])
def test_it_holds_nothing_private(name):
    text = report_file(name).read_text(encoding="utf-8")
    private = [str(folder()), str(Path.cwd()), str(Path.home()) + "/", "somebody", "site-packages", "/tmp/"]
    private += [word for word in (f"/home/{getpass.getuser()}", f"/{getpass.getuser()}/", socket.gethostname()) if len(word) > 3]
    assert not [word for word in private if word in text]


def test_no_text_of_a_model_ends_the_script(report):
    evil = dataclasses.replace(report, title="</script><script>alert(1)</script><!--", texts=(*report.texts, "</SCRIPT >\u2028"))
    text = page.render(evil)
    assert text.lower().count("</script") == 2 and "<!--" not in text.partition("<body>")[2]
    assert data_of(text)["title"] == evil.title and data_of(text)["texts"][-1] == evil.texts[-1]


# Machado, Oliveira and Fernandes 2009, severity 1: what is left of linear RGB.
VISION = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
READ = ["text panel", "quiet panel", "accent panel", "added added-bg", "removed removed-bg", "changed changed-bg"]
READ += ["text chosen", "bg text", "text bar"]


def luminance(colour, matrix):
    linear = [(v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4) for v in (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))]
    seen = [min(1, max(0, sum(m * v for m, v in zip(row, linear)))) for row in matrix]
    return 0.2126 * seen[0] + 0.7152 * seen[1] + 0.0722 * seen[2]


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", [":root", ':root[data-theme="dark"]'], ids=["light", "dark"])
def test_every_status_is_legible_to_eyes_that_see_fewer_colours(vision, theme):
    """Signs tell statuses apart (see the browser's tests); here, that no sign or word drowns in its background."""
    (block,) = re.findall(rf"^{re.escape(theme)} {{(.*?)}}", (ASSETS / "style.css").read_text(), re.DOTALL | re.MULTILINE)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", block))
    for pair in READ:
        dark, light = sorted(luminance(colours[name], VISION[vision]) for name in pair.split())
        assert (light + 0.05) / (dark + 0.05) >= 4.5, pair


def test_a_reader_without_javascript_gets_the_summary(text):
    summary = re.search(r"<noscript>(.*?)</noscript>", text, re.DOTALL)[1]
    assert "ops were imported" in summary and "fuse-qkv" in summary and "kernel qkv_" in summary


def test_dumps_without_an_engine_have_a_report():
    data = data_of(report_file("dumps").read_text(encoding="utf-8"))
    assert data["kernels"] == [] and data["programs"] == [] and len(data["snapshots"]) > 5


def test_the_command_writes_it(tmp_path, capsys):
    out = tmp_path / "r.html"
    with pytest.raises(SystemExit) as ended:
        app(["report", str(deep_run().path), "-o", str(out), "--vs", str(deep_run(None).path)])
    assert not ended.value.code and "kB; open it in a browser" in capsys.readouterr().out
    assert data_of(out.read_text(encoding="utf-8"))["other"]["title"] == "deep (deep-None)"
