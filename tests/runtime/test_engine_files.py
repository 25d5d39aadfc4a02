"""Files hashed while torch is imported: what is promised of them, with a byte changed, cut, missing, or written to meanwhile."""

import gc
import hashlib
import os
import random
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
import test_llm
import torch
import toy_engine

from tilewright.ir.errors import EngineError
from tilewright.runtime import engine, engine_files, llm, torch_import
from tilewright.runtime.engine import Engine
from tilewright.runtime.engine_files import EngineFiles, hash_file
from tilewright.runtime.llm import LLM
from tilewright.runtime.weight_stream import WeightStream

WEIGHTS, KERNEL = "weights.safetensors", "kernels/toy.py"


@pytest.fixture
def directory(tmp_path):
    toy_engine.write_engine(tmp_path / "toy", test_llm.LIMITS, seed=3)
    return tmp_path / "toy"


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


# -- before torch ---------------------------------------------------------------------------------------------------------------
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["numpy"] = None  # an import of either raises
import tilewright as tw
from tilewright.runtime.engine_files import EngineFiles
directory, out = sys.argv[1], []
with EngineFiles(directory) as files:
    files.check(files.manifest.files, out.append)
assert len(out) == len(files.manifest.files) == 2
assert isinstance(tw.LLM, type) and tw.SamplingParams(max_tokens=3)


def refusal(make):
    try:
        make()
    except tw.TilewrightError as error:
        return str(error)


assert "no such directory" in refusal(lambda: tw.LLM(directory + "/none"))
assert "no manifest.json in it" in refusal(lambda: tw.LLM(directory + "/kernels"))
with open(directory + "/kernels/toy.py", "a") as file:
    file.write("#")
with EngineFiles(directory) as files:
    assert "'kernels/toy.py' has sha256" in refusal(lambda: files.check(files.manifest.files))
(files.directory / "kernels/toy.py").unlink()
assert "file 'kernels/toy.py' is missing" in refusal(lambda: tw.LLM(directory))
"""


def test_hashing_and_what_the_manifest_and_the_directory_lack_need_no_torch(directory):
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, str(directory)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_everything_is_hashed_while_an_import_lasts(directory, monkeypatch):
    hashed, all_hashed = [], threading.Event()

    def hash_and_count(path, **options):
        found = hash_file(path, **options)
        hashed.append(path.name)
        if len(hashed) == 2:
            all_hashed.set()
        return found

    @contextmanager
    def importing_slowly(target, device):
        assert all_hashed.wait(60), f"only {hashed} until the import ended"
        yield

    monkeypatch.setattr(engine_files, "hash_file", hash_and_count)
    monkeypatch.setattr(llm, "importing_torch", importing_slowly)
    LLM(directory)
    assert sorted(hashed) == ["toy.py", WEIGHTS]


def test_nothing_is_hashed_where_that_is_not_wanted(directory, monkeypatch):
    monkeypatch.setattr(engine_files, "hash_file", None)
    flip(directory / WEIGHTS, -1)
    assert LLM(directory, verify=False).engine.weights.keys() == {"table", "places", "qkv", "head"}


def test_files_whose_hashing_was_never_begun_do_not_pass_for_checked(directory):
    with pytest.raises(KeyError, match=KERNEL):
        Engine.from_files(EngineFiles(directory))


# -- files that are not what the manifest says ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [WEIGHTS, KERNEL])
@pytest.mark.parametrize("edit", [lambda data: data[:-1], lambda data: data[:7], lambda data: b"", lambda data: b"#" + data[1:]])
def test_a_changed_file_is_told_by_its_hash_and_leaves_no_thread(directory, name, edit):
    before = set(threading.enumerate())
    path = directory / name
    path.write_bytes(edit(path.read_bytes()))
    for load in (LLM, Engine.load):
        with pytest.raises(EngineError, match=f"'{name}' has sha256 .*it was changed or cut short; copy the directory again"):
            load(directory)
        assert set(threading.enumerate()) == before


def test_a_missing_file_is_told_before_anything_is_read(directory, monkeypatch):
    monkeypatch.setattr(engine_files, "hash_file", None)
    (directory / WEIGHTS).unlink()
    with pytest.raises(EngineError, match=f"file '{WEIGHTS}' is missing"):
        LLM(directory)


def test_a_kernels_code_is_not_run_before_its_hash_is_known(directory, tmp_path):
    (directory / KERNEL).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n" + toy_engine.SOURCE)
    with pytest.raises(EngineError, match=f"'{KERNEL}' has sha256"):
        LLM(directory)
    assert not (tmp_path / "ran").exists()


def append(path):
    with path.open("ab") as file:
        file.write(b"x")


def write_again(path):
    path.write_bytes(path.read_bytes())


def put_another_in_its_place(path):
    copy = path.with_suffix(".new")
    shutil.copy2(path, copy)  # the time of change too
    copy.replace(path)


@pytest.mark.parametrize("write", [append, write_again, put_another_in_its_place])
@pytest.mark.parametrize("name", [WEIGHTS, KERNEL])
def test_a_file_written_to_between_its_hash_and_the_end_is_told(directory, monkeypatch, name, write):
    load_weights = engine.load_weights

    def load_and_write(files, device, advance):
        files.check(files.manifest.files)  # they are what they should be
        loaded = load_weights(files, device, advance)
        write(directory / name)
        return loaded

    os.utime(directory / name, ns=(1, 10**18))
    monkeypatch.setattr(engine, "load_weights", load_and_write)
    with pytest.raises(EngineError, match=f"'{name}' was written to while it was loaded; load it again when nothing writes there"):
        LLM(directory)


def test_a_file_cut_while_its_reader_reads_is_told_as_written_to(directory, monkeypatch):
    def cut_and_fail(files, device, advance):
        files.check(files.manifest.files)
        os.truncate(directory / WEIGHTS, 11)
        return WeightStream(directory, device, {}).load(files.manifest.weights)

    monkeypatch.setattr(engine, "load_weights", cut_and_fail)
    with pytest.raises(EngineError, match=f"'{WEIGHTS}' was written to while it was loaded"):
        LLM(directory)


@pytest.mark.parametrize("damaged", [False, True])
def test_what_is_not_begun_is_left_to_the_stream(directory, monkeypatch, damaged):
    """The only thread is busy with the kernel's file, which is first."""
    begun, go_on = threading.Event(), threading.Event()

    def hash_slowly(path, **options):
        begun.set()
        assert go_on.wait(60)
        return hash_file(path, **options)

    if damaged:
        flip(directory / WEIGHTS, -1)
    monkeypatch.setattr(engine_files, "hash_file", hash_slowly)
    monkeypatch.setattr(engine_files, "count_threads", lambda: 1)
    with EngineFiles(directory) as files:
        try:
            assert begun.wait(60)
            left = files.leave([KERNEL, WEIGHTS])
            assert left == {WEIGHTS: files.manifest.files[WEIGHTS]}
            stream = WeightStream(directory, torch.device("cpu"), left)
            if damaged:
                with pytest.raises(EngineError, match=f"'{WEIGHTS}' has sha256"):
                    stream.load(files.manifest.weights)
            else:
                assert len(stream.load(files.manifest.weights)) == 4
        finally:
            go_on.set()
        files.check(files.manifest.files)


def test_a_check_hashes_what_no_thread_has_begun(directory, monkeypatch):
    begun, busy, found = threading.Event(), threading.Event(), []

    def hash_where(path, **options):
        found.append((path.name, threading.current_thread() is threading.main_thread()))
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            assert busy.wait(60)
        return hash_file(path, **options)

    monkeypatch.setattr(engine_files, "hash_file", hash_where)
    monkeypatch.setattr(engine_files, "count_threads", lambda: 1)
    with EngineFiles(directory) as files:
        assert begun.wait(60)
        files.check([WEIGHTS])
        busy.set()
        files.check([KERNEL, WEIGHTS])
    assert sorted(found) == [("toy.py", False), (WEIGHTS, True)]


# -- hashing --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("num_bytes", [0, 1, 999, 1000, 1001, 4321])
def test_digests_are_those_of_the_whole_file(tmp_path, monkeypatch, num_bytes):
    monkeypatch.setattr(engine_files, "PIECE_BYTES", 1000)
    data = random.Random(num_bytes).randbytes(num_bytes)
    (tmp_path / "file").write_bytes(data)
    assert hash_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_hashing_ends_where_it_is_not_wanted_any_more(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_files, "PIECE_BYTES", 1000)
    (tmp_path / "file").write_bytes(bytes(5000))
    answers = iter([True, True, False])
    assert hash_file(tmp_path / "file", is_wanted=lambda: next(answers)) == hashlib.sha256(bytes(2000)).hexdigest()


def test_a_file_that_cannot_be_read_is_told(directory, monkeypatch):
    def fail(path, **options):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(engine_files, "hash_file", fail)
    with pytest.raises(EngineError, match=r"toy.py cannot be read \(\[Errno 5\] Input/output error\); copy the directory again"):
        LLM(directory)


# -- while torch is imported ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("target", "device", "ordinal"),
    [
        ("sm_90", None, 0), ("sm_90", "cuda", 0), ("sm_90", "cuda:3", 3), ("sm_90", torch.device("cuda:2"), 2),
        ("cpu", None, None), ("cpu", "cuda", None), ("sm_90", "cpu", None), ("sm_90", "cpu:0", None), ("sm_90", torch.device("cpu"), None),
        ("sm_90", "cuda:x", None), ("sm_90", "tpu", None), ("sm_90", "", None), ("sm_90", 7, None),
    ],
)  # fmt: skip
def test_cuda_is_started_where_the_engine_will_run(monkeypatch, target, device, ordinal):
    monkeypatch.delenv("TILEWRIGHT_INTERPRET", raising=False)
    assert torch_import.find_ordinal(target, device) == ordinal
    monkeypatch.setenv("TILEWRIGHT_INTERPRET", "1")
    assert torch_import.find_ordinal(target, device) is None


@pytest.mark.parametrize("fails", [False, True])
def test_cuda_starts_beside_an_import_and_its_thread_ends_with_it(monkeypatch, fails):
    started, before = [], set(threading.enumerate())

    def start(ordinal):
        threading.Event().wait(0.05)  # longer than the import that it goes on beside
        started.append((ordinal, threading.current_thread().name))
        if fails:
            raise EngineError("CUDA driver", "libcuda.so.1 does not load")

    monkeypatch.delenv("TILEWRIGHT_INTERPRET", raising=False)
    monkeypatch.setenv("CUDA_MODULE_LOADING", "EAGER")  # what the user says stays
    monkeypatch.setattr(torch_import, "start_device", start)
    with torch_import.importing_torch("sm_90", "cuda:1"):
        assert not started  # torch is here already
    monkeypatch.delitem(sys.modules, "torch")
    with pytest.raises(KeyError), torch_import.importing_torch("sm_90", "cuda:1"):
        assert not gc.isenabled()
        raise KeyError
    assert started == [(1, "start-cuda")] and gc.isenabled() and set(threading.enumerate()) == before
    assert os.environ["CUDA_MODULE_LOADING"] == "EAGER"


def generation_of(thing):
    return next((age for age in range(3) if any(thing is one for one in gc.get_objects(age))), None)  # None: frozen


def test_what_an_import_makes_is_old_at_once():
    with torch_import.paused_collector():
        made = [[]]
        assert generation_of(made) == 0
    assert generation_of(made) == 2 and gc.isenabled() and gc.get_freeze_count() == 0


def test_what_is_frozen_stays_so_and_a_collector_that_rests_goes_on_resting():
    kept = [[]]
    gc.freeze()
    try:
        with torch_import.paused_collector():
            pass
        assert gc.isenabled() and generation_of(kept) is None
    finally:
        gc.unfreeze()
    gc.disable()
    try:
        with torch_import.paused_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
