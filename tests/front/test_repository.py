"""What holds for the repository as a whole: which room may import which, and that ruff and pyright have nothing to say."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*words):
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)


def test_rooms_import_only_what_they_may():
    done = run(".ci/check_arrows.py")
    assert done.returncode == 0, done.stdout


def test_ruff_has_nothing_to_say():
    done = run("-m", "ruff", "check", ".")
    assert done.returncode == 0, done.stdout


def test_pyright_has_nothing_to_say():
    linked = run(".ci/link_rooms.py")
    assert linked.returncode == 0, linked.stderr
    done = run("-m", "pyright", "--pythonpath", sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
