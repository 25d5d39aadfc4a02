"""Every `.ir` file of this folder: each pass on graphs that it changes, graphs that it nearly changes, and what it refuses."""

from pathlib import Path

import pytest

from tilewright.pass_cases import read_cases, run_case
from tilewright.passes.registry import load_passes

FOLDER = Path(__file__).parent
FILES = sorted(FOLDER.glob("*.ir"))
CASES = [case for file in FILES for case in read_cases(file)]
BUILT_IN = [name for name, info in load_passes().items() if info.module.startswith("tilewright.passes.")]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outcome(case):
    assert run_case(case) == case.expected


@pytest.mark.parametrize("name", BUILT_IN)
def test_pass_has_a_hit_a_near_miss_and_an_error(name):
    outcomes = {case.expected.partition("\n")[0] for case in CASES if case.file.stem == name}
    assert {"changed", "unchanged"} < outcomes and any(outcome.endswith("Error") for outcome in outcomes)


def test_every_file_is_named_after_a_pass():
    assert {file.stem for file in FILES} == set(BUILT_IN)
