"""The wheel, away from the checkout, without a network and without node: it builds an engine and writes its report."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="77", reason="needs setuptools, which builds the wheel")
ROOT = Path(__file__).parents[2]
PARTS = ["pyproject.toml", "README.md", "ir", "frontend", "passes", "codegen", "runtime", "tilewright"]
OFFLINE = """
import socket

def refuse(*arguments, **options):
    raise OSError("no network")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""
BUILD = "import setuptools.build_meta as backend, sys; print(backend.build_wheel(sys.argv[1]))"
USE = """
import sys
import tilewright as tw
from tilewright.cli import app
tw.compile(sys.argv[1], "engine", target="cpu", dtype="float32", max_batch_size=2, max_input_len=16, max_output_len=8)
app(["report", "engine"])
"""
WHERE = "import tilewright, shutil; print(tilewright.__file__, shutil.which('node'))"


def run(*words, cwd, **env):
    done = subprocess.run([sys.executable, *map(str, words)], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_builds_an_engine_and_a_report(tmp_path):
    source, site, away = tmp_path / "source", tmp_path / "site", tmp_path / "away"
    source.mkdir()
    for part in PARTS:
        place = ROOT / part
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(place, source / part, ignore=ignored) if place.is_dir() else shutil.copy(place, source)
    away.mkdir()
    wheel = tmp_path / run("-c", BUILD, tmp_path, cwd=source, PATH=os.environ["PATH"]).splitlines()[-1]
    shutil.unpack_archive(wheel, site, "zip")
    (site / "sitecustomize.py").write_text(OFFLINE)
    env = {"PYTHONPATH": str(site), "PATH": "/nowhere", "HOME": str(away), "OMP_NUM_THREADS": "1"}
    assert run("-c", WHERE, cwd=away, **env).split() == [str(site / "tilewright" / "__init__.py"), "None"]
    model = shutil.copytree(ROOT / "examples" / "demo_model", away / "model")
    run("-c", USE, model, cwd=away, **env)
    page = (away / "engine" / "inspect" / "report.html").read_text(encoding="utf-8")
    assert "ops were imported" in page and str(tmp_path) not in page
