"""The README's Python, as it stands there, on the demo model."""

import re
from pathlib import Path

import tilewright as tw

ROOT = Path(__file__).parents[2]
SNIPPETS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_every_snippet_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / "hf-model").symlink_to(ROOT / "examples" / "demo_model")
    names: dict[str, object] = {"tw": tw}
    using, streaming, onnx, own_pass = SNIPPETS
    exec(using, names)
    exec(streaming, names)
    exec(onnx, names)
    printed = capsys.readouterr().out
    assert len(printed.split()) > 100 and printed.rstrip().endswith(("length", "stop"))
    assert own_pass in (ROOT / "examples" / "my_pass" / "my_pass.py").read_text(encoding="utf-8")
