"""The pages under docs/: their files are written and their commands run, in order, and what they print must be what the page shows."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from warm_python import warm_python

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_does_what_it_says(page, tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for language, name, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if name:
            (tmp_path / name).write_text(text, encoding="utf-8")
        elif language == "console":
            for command, expected in read_console(text):
                check(command, expected, tmp_path)


def read_console(text):
    """Pairs of a command, from a line that starts with `$ `, and the lines that it should print; `...` stands for any.

    `# exit 1` after a command is its exit code.
    """
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        yield command, expected.splitlines()


def check(command, expected, folder):
    command, _, code = command.partition("  # exit ")
    shell = re.sub(r"^tilewright (?=[\w-])", f"{warm_python()} -m tilewright ", command)
    shell = re.sub(r"^python ", f"{warm_python()} ", shell)
    done = subprocess.run(shell, shell=True, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    printed = done.stdout.splitlines()
    assert done.returncode == int(code or 0), f"$ {command}\n{done.stdout}{done.stderr}"
    place = 0
    for line in expected:
        if line.strip() in ("", "..."):
            continue
        while place < len(printed) and line.rstrip() not in printed[place]:
            place += 1
        assert place < len(printed), f"$ {command}\nshould print {line!r}, printed:\n{done.stdout}"


def test_there_are_pages_and_their_pictures():
    assert PAGES
    named = {ROOT / "docs" / found for page in PAGES for found in re.findall(r"!\[[^\]]+\]\((\S+)\)", page.read_text(encoding="utf-8"))}
    assert named and all(file.is_file() for file in named)
