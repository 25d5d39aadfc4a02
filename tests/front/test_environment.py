"""The table of environment switches."""

from dataclasses import fields

import pytest

from tilewright.environment import SWITCHES, Environment, SwitchError, read_environment


def test_nothing_set_gives_the_defaults():
    assert read_environment({"HOME": "/root"}) == Environment()


def test_each_switch_is_read_into_its_type():
    variables = {"INSPECT": "2", "OPT_LIMIT": "17", "VALIDATE": "1", "PASSES": "-fuse-qkv"}
    variables |= {"INSPECT_DIR": "/tmp/x", "PRINT": "fuse-*:full", "STOP_AFTER": "quantize"}
    found = read_environment({f"TILEWRIGHT_{name}": text for name, text in variables.items()})
    assert found == Environment(
        inspect=2, opt_limit=17, validate=True, passes="-fuse-qkv", inspect_dir="/tmp/x", print="fuse-*:full", stop_after="quantize"
    )  # fmt: skip


def test_the_table_and_the_fields_agree():
    assert [f.name for f in fields(Environment)] == list(SWITCHES)


@pytest.mark.parametrize(
    "variable, text, said",
    [
        ("TILEWRIGHT_INSPEKT", "1", "TILEWRIGHT_INSPEKT: is no switch; did you mean 'TILEWRIGHT_INSPECT'?"),
        ("TILEWRIGHT_INSPECT", "7", "TILEWRIGHT_INSPECT: is '7'; set it to 0, 1, 2 or 3"),
        ("TILEWRIGHT_PRINT", "all:some", "TILEWRIGHT_PRINT: is 'all:some'; set it to PASS, a glob, or all; with :full for graphs"),
        ("TILEWRIGHT_OPT_LIMIT", "-3", "TILEWRIGHT_OPT_LIMIT: is '-3'; set it to a number"),
    ],
)
def test_a_wrong_switch_is_refused_by_name(variable, text, said):
    with pytest.raises(SwitchError) as caught:
        read_environment({variable: text})
    assert str(caught.value) == said
