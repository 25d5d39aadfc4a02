"""The wheel in a virtual environment of its own, away from the checkout, without a network and without node: its program builds an engine and writes
its report."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

pytest.importorskip("setuptools", minversion="77", reason="needs setuptools, which builds the wheel")
pytest.importorskip("pip", reason="needs pip, which installs the wheel")
ROOT = Path(__file__).parents[2]
PARTS = ["pyproject.toml", "README.md", "ir", "frontend", "passes", "codegen", "runtime", "tilewright"]
OFFLINE = """
import socket

def refuse(*arguments, **options):
    raise OSError("no network")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""
BUILD = "import setuptools.build_meta as backend, sys; print(backend.build_wheel(sys.argv[1]))"
WHERE = "import tilewright, shutil, socket; print(tilewright.__file__, shutil.which('node'), socket.create_connection.__name__)"
LIMITS = ["--target", "cpu", "--dtype", "float32", "--max-batch-size", "2", "--max-input-len", "16", "--max-output-len", "8"]


def run(*words, cwd, **env):
    done = subprocess.run([*map(str, words)], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def build_wheel(folder):
    source = folder / "source"
    source.mkdir()
    for part in PARTS:
        place = ROOT / part
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(place, source / part, ignore=ignored) if place.is_dir() else shutil.copy(place, source)
    return folder / run(sys.executable, "-c", BUILD, folder, cwd=source, PATH=os.environ["PATH"]).splitlines()[-1]


def make_environment(folder):
    """With what this one has installed, by a path file: an editable install of the checkout is none of that. Returns (programs, packages)."""
    venv.create(folder, symlinks=True)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (site / "dependencies.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    (site / "sitecustomize.py").write_text(OFFLINE)
    return folder / "bin", site


def test_the_wheel_s_program_builds_an_engine_and_a_report(tmp_path):
    wheel = build_wheel(tmp_path)
    programs, site = make_environment(tmp_path / "environment")
    away = tmp_path / "away"
    away.mkdir()
    env = {"PATH": "/nowhere", "HOME": str(away), "OMP_NUM_THREADS": "1"}
    install = ["pip", "--python", programs / "python", "install", "--no-index", "--no-deps", "--no-compile", "--quiet", wheel]
    run(sys.executable, "-m", *install, cwd=away, **env)
    assert run(programs / "python", "-c", WHERE, cwd=away, **env).split() == [str(site / "tilewright" / "__init__.py"), "None", "refuse"]
    model = shutil.copytree(ROOT / "examples" / "demo_model", away / "model")
    run(programs / "tilewright", "build", model, "engine", *LIMITS, cwd=away, **env)
    said = run(programs / "tilewright", "report", "engine", cwd=away, **env)
    page = (away / "engine" / "inspect" / "report.html").read_text(encoding="utf-8")
    assert said.startswith("engine/inspect/report.html: ") and "ops were imported" in page and str(tmp_path) not in page
    installed = [file.relative_to(site).as_posix() for file in (site / "tilewright").rglob("*") if file.is_file()]
    assert {"tilewright/inspect/report/assets/page.html", "tilewright/inspect/report/assets/app.js"} <= set(installed)
