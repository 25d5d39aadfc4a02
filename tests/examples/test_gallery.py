"""The gallery of passes: each is small, holds to its cases, and works in an engine; the one that is wrong is refused."""

import importlib
import sys
import tomllib
from pathlib import Path

import pytest
import zoo

import tilewright as tw
from tilewright.cli import app
from tilewright.pass_trial import try_pass
from tilewright.passes.registry import PASSES

GALLERY = Path(__file__).parents[2] / "examples" / "gallery"
MODULES = sorted(file.stem for file in GALLERY.glob("*.py"))
NAMES = [module.replace("_", "-") for module in MODULES]
EXACT = ("default,fold-norm-scale", "default,join-scales", "tap-values,default", "count-cost,default")
OTHER = ("default,equalize-and-quantize", "skip-layers{layers=1},default", "default,quantize-middle-layers")


@pytest.fixture(scope="module", autouse=True)
def gallery():
    """Registered as entry points would do it, and gone afterwards: other tests count the passes that there are."""
    sys.path.insert(0, str(GALLERY))
    before = dict(PASSES)
    for module in MODULES:
        importlib.import_module(module)
    yield
    PASSES.clear()
    PASSES.update(before)
    sys.path.remove(str(GALLERY))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return zoo.save("llama3", tmp_path_factory.mktemp("model"), layers=3)


def tokens_of(checkpoint, folder, pipeline=None):
    engine = tw.compile(checkpoint, folder / "engine", target="cpu", pipeline=pipeline, max_input_len=16, max_output_len=8)
    (output,) = tw.LLM(engine.path).generate([[3, 1, 4, 1, 5]], tw.SamplingParams(max_tokens=8, temperature=0.0), use_progress=False)
    return output.token_ids


@pytest.mark.parametrize("module", MODULES)
def test_a_pass_is_under_30_lines_and_an_entry_point(module):
    assert len((GALLERY / f"{module}.py").read_text().splitlines()) < 30
    project = tomllib.loads((GALLERY / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["tilewright.passes"][module] == module
    assert module in project["tool"]["setuptools"]["py-modules"]


@pytest.mark.parametrize("name", NAMES)
def test_a_pass_holds_to_its_cases(name):
    assert [str(finding) for finding in try_pass(name) if not finding.passed] == []


@pytest.mark.parametrize("name", [name for name in NAMES if name != "join-scales"])  # no model here multiplies by two numbers in a row
def test_a_pass_finds_something_in_a_real_model(name, checkpoint):
    assert [str(finding) for finding in try_pass(name, model=checkpoint) if not finding.passed] == []


@pytest.mark.parametrize("pipeline", EXACT)
def test_passes_that_change_no_tensor_give_the_same_tokens(pipeline, checkpoint, tmp_path):
    assert tokens_of(checkpoint, tmp_path, pipeline) == tokens_of(checkpoint, tmp_path)


@pytest.mark.parametrize("pipeline", OTHER)
def test_experiments_become_engines_too(pipeline, checkpoint, tmp_path):
    assert len(tokens_of(checkpoint, tmp_path, pipeline)) == 8
    kernels = (tmp_path / "engine" / "manifest.json").read_text()
    assert ("layers.1." not in kernels) == pipeline.startswith("skip-layers")


def test_the_wrong_rewrite_is_refused_by_name(checkpoint):
    with pytest.raises(tw.TilewrightError, match="pass swap-gate-up: changed the outputs by"):
        tw.optimize(tw.trace(checkpoint), "simplify,raise-gated,swap-gate-up", validate=True)


def test_the_command_says_what_failed_and_blesses(tmp_path, capsys):
    cases = tmp_path / "cases.ir"
    cases.write_text((GALLERY / "join-scales.ir").read_text().replace("scalar=1.5", "scalar=2.5"))
    with pytest.raises(SystemExit) as ended:
        app(["test-pass", "join-scales", "--cases", str(cases)])
    assert ended.value.code == 1 and "scalar=2.5" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        app(["test-pass", "join-scales", "--cases", str(cases), "--bless"])
    assert not ended.value.code and cases.read_text() == (GALLERY / "join-scales.ir").read_text()
    with pytest.raises(SystemExit) as ended:
        app(["test-pass", "join-scales", "--cases", str(tmp_path / "none.ir")])
    assert ended.value.code == 2 and "there is no" in capsys.readouterr().err
