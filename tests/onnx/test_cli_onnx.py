"""`tilewright export` and `tilewright import-onnx`, on an engine, a graph, a model and a file."""

import onnx
import pytest
import torch
import zoo
from onnx_models import fresh_steps, operators, run_file

import tilewright as tw
from tilewright.cli import app
from tilewright.ir.interpreter import interpret
from tilewright.ir.parser import parse_graph


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    model = zoo.save("llama2", folder / "model")
    return model, tw.compile(model, folder / "engine", target="cpu", max_input_len=32, max_output_len=32, quantize="int8").path


@pytest.fixture
def run(capsys):
    """Runs the program; gives its exit code and what it printed."""

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            app([str(word) for word in words])
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


def test_an_engine_s_last_graph_is_exported_with_the_weights_it_was_built_from(run, built, tmp_path):
    code, out, err = run("export", built[1], tmp_path / "m.onnx")
    assert code == 0 and "m.onnx" in out, err
    found = operators(tmp_path / "m.onnx")
    assert found.count("DequantizeLinear") == 9 and found.count("Attention") == 2
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)


def test_a_stage_of_an_engine_computes_what_transformers_does(run, built, tmp_path):
    assert run("export", built[1], tmp_path / "m.onnx", "--pass", "raise-rms-norm", "--model", built[0], "--external")[0] == 0
    step = next(fresh_steps((13,)))
    step["rows"] = torch.arange(13, dtype=torch.int32)
    expected = zoo.reference_logits(zoo.build("llama2"), step["ids"].tolist())
    torch.testing.assert_close(run_file(tmp_path / "m.onnx", step), expected, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "m.onnx.data").exists() and operators(tmp_path / "m.onnx").count("RMSNormalization") == 5


def test_a_model_is_exported_with_the_ops_that_it_means(run, built, tmp_path):
    assert run("export", built[0], tmp_path / "m.onnx")[0] == 0
    assert operators(tmp_path / "m.onnx").count("RotaryEmbedding") == 4
    assert run("export", built[0], tmp_path / "i.onnx", "--pass", "import")[0] == 0
    assert "RotaryEmbedding" not in operators(tmp_path / "i.onnx")


def test_a_graph_that_was_edited_is_exported_with_a_checkpoint(run, built, tmp_path):
    (tmp_path / "a.ir").write_text((built[1] / "inspect" / "passes" / "00-import.ir").read_text())
    assert run("export", tmp_path / "a.ir", tmp_path / "m.onnx", "--model", built[0])[0] == 0


def test_a_file_is_read_as_a_graph_that_runs(run, built, tmp_path):
    run("export", built[0], tmp_path / "m.onnx")
    code, _, err = run("import-onnx", tmp_path / "m.onnx", "-o", tmp_path / "m.ir")
    assert code == 0, err
    graph, imported = parse_graph((tmp_path / "m.ir").read_text()), tw.import_onnx(tmp_path / "m.onnx")
    step = next(fresh_steps((7,)))
    assert torch.equal(interpret(graph, step, imported.weights)[0], interpret(imported.graph, step, imported.weights)[0])
    assert "repeat L in 0..1" in run("import-onnx", tmp_path / "m.onnx")[1]


@pytest.mark.parametrize(
    "words, said",
    [
        (["export", "{engine}", "m.pb"], "m.pb: does not end in .onnx; name the file that is to be written"),
        (["export", "{engine}", "m.onnx", "--pass", "raise-rms"], "no pass 'raise-rms'; did you mean 'raise-rms-norm'?"),
        (["export", "{model}", "m.onnx", "--pass", "raise-rms"], "the default pipeline has no pass 'raise-rms'; did you mean 'raise-rms-norm'?"),
        (["export", "{engine}", "m.onnx", "--quantize", "int8"], "--quantize is given for"),
        (["export", "{ir}", "m.onnx"], "is a graph without weights; name the checkpoint that they come from with --model"),
        (["export", "{ir}", "m.onnx", "--model", "{engine}"], "has no config.json"),
        (["export", "{model}", "none/m.onnx"], "none/m.onnx: cannot be written (No such file or directory); choose another file"),
        (["import-onnx", "none.onnx"], "none.onnx: cannot be read (No such file or directory); pass an ONNX file"),
        (["import-onnx", "none.onnx", "--dim", "batch"], "--dim: is 'batch'; write it as name=size, as in batch=1"),
    ],
)
def test_what_cannot_be_is_one_sentence(words, said, run, built, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {"engine": built[1], "model": built[0], "ir": built[1] / "inspect" / "passes" / "00-import.ir"}
    code, out, err = run(*(str(word).format(**places) for word in words))
    assert code == 2 and said in err and len(err.strip().splitlines()) == 1, (out, err)
    assert not list(tmp_path.iterdir())
