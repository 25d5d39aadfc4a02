"""The researcher's pass of examples/my_pass as another package: through an entry point, `opt` and `compile`, with the package untouched."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import zoo
from warm_python import warm_python

import tilewright as tw

EXAMPLE = Path(__file__).parents[2] / "examples" / "my_pass"
SILU = """graph @g(%x: f32[T, 4]) dims(T in 1..8) {
  %y = silu(%x) : f32[T, 4]
  return %y
}
"""
SCRIPT = """
import json, sys
import tilewright as tw
model, out, pipeline = sys.argv[1:]
engine = tw.compile(model, out, target="cpu", pipeline=pipeline or None, max_input_len=16, max_output_len=8)
(result,) = tw.LLM(engine.path).generate([[3, 1, 4]], tw.SamplingParams(max_tokens=8, temperature=0.0))
print(json.dumps(result.token_ids))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder as `pip install --target` leaves it: the module, and metadata that names the entry point."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "my_pass.py").write_text((EXAMPLE / "my_pass.py").read_text())
    metadata = folder / "tilewright_my_pass-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: tilewright-my-pass\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text("[tilewright.passes]\nmy_pass = my_pass\n")
    return folder


def run(installed, *words):
    done = subprocess.run(
        [warm_python(), *map(str, words)], env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_at_most_30_lines():
    assert len((EXAMPLE / "my_pass.py").read_text().splitlines()) <= 30


def test_its_entry_point_is_the_one_of_its_project():
    assert '[project.entry-points."tilewright.passes"]\nmy_pass = "my_pass"' in (EXAMPLE / "pyproject.toml").read_text()


def test_it_is_listed_and_runs_in_opt(installed, tmp_path):
    (tmp_path / "a.ir").write_text(SILU)
    assert "silu-by-exp" in run(installed, "-m", "tilewright", "passes")
    assert "%y = exp_silu(%x) : f32[T, 4] by(silu-by-exp)" in run(installed, "-m", "tilewright", "opt", tmp_path / "a.ir", "-p", "silu-by-exp")


def test_it_compiles_into_an_engine_that_gives_the_same_tokens(installed, tmp_path):
    model = zoo.save("llama3", tmp_path / "model")
    plain = json.loads(run(installed, "-c", SCRIPT, model, tmp_path / "plain", ""))
    changed = json.loads(run(installed, "-c", SCRIPT, model, tmp_path / "changed", "silu-by-exp,default"))
    assert changed == plain
    kernels = "".join(file.read_text() for file in (tmp_path / "changed" / "kernels").glob("*.py"))
    assert "torch.exp(-" in kernels


def test_without_it_the_name_is_unknown(tmp_path):
    with pytest.raises(tw.TilewrightError, match="no pass named 'silu-by-exp'"):
        tw.compile(zoo.save("llama3", tmp_path / "model", layers=1), tmp_path / "out", target="cpu", pipeline="silu-by-exp,default")
