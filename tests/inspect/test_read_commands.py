"""The commands that read a build: diff, blame, why, and show on parts of it."""

import re
import subprocess
import sys

import pytest
from recorded import engine

import tilewright as tw
from tilewright.cli import app


@pytest.fixture
def run(capsys):
    """Runs the program; gives its exit code and what it printed on stdout and stderr."""

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            app([str(word) for word in words])
        return (ended.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def plain():
    return engine("llama3", 3)


def test_diff_of_a_pass_is_its_events_and_tensors(run, plain):
    code, out, _ = run("diff", plain, "fuse-qkv", "--exit-code")
    assert code == 1 and out.startswith("pass 17 fuse-qkv   events 3   ops ")
    assert "event x3 [L=0..2]" in out and "+ x3 [L=0..2]  %.self_attn.qkv = linear(" in out
    assert run("diff", plain, "17")[1] == run("diff", plain, "17-fuse-qkv")[1] == out
    assert "\x1b" not in out


def test_diff_of_a_pass_that_changed_nothing_ends_with_0(run, plain):
    code, out, _ = run("diff", plain, "split-linear", "--exit-code")
    assert code == 0 and "no value differs" in out


def test_diff_of_two_runs_and_its_exit_code(run, plain):
    other = engine("llama3", 3, "int8")
    assert run("diff", plain, plain, "--exit-code")[0] == 0
    code, out, _ = run("diff", plain, other, "--exit-code", "--stat")
    assert code == 1 and len(out.splitlines()) == 1 and "kernels + " in out
    assert run("diff", plain, other)[0] == 0
    assert run("diff", plain, other, "fuse-qkv", "--exit-code")[0] == 0
    assert run("diff", plain, other, "0", "--exit-code")[0] == 0


def test_blame_and_why_answer(run, plain):
    assert "17 fuse-qkv" in run("blame", plain, "%model.layers.1.self_attn.q_proj")[1]
    assert "kernel" in run("blame", plain, "model.layers.1.mlp")[1]
    assert "three products of one activation" in run("why", plain, "fuse-*")[1]


def test_text_is_coloured_on_a_terminal_alone(run, plain, monkeypatch):
    piped = run("diff", plain, "fuse-qkv")[1]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured = run("diff", plain, "fuse-qkv")[1]
    assert "\x1b[" in coloured and re.sub(r"\x1b\[[0-9;]*m", "", coloured) == piped


def test_show_gives_ops_of_a_name_folded_or_flat(run, plain):
    folded, flat = run("show", plain, "--op", "rms*")[1], run("show", plain, "--op", "rms*", "--flat")[1]
    assert "x3 [L=0..2]" in folded and len(flat.splitlines()) == 7
    assert len(run("show", plain, "fuse-qkv", "--op", "slice", "--layer", "1")[1].splitlines()) == 3


@pytest.mark.parametrize(
    "words, said",
    [
        (("diff", "{}", "fuse-qvk"), "no pass 'fuse-qvk'; did you mean 'fuse-qkv'?"),
        (("diff", "{}", "nowhere", "fuse-qkv"), "run nowhere: is no directory; pass two runs and a pass, or one run and a pass"),
        (("diff", "{}", "no/where"), "run no/where: is no directory; pass another run, or a pass of "),
        (("show", "{}", "99"), "no pass 99; they are numbered 0 (the import) to 2"),
        (("blame", "{}", "model.layers.1.q_proj"), "did you mean 'model.layers.1.self_attn.q_proj'?"),
        (("why", "{}", "raise-rotory"), "nothing fits 'raise-rotory'; did you mean 'raise-rotary'?"),
        (("show", "{}", "--op", "rms_nrm"), "no op is a 'rms_nrm'; did you mean 'rms_norm'?"),
        (("show", "{}", "--op", "rms_norm", "--layer", "7"), "no op belongs to layer 7 and is a 'rms_norm'"),
        (("why", "nowhere", "x"), "has neither manifest.json nor 00-import.ir; pass an engine directory or a folder of dumps"),
    ],
)
def test_wrong_words_get_one_sentence(run, plain, words, said):
    code, out, err = run(*(word.format(plain) for word in words))
    assert code == 2 and out == "" and said in err and len(err.splitlines()) == 1


def test_the_package_reads_runs_without_being_asked_for_it_at_import(plain):
    code = "import sys, tilewright as tw; assert 'tilewright.inspect' not in sys.modules; print(len(tw.inspect.load(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", code, str(plain)], capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(tw.inspect.load(plain))
