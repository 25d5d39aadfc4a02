"""Triton's language for interpreted kernels, without touching Triton's state.

A kernel sees namespaces that mirror `triton.language`: builtins bound to the semantic object of triton_tiles, library functions
rewritten from their source, reductions and loops our own.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import types
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.language import core
from triton.runtime.jit import JITFunction

from tilewright.runtime.triton_assembly import run_assembly
from tilewright.runtime.triton_descriptors import Descriptor
from tilewright.runtime.triton_elements import Handle
from tilewright.runtime.triton_memory import Array, Memory
from tilewright.runtime.triton_operators import shorten, shorten_load, shorten_store
from tilewright.runtime.triton_rewrite import AND, NOT, OR, TILE, TRUTH, rewrite_library
from tilewright.runtime.triton_tiles import BUILDER, SEMANTIC, Tile, form_tile, make_tile

_DTYPES = {
    torch.bool: tl.int1, torch.int8: tl.int8, torch.uint8: tl.uint8, torch.int16: tl.int16, torch.int32: tl.int32, torch.int64: tl.int64,
    torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32, torch.float64: tl.float64,
    torch.float8_e4m3fn: tl.float8e4nv, torch.float8_e5m2: tl.float8e5,
}  # fmt: skip


def make_argument(memory: Memory, name: str, value: torch.Tensor | int | float) -> Tile:
    """What a kernel receives for a run-time argument: a pointer, i32 or i64, or f32."""
    if isinstance(value, torch.Tensor):
        home = memory.add(name, value)
        kind, pointer = _make_pointer(value.dtype)
        return Tile(Handle(np.int64(home.address), pointer, home), kind)
    return SEMANTIC.to_tensor(value)


@functools.cache
def _make_pointer(dtype: torch.dtype) -> tuple[Any, Any]:
    """Triton's type and the builder's: one object each, so that what is kept by type is found again in the next launch."""
    kind = tl.pointer_type(_DTYPES[dtype])
    return kind, kind.to_ir(BUILDER)


# Reductions and scans: Triton compiles the combine function into a region, here it is called on whole slices.


def _reduce(input: Any, axis: Any, combine_fn: Callable[..., Any], keep_dims: Any = False, **compiler: Any) -> Any:
    if isinstance(input, Tile):
        return _reduce((input,), axis, combine_fn, keep_dims)[0]
    rank, axis = len(input[0].shape), core._unwrap_if_constexpr(axis)
    tiles = [_front(tile, axis) for tile in input]
    results = _fold(tiles, combine_fn)
    if core._unwrap_if_constexpr(keep_dims):
        axes = tuple(range(rank)) if axis is None else axis % rank
        return tuple(make_tile(np.expand_dims(r.handle.data, axes), r.dtype) for r in results)
    return tuple(results)


def _front(tile: Tile, axis: int | None) -> Tile:
    data = tile.handle.data
    return make_tile(data.reshape(-1) if axis is None else data.transpose(_axis_first(data.ndim, axis)), tile.dtype)


@functools.cache
def _axis_first(rank: int, axis: int) -> tuple[int, ...]:
    return (axis % rank, *(other for other in range(rank) if other != axis % rank))


def _fold(tiles: list[Tile], combine_fn: Callable[..., Any]) -> list[Tile]:
    """Reduces axis 0: neighbours are combined, halving the axis each time, so that an associative function is enough."""
    first = tiles[0]
    at_once = _AT_ONCE.get(combine_fn) if len(tiles) == 1 and first.handle.element.round is None and not first.dtype.is_int_unsigned() else None
    if at_once is not None:
        return [make_tile(at_once(first.handle.data, axis=0, dtype=first.handle.data.dtype), first.dtype)]
    while len(tiles[0].handle.data) > 1:
        even, odd = ([make_tile(tile.handle.data[start::2], tile.dtype) for tile in tiles] for start in (0, 1))
        combined = combine_fn(*even, *odd)
        tiles = [combined] if isinstance(combined, Tile) else list(combined)
    return [make_tile(tile.handle.data[0], tile.dtype) for tile in tiles]


def _scan(input: Any, axis: Any, combine_fn: Callable[..., Any], reverse: Any = False, **compiler: Any) -> Any:
    if isinstance(input, Tile):
        return _scan((input,), axis, combine_fn, reverse)[0]
    axis, step = core._unwrap_if_constexpr(axis), -1 if core._unwrap_if_constexpr(reverse) else 1
    first = input[0]
    if len(input) == 1 and combine_fn is LANGUAGE.standard._sum_combine and first.handle.element.round is None:
        data = np.flip(first.handle.data, axis) if step < 0 else first.handle.data
        sums = np.add.accumulate(data, axis=axis, dtype=data.dtype)
        return (make_tile(np.flip(sums, axis) if step < 0 else sums, first.dtype),)
    dtypes = [tile.dtype for tile in input]
    columns = [np.moveaxis(tile.handle.data, axis, 0)[::step] for tile in input]
    shift = 1
    while shift < len(columns[0]):  # each element has the combination of the `shift` elements up to it, then of twice as many
        earlier, own = [make_tile(np.roll(c, shift, 0), d) for c, d in zip(columns, dtypes)], [make_tile(c, d) for c, d in zip(columns, dtypes)]
        combined = combine_fn(*earlier, *own)
        combined = [combined] if isinstance(combined, Tile) else combined
        columns = [np.concatenate([c[:shift], tile.handle.data[shift:]]) for c, tile in zip(columns, combined)]
        shift *= 2
    return tuple(make_tile(np.moveaxis(c[::step], 0, axis), dtype) for c, dtype in zip(columns, dtypes))


def _reduce_with_indices(input: Tile, axis: Any, combine_fn: Callable[..., Any], keep_dims: Any = False, **compiler: Any) -> Any:
    axis = core._unwrap_if_constexpr(axis)
    shape = input.handle.data.shape
    along = np.arange(shape[axis], dtype=np.int32).reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])
    return _reduce((input, make_tile(np.broadcast_to(along, shape), tl.int32)), axis, combine_fn, keep_dims)


# Control flow and Python builtins, as Triton's compiler reads them.


def _range(start: Any, stop: Any = None, step: Any = 1, **hints: Any) -> Iterator[Tile]:
    """Run-time loop: the index is a tile of the bounds' integer type, as in compiled code."""
    if stop is None:
        start, stop = 0, start
    bounds: list[Any] = [SEMANTIC.to_tensor(core._unwrap_if_constexpr(bound)) for bound in (start, stop, step)]
    dtype = tl.int64 if any(bound.dtype.int_bitwidth == 64 for bound in bounds) else tl.int32
    element = dtype.to_ir(BUILDER)
    for index in range(*(int(bound.handle.data) for bound in bounds)):
        yield form_tile(Handle(element.compute.type(index), element), dtype, ())


def _static_range(start: Any, stop: Any = None, step: Any = 1, **hints: Any) -> range:
    start, stop, step = (core._unwrap_if_constexpr(bound) for bound in (start, stop, step))
    return range(start) if stop is None else range(start, stop, step)


def _tile(value: Any) -> Any:
    return value if type(value) is Tile else SEMANTIC.to_tensor(value, False)


def _truth(value: Any) -> bool:
    if not isinstance(value, Tile):
        return bool(core._unwrap_if_constexpr(value))
    if np.ndim(value.handle.data):
        raise TypeError(f"a test of a tile of shape {value.handle.data.shape}: only scalars have a truth value")
    return bool(value.handle.data)


def _and(left: Any, right: Callable[[], Any]) -> Any:
    return left.logical_and(right()) if isinstance(left, Tile) else left and right()


def _or(left: Any, right: Callable[[], Any]) -> Any:
    return left.logical_or(right()) if isinstance(left, Tile) else left or right()


def _not(value: Any) -> Any:
    return SEMANTIC.not_(value) if isinstance(value, Tile) else not value


def _pick(of_tiles: str, of_numbers: Callable[..., Any]) -> Callable[..., Any]:
    """`min` and `max`: Python's on numbers, Triton's elementwise ones on tiles."""

    def choose(*operands: Any) -> Any:
        if not any(isinstance(operand, Tile) for operand in operands):
            return of_numbers(*operands)
        result = operands[0]
        for operand in operands[1:]:
            result = getattr(LANGUAGE, of_tiles)(result, operand)
        return result

    return choose


def _static_assert(condition: Any, message: str = "", **compiler: Any) -> None:
    if not core._unwrap_if_constexpr(condition):
        raise AssertionError(f"static_assert: {message}")


def _run_assembly(asm: Any, constraints: Any, args: Any, dtype: Any, is_pure: Any = True, pack: Any = 1, **compiler: Any) -> Any:
    if core._unwrap_if_constexpr(pack) != 1:
        raise NotImplementedError("inline assembly of several elements at once; write it for one")
    handles = [SEMANTIC.to_tensor(arg).handle for arg in args]
    raw = np.broadcast_arrays(*(handle.element.encode(np.asarray(handle.data)) for handle in handles))
    several = isinstance(dtype, (tuple, core.tuple))
    elements = [(one, one.to_ir(BUILDER)) for one in (dtype if several else (dtype,))]
    results = run_assembly(str(core._unwrap_if_constexpr(asm)), raw, len(elements))
    tiles = tuple(make_tile(element.decode(bits.view(element.memory)), one) for (one, element), bits in zip(elements, results))
    return tiles if several else tiles[0]


def _broadcast(input: Tile, other: Tile, **compiler: Any) -> tuple[Tile, ...]:
    """Operands of an operation are broadcast by NumPy when it is done; here the results are themselves values."""
    return tuple(make_tile(np.broadcast_to(tile.handle.data, tile.dims), tile.dtype) for tile in SEMANTIC.broadcast_impl_value(input, other))


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _keep_first(value: Any, *args: Any, **kwargs: Any) -> Any:
    return value


_REPLACED: dict[str, Any] = {
    "reduce": _reduce, "associative_scan": _scan, "_reduce_with_indices": _reduce_with_indices,
    "range": _range, "static_range": _static_range, "static_assert": _static_assert, "static_print": print,
    "broadcast": _broadcast, "multiple_of": _keep_first, "max_contiguous": _keep_first, "max_constancy": _keep_first,
    "inline_asm_elementwise": _run_assembly, "make_tensor_descriptor": Descriptor,
    "gdc_wait": _do_nothing, "gdc_launch_dependents": _do_nothing, "debug_barrier": _do_nothing,
}  # fmt: skip
_SHORTENED = {"load": shorten_load, "store": shorten_store}
_HOOKS: dict[str, Any] = {TILE: _tile, TRUTH: _truth, AND: _and, OR: _or, NOT: _not}
_LIBDEVICE: dict[str, Callable[..., Array]] = {
    **{name: getattr(np, name) for name in ("tanh", "exp", "exp2", "log", "log2", "log1p", "expm1", "sqrt", "sin", "cos", "floor", "ceil", "rint")},
    "abs": np.abs, "pow": np.power, "rsqrt": lambda x: np.reciprocal(np.sqrt(x)), "fast_expf": np.exp, "fast_tanhf": np.tanh,
    "erf": lambda x: torch.special.erf(torch.from_numpy(np.array(x))).numpy(),
}  # fmt: skip


# Namespaces that mirror Triton's modules.


def bind(function: Callable[..., Any]) -> Callable[..., Any]:
    """A builtin of Triton with our semantic object for the compiler's."""
    function = getattr(function, "__wrapped__", function)

    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs["_semantic"] = SEMANTIC
        result = function(*args, **kwargs)
        return Tile(result.handle, result.type) if type(result) is tl.tensor else result  # some builtins name the class themselves

    return call


def _mirror(module: types.ModuleType) -> SimpleNamespace:
    """The module as kernels see it; its jit functions are rewritten from their source."""
    if module.__name__ in _MIRRORS:
        return _MIRRORS[module.__name__]
    mirror = _MIRRORS[module.__name__] = SimpleNamespace()
    names = mirror.__dict__
    if module.__name__.endswith("libdevice"):
        names.update({name: _make_libdevice(name) for name, value in vars(module).items() if callable(value)})
        return mirror
    own = [value for value in vars(module).values() if isinstance(value, JITFunction) and value.__module__ == module.__name__]
    names.update({name: translate(name, value) for name, value in vars(module).items() if value not in own})
    if own:
        code = compile(rewrite_library(inspect.getsource(module), str(module.__file__)), str(module.__file__), "exec")
        scope = {**vars(module), **names, **_HOOKS}
        exec(code, scope)
        names.update({function.__name__: scope[function.__name__] for function in own})
        scope.update(names)
    return mirror


def _make_libdevice(name: str) -> Callable[..., Tile]:
    def call(*operands: Any) -> Tile:
        if name not in _LIBDEVICE:
            raise NotImplementedError(f"the interpreter has no libdevice.{name}")
        tiles = [SEMANTIC.to_tensor(operand) for operand in operands]
        dtype = tiles[0].dtype
        data = _LIBDEVICE[name](*(tile.handle.data for tile in tiles))
        return make_tile(np.asarray(data, dtype=tiles[0].handle.element.compute), dtype)

    return call


def translate(name: str, value: Any) -> Any:
    """What a kernel should find under a global `name` that Triton's compiler would read as `value`."""
    if name in _REPLACED:
        return _REPLACED[name]
    if isinstance(value, types.ModuleType):
        return _mirror(value) if value.__name__.startswith("triton.language") else value
    if isinstance(value, JITFunction):
        return getattr(_mirror(importlib.import_module(value.__module__)), value.__name__)
    if not (inspect.isfunction(value) and core.is_builtin(value)):
        return value
    return _SHORTENED.get(name, _keep_first)(bind(value))


def enter_language(scope: dict[str, Any]) -> None:
    """Makes the globals of an executed kernel module, its jit functions already rewritten, see tiles."""
    scope.update({name: translate(name, value) for name, value in scope.items() if not name.startswith("__")})
    scope.update(_HOOKS, range=_range, min=_pick("minimum", min), max=_pick("maximum", max))


def _equip_tile() -> None:
    for name, member in inspect.getmembers(tl.tensor):
        if name in vars(Tile):
            continue
        if isinstance(member, JITFunction):
            setattr(Tile, name, translate(name, member))
        elif core.is_builtin(member):
            setattr(Tile, name, _REPLACED.get(name) or shorten(name, bind(member)))


_MIRRORS: dict[str, SimpleNamespace] = {}
LANGUAGE = _mirror(tl)
LANGUAGE.extra = SimpleNamespace(**{name: _mirror(importlib.import_module(f"triton.language.extra.{name}")) for name in ("cuda", "libdevice")})
_MIRRORS["triton.language.extra"] = LANGUAGE.extra
_AT_ONCE: dict[Any, Callable[..., Array]] = {
    LANGUAGE.standard._sum_combine: np.add.reduce,
    LANGUAGE.standard._elementwise_max: np.fmax.reduce,
    LANGUAGE.standard._elementwise_min: np.fmin.reduce,
}  # fmt: skip
_equip_tile()
