"""Loads cubins and launches their kernels through libcuda alone: no Triton, no compiler, and a launch costs a fraction of a microsecond.

Knows nothing of engines. A launch is prepared once, then repeated with other integers, on any stream, also while a graph is captured.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

from tilewright.ir.errors import EngineError

_INVALID_CONTEXT = 201
MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTEMAX_DYNAMIC_SHARED_SIZE_BYTES
PROGRAMMATIC_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_FREE_SHARED_BYTES = 48 * 1024  # what a block may use without asking
_WARP = 32
_SCALARS: dict[str, Any] = {
    "i1": ctypes.c_uint8, "i8": ctypes.c_int8, "i16": ctypes.c_int16, "i32": ctypes.c_int32, "i64": ctypes.c_int64,
    "u8": ctypes.c_uint8, "u16": ctypes.c_uint16, "u32": ctypes.c_uint32, "u64": ctypes.c_uint64,
    "f32": ctypes.c_float, "fp32": ctypes.c_float, "f64": ctypes.c_double, "fp64": ctypes.c_double,
}  # fmt: skip


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute; its value is a union of 64 bytes, of which we set the first int."""

    _fields_ = (("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_int), ("rest", ctypes.c_char * 60))


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(LaunchAttribute)),
        ("num_attributes", ctypes.c_uint),
    )


class Driver:
    """libcuda. Every call that does not return 0 raises EngineError with the driver's own words."""

    def __init__(self, path: str = "libcuda.so.1") -> None:
        try:
            self.library = ctypes.CDLL(path)
        except OSError as error:
            raise EngineError("CUDA driver", f"{path} does not load ({error})", "install the NVIDIA driver, or build with --target cpu") from error
        self.launch = self.library.cuLaunchKernelEx

    def call(self, what: str, function: str, *args: Any) -> None:
        """`what` names the user's thing in the error: a kernel."""
        code = getattr(self.library, function)(*args)
        if code:
            raise self.explain(what, function, code)

    def explain(self, what: str, function: str, code: int) -> EngineError:
        text = ctypes.c_char_p()
        known = self.library.cuGetErrorString(code, ctypes.byref(text)) == 0 and text.value
        return EngineError(what, f"{function}: {text.value.decode() if known and text.value else 'unknown error'} (CUDA error {code})")

    def get_context(self, what: str) -> ctypes.c_void_p:
        context = ctypes.c_void_p()
        self.call(what, "cuCtxGetCurrent", ctypes.byref(context))
        if not context:
            raise EngineError(what, "this thread has no CUDA context", "call torch.cuda.set_device before loading the engine")
        return context


@functools.cache
def open_driver() -> Driver:
    return Driver()


def start_device(ordinal: int, driver: Driver | None = None) -> None:
    """Starts CUDA and makes the primary context of a device, which stays: torch finds it made. Holds no lock of Python's meanwhile."""
    driver, device, context = driver or open_driver(), ctypes.c_int(), ctypes.c_void_p()
    what = f"device cuda:{ordinal}"
    driver.call(what, "cuInit", 0)
    driver.call(what, "cuDeviceGet", ctypes.byref(device), ordinal)
    driver.call(what, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)


class Module:
    """One kernel of a cubin. The cubin is loaded into the current context when the first launch is prepared, and stays."""

    def __init__(self, cubin: bytes, symbol: str, shared_bytes: int, *, driver: Driver | None = None) -> None:
        self.cubin, self.symbol, self.shared_bytes = cubin, symbol, shared_bytes
        self.driver = driver or open_driver()
        self.function: ctypes.c_void_p | None = None
        self.context: ctypes.c_void_p | None = None  # where it was loaded

    def load(self) -> ctypes.c_void_p:
        if self.function is not None:
            return self.function
        what, module, function = f"kernel {self.symbol}", ctypes.c_void_p(), ctypes.c_void_p()
        self.context = self.driver.get_context(what)
        self.driver.call(what, "cuModuleLoadData", ctypes.byref(module), self.cubin)
        self.driver.call(what, "cuModuleGetFunction", ctypes.byref(function), module, self.symbol.encode())
        if self.shared_bytes > _FREE_SHARED_BYTES:
            self.driver.call(what, "cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED, self.shared_bytes)
        self.function = function
        return function

    def prepare(
        self,
        grid: tuple[int, int, int],
        num_warps: int,
        args: Sequence[int | float],
        types: Sequence[str],
        dependent_launch: bool = False,
        *,
        global_scratch: int = 0,
    ) -> PreparedLaunch:
        """`types` are those of Kernel.parameters: *bf16, i32, ...; pointers are addresses, which must be multiples of 16.

        `global_scratch` is the address of the scratch memory of kernels that ask for some. With `dependent_launch` the kernel may start
        before the one ahead of it in the stream has finished (it waits for it itself).
        """
        if len(args) != len(types):
            raise EngineError(f"kernel {self.symbol}", f"got {len(args)} arguments for the {len(types)} parameters {', '.join(types)}")
        for type_name, value in zip(types, args):
            if type_name.startswith("*") and int(value) % 16:
                problem = f"{type_name} argument {int(value):#x} is not 16-byte aligned, as the kernel was compiled to assume"
                raise EngineError(f"kernel {self.symbol}", problem, "allocate it at a multiple of 16 bytes")
        scratch = [ctypes.c_uint64(global_scratch), ctypes.c_uint64(0)]  # Triton's kernels end in global and profile scratch
        values = [_make_value(self.symbol, type_name, value) for type_name, value in zip(types, args)]
        return PreparedLaunch(self, grid, num_warps * _WARP, values + scratch, dependent_launch=dependent_launch)


def _make_value(symbol: str, type_name: str, value: int | float) -> Any:
    kind: Any = ctypes.c_uint64 if type_name.startswith("*") else _SCALARS.get(type_name)
    if kind is None:
        raise EngineError(f"kernel {symbol}", f"parameter type {type_name!r} cannot be passed; known: pointers, {', '.join(_SCALARS)}")
    return kind(value)


class PreparedLaunch:
    """Launch configuration and parameters in the form the driver reads, so that a launch is one foreign call."""

    __slots__ = ("_addresses", "_attribute", "_config", "_config_reference", "_function", "_launch", "_size", "_values", "module")

    def __init__(self, module: Module, grid: tuple[int, int, int], num_threads: int, values: list[Any], *, dependent_launch: bool) -> None:
        self.module, self._values, self._size = module, values, grid
        self._function, self._launch = module.load(), module.driver.launch
        self._addresses = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        self._attribute = LaunchAttribute(id=PROGRAMMATIC_SERIALIZATION, value=1)
        self._config = LaunchConfig(grid=grid, block=(num_threads, 1, 1), shared_bytes=module.shared_bytes)
        if dependent_launch:
            self._config.attributes = ctypes.pointer(self._attribute)
            self._config.num_attributes = 1
        self._config_reference = ctypes.byref(self._config)

    def resize(self, grid: tuple[int, int, int], values: dict[int, int]) -> None:
        """Another grid, and other integers for these parameters (by index)."""
        if grid != self._size:
            self._size = grid
            self._config.grid = grid
        for index, value in values.items():
            self._values[index].value = value

    def launch(self, stream: int) -> None:
        """Enqueues the kernel on a CUstream handle (torch: `stream.cuda_stream`), or adds it to the graph that the stream captures."""
        self._config.stream = stream
        code = self._launch(self._config_reference, self._function, self._addresses, None)
        if code:
            self._relaunch(code)

    def _relaunch(self, code: int) -> None:
        """A thread that has not used CUDA yet has no current context: it gets the module's, once."""
        driver, what = self.module.driver, f"kernel {self.module.symbol}"
        if code == _INVALID_CONTEXT:
            driver.call(what, "cuCtxSetCurrent", self.module.context)
            code = self._launch(self._config_reference, self._function, self._addresses, None)
        if code:
            shape = f"grid {tuple(self._config.grid)}, {self._config.block[0]} threads, {self._config.shared_bytes} bytes of shared memory"
            raise driver.explain(f"{what} ({shape})", "cuLaunchKernelEx", code)
