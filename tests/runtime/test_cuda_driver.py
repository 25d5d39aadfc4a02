"""The launch path against a stand-in libcuda that records what it is given, compiled from the real header."""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tilewright.ir.errors import EngineError
from tilewright.runtime.cuda_driver import MAX_DYNAMIC_SHARED, PROGRAMMATIC_SERIALIZATION, Driver, LaunchAttribute, Module, start_device

STUB = r"""
#include "cuda.h"
#include <string.h>
typedef struct {
  unsigned grid[3], block[3], shared, num_attributes, attribute, attribute_value, num_loads, num_launches;
  int function_attribute, function_attribute_value;
  void *stream, *function, *context;
  unsigned char parameters[16][8];
} Record;
Record record;
int sizes[16], num_parameters, fail_load, fail_launch;
static _Thread_local void *current = 0;
void set_current(void *context) { current = context; }
CUresult cuGetErrorString(CUresult code, const char **text) {
  *text = code == 700 ? "an illegal memory access was encountered" : code == 201 ? "invalid device context" : 0;
  return *text ? 0 : CUDA_ERROR_INVALID_VALUE;
}
int device_calls[3], fail_device;
CUresult cuInit(unsigned flags) { device_calls[0] = 1 + flags; return 0; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) { *device = 40 + ordinal; device_calls[1] = device_calls[0]; return fail_device; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) { *context = (CUcontext)0x77; device_calls[2] = device; return 0; }
CUresult cuCtxGetCurrent(CUcontext *context) { *context = current; return 0; }
CUresult cuCtxSetCurrent(CUcontext context) { current = record.context = context; return 0; }
CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  record.num_loads++;
  *module = (CUmodule)0x1000;
  return fail_load ? fail_load : memcmp(image, "\x7f" "ELF", 4) ? CUDA_ERROR_INVALID_IMAGE : 0;
}
CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  *function = (CUfunction)0x123456789abcdef0;
  return strcmp(name, "twice") ? CUDA_ERROR_NOT_FOUND : 0;
}
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  record.function_attribute = attribute; record.function_attribute_value = value;
  return function == (CUfunction)0x123456789abcdef0 ? 0 : CUDA_ERROR_INVALID_HANDLE;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction function, void **parameters, void **extra) {
  if (!current) return CUDA_ERROR_INVALID_CONTEXT;
  unsigned grid[3] = {c->gridDimX, c->gridDimY, c->gridDimZ}, block[3] = {c->blockDimX, c->blockDimY, c->blockDimZ};
  memcpy(record.grid, grid, sizeof grid); memcpy(record.block, block, sizeof block);
  record.shared = c->sharedMemBytes; record.stream = c->hStream; record.function = function; record.num_attributes = c->numAttrs;
  record.attribute = c->numAttrs ? c->attrs[0].id : 0;
  record.attribute_value = c->numAttrs ? c->attrs[0].value.programmaticStreamSerializationAllowed : 0;
  for (int i = 0; i < num_parameters; i++) memcpy(record.parameters[i], parameters[i], sizes[i]);
  record.num_launches++;
  return fail_launch;
}
int attribute_bytes(void) { return sizeof(CUlaunchAttribute); }
int pdl_attribute(void) { return CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION; }
int shared_attribute(void) { return CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES; }
"""
TYPES = ["*bf16", "i32", "i64", "f32", "*i8"]
FORMATS = ["<Q", "<i", "<q", "<f", "<Q"]
ELF = b"\x7fELF rest of a cubin"


class Record(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint * 3) for name in ("grid", "block")),
        *((name, ctypes.c_uint) for name in ("shared", "num_attributes", "attribute", "attribute_value", "num_loads", "num_launches")),
        *((name, ctypes.c_int) for name in ("function_attribute", "function_attribute_value")),
        *((name, ctypes.c_void_p) for name in ("stream", "function", "context")),
        ("parameters", ctypes.c_ubyte * 8 * 16),
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = importlib.util.find_spec("triton")
    include = Path(str(found.origin)).parent / "backends/nvidia/include" if found else None
    if shutil.which("gcc") is None or include is None or not (include / "cuda.h").is_file():
        pytest.skip("needs gcc and the cuda.h that Triton carries")
    folder = tmp_path_factory.mktemp("stub")
    (folder / "stub.c").write_text(STUB)
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-I", include, "-o", folder / "libstub.so", folder / "stub.c"], check=True)
    return folder / "libstub.so"


class Stub:
    def __init__(self, path: Path) -> None:
        self.driver = Driver(str(path))
        self.library: Any = self.driver.library
        self.record = Record.in_dll(self.library, "record")
        ctypes.memset(ctypes.addressof(self.record), 0, ctypes.sizeof(self.record))
        self.set("fail_load", 0)
        self.set("fail_launch", 0)
        sizes = [struct.calcsize(form) for form in FORMATS] + [8, 8]
        self.set("num_parameters", len(sizes))
        (ctypes.c_int * 16).in_dll(self.library, "sizes")[: len(sizes)] = sizes
        self.library.set_current(ctypes.c_void_p(0x77))

    def set(self, name: str, value: int) -> None:
        ctypes.c_int.in_dll(self.library, name).value = value

    def parameter(self, index: int, form: str) -> Any:
        return struct.unpack_from(form, bytes(self.record.parameters[index]))[0]

    def make_module(self, shared_bytes: int = 1000, symbol: str = "twice", cubin: bytes = ELF) -> Module:
        return Module(cubin, symbol, shared_bytes, driver=self.driver)


@pytest.fixture
def stub(library: Path) -> Stub:
    return Stub(library)


ARGS = [0x7F0011223340, -5, 2**40 + 1, 0.25, 0x7F00AABBCC00]


def test_our_structures_are_those_of_the_header(stub: Stub) -> None:
    assert ctypes.sizeof(LaunchAttribute) == stub.library.attribute_bytes()
    assert stub.library.pdl_attribute() == PROGRAMMATIC_SERIALIZATION
    assert stub.library.shared_attribute() == MAX_DYNAMIC_SHARED


def test_a_launch_passes_grid_block_stream_and_every_parameter(stub: Stub) -> None:
    prepared = stub.make_module().prepare((7, 3, 2), 8, ARGS, TYPES, False)
    prepared.launch(0x5555_0000_1234)
    record = stub.record
    assert (list(record.grid), list(record.block), record.shared) == ([7, 3, 2], [256, 1, 1], 1000)
    assert (record.stream, record.function, record.num_attributes) == (0x5555_0000_1234, 0x123456789ABCDEF0, 0)
    assert [stub.parameter(i, form) for i, form in enumerate(FORMATS)] == ARGS


def test_two_scratch_pointers_follow_the_parameters(stub: Stub) -> None:
    module = stub.make_module()
    module.prepare((1, 1, 1), 4, ARGS, TYPES).launch(0)
    assert (stub.parameter(5, "<Q"), stub.parameter(6, "<Q")) == (0, 0)
    module.prepare((1, 1, 1), 4, ARGS, TYPES, global_scratch=0x4000).launch(0)
    assert (stub.parameter(5, "<Q"), stub.parameter(6, "<Q")) == (0x4000, 0)


def test_a_dependent_launch_carries_the_attribute(stub: Stub) -> None:
    stub.make_module().prepare((1, 1, 1), 4, ARGS, TYPES, True).launch(0)
    assert (stub.record.num_attributes, stub.record.attribute, stub.record.attribute_value) == (1, stub.library.pdl_attribute(), 1)


def test_arguments_and_grid_change_between_launches(stub: Stub) -> None:
    prepared = stub.make_module().prepare((1, 1, 1), 4, ARGS, TYPES)
    prepared.resize((5, 6, 1), {1: 99})
    prepared.launch(0)
    assert stub.parameter(1, "<i") == 99 and stub.parameter(0, "<Q") == ARGS[0]
    assert list(stub.record.grid) == [5, 6, 1]


def test_two_launches_of_one_module_load_it_once_and_keep_their_own_arguments(stub: Stub) -> None:
    module = stub.make_module()
    first, second = (module.prepare((1, 1, 1), 4, [*ARGS[:1], n, *ARGS[2:]], TYPES) for n in (1, 2))
    second.launch(0)
    assert stub.parameter(1, "<i") == 2
    first.launch(0)
    assert stub.parameter(1, "<i") == 1 and stub.record.num_loads == 1 and stub.record.num_launches == 2


@pytest.mark.parametrize(("shared_bytes", "expected"), [(48 * 1024, 0), (48 * 1024 + 16, 48 * 1024 + 16)])
def test_more_than_48_kib_of_shared_memory_is_asked_for(stub: Stub, shared_bytes: int, expected: int) -> None:
    stub.make_module(shared_bytes).prepare((1, 1, 1), 4, ARGS, TYPES).launch(0)
    assert stub.record.function_attribute_value == expected and stub.record.shared == shared_bytes


def test_a_failed_launch_speaks_the_drivers_words(stub: Stub) -> None:
    prepared = stub.make_module().prepare((7, 1, 1), 4, ARGS, TYPES)
    stub.set("fail_launch", 700)
    with pytest.raises(EngineError, match=r"twice \(grid \(7, 1, 1\), 128 threads, 1000 .*an illegal memory access .* \(CUDA error 700\)"):
        prepared.launch(0)


def test_a_foreign_image_and_a_missing_symbol_are_told(stub: Stub) -> None:
    with pytest.raises(EngineError, match=r"kernel twice: cuModuleLoadData: unknown error \(CUDA error 200\)"):
        stub.make_module(cubin=b"#!/bin/sh").prepare((1, 1, 1), 4, ARGS, TYPES)
    with pytest.raises(EngineError, match="kernel thrice: cuModuleGetFunction"):
        stub.make_module(symbol="thrice").prepare((1, 1, 1), 4, ARGS, TYPES)


def test_a_misaligned_pointer_is_refused_before_it_reaches_the_gpu(stub: Stub) -> None:
    with pytest.raises(EngineError, match=r"\*bf16 argument 0x1008 is not 16-byte aligned"):
        stub.make_module().prepare((1, 1, 1), 4, [0x1008, *ARGS[1:]], TYPES)


def test_wrong_arguments_are_refused_with_both_sides(stub: Stub) -> None:
    with pytest.raises(EngineError, match=r"got 2 arguments for the 5 parameters \*bf16, i32"):
        stub.make_module().prepare((1, 1, 1), 4, ARGS[:2], TYPES)
    with pytest.raises(EngineError, match="parameter type 'bf16' cannot be passed"):
        stub.make_module().prepare((1, 1, 1), 4, [1.0], ["bf16"])


def test_without_a_context_nothing_is_loaded(stub: Stub) -> None:
    stub.library.set_current(None)
    with pytest.raises(EngineError, match="no CUDA context; call"):
        stub.make_module().prepare((1, 1, 1), 4, ARGS, TYPES)
    assert stub.record.num_loads == 0


def test_a_fresh_thread_gets_the_modules_context(stub: Stub) -> None:
    prepared = stub.make_module().prepare((1, 1, 1), 4, ARGS, TYPES)
    thread = threading.Thread(target=prepared.launch, args=(0,))
    thread.start()
    thread.join()
    assert stub.record.num_launches == 1 and stub.record.context == 0x77


def test_a_device_is_started_by_its_number(stub: Stub) -> None:
    calls = (ctypes.c_int * 3).in_dll(stub.library, "device_calls")
    start_device(2, stub.driver)
    assert list(calls) == [1, 1, 42]  # cuInit without flags, before the device is asked for
    stub.set("fail_device", 101)
    with pytest.raises(EngineError, match=r"device cuda:9: cuDeviceGet: unknown error \(CUDA error 101\)"):
        start_device(9, stub.driver)


def test_a_missing_driver_says_what_to_do() -> None:
    with pytest.raises(EngineError, match=r"CUDA driver: /nowhere/libcuda\.so\.1 does not load"):
        Driver("/nowhere/libcuda.so.1")


def test_a_prepared_launch_costs_little_on_the_host(stub: Stub) -> None:
    prepared = stub.make_module().prepare((1, 1, 1), 4, ARGS, TYPES)
    best = min(_time_launches(prepared) for _ in range(5))
    assert best < 20e-6, f"{best * 1e6:.2f} us a launch"  # it is 0.5 us on a quiet machine; the bound only catches a detour


def _time_launches(prepared: Any) -> float:
    start = time.perf_counter()
    for i in range(200):
        prepared.resize((i, 1, 1), {1: i})
        prepared.launch(0)
    return (time.perf_counter() - start) / 200


def test_the_launch_path_imports_no_triton(tmp_path: Path) -> None:
    code = "import sys, tilewright.runtime.cuda_driver; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0
