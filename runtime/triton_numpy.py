"""Arithmetic of interpreted Triton: the operations that Triton's front end asks of its IR builder, done at once in NumPy.

Each result of a type without a NumPy dtype is computed in f32 and rounded to nearest even; unsigned operations reinterpret
signed arrays. Knows no kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from triton._C.libtriton import ir

from tilewright.runtime.triton_elements import BF16, F8E4M3, F8E5M2, F16, F32, F64, I1, I8, I16, I32, I64, Block, Element, Handle, Pointer
from tilewright.runtime.triton_memory import Array, Memory


def _unsigned(data: Array) -> Array:
    return data if data.dtype.kind != "i" else data.view(f"u{data.itemsize}")


def _rounded(data: Array, element: Any) -> Handle:
    return Handle(data if element.round is None else element.round(data), element)


def _elementwise(function: Callable[..., Array]) -> Callable[..., Handle]:
    def build(self: NumpyBuilder, *operands: Handle) -> Handle:
        element = operands[0].element
        data = function(*[operand.data for operand in operands])
        return Handle(data if element.round is None else element.round(data), element)

    return build


def _unsigned_elementwise(function: Callable[..., Array]) -> Callable[..., Handle]:
    def build(self: NumpyBuilder, *operands: Handle) -> Handle:
        element = operands[0].element
        return Handle(np.asarray(function(*(_unsigned(operand.data) for operand in operands))).view(element.compute), element)

    return build


def _compare(function: Callable[..., Array], prepare: Callable[[Array], Array] = lambda data: data) -> Callable[..., Handle]:
    return lambda self, a, b: Handle(function(prepare(a.data), prepare(b.data)), I1)


def _divide_integers(a: Array, b: Array) -> Array:
    """Quotient rounded toward zero, as C and the GPU do; x / 0 is 0."""
    return (a - np.fmod(a, b)) // b


def _wrap_bool(function: Callable[..., Array], one_bit: Callable[..., Array]) -> Callable[..., Array]:
    """Arithmetic of i1 wraps at one bit, where NumPy saturates."""
    return lambda a, b: one_bit(a, b) if a.dtype == np.bool_ else function(a, b)


def _multiply_high(a: Array, b: Array) -> Array:
    bits = a.dtype.itemsize * 8
    wide: Any = np.uint64 if bits < 64 else object
    return ((a.astype(wide) * b.astype(wide)) >> bits).astype(a.dtype)


def _fused_multiply_add(x: Array, y: Array, z: Array) -> Array:
    """One rounding: exact in f64 for products of f32, then rounded to the operands' dtype."""
    return (x.astype(np.float64) * y + z).astype(z.dtype)


def _erf(x: Array) -> Array:
    return torch.special.erf(torch.from_numpy(np.array(x))).numpy()


_ELEMENTWISE: dict[str, Callable[..., Array]] = {
    "fadd": np.add, "fsub": np.subtract, "fmul": np.multiply, "fdiv": np.divide, "frem": np.fmod, "fneg": np.negative,
    "precise_divf": np.divide, "approx_divf": np.divide, "minimumf": np.minimum, "maximumf": np.maximum, "minnumf": np.fmin, "maxnumf": np.fmax,
    "add": _wrap_bool(np.add, np.bitwise_xor), "sub": _wrap_bool(np.subtract, np.bitwise_xor), "mul": np.multiply,
    "sdiv": _divide_integers, "srem": np.fmod, "minsi": np.minimum, "maxsi": np.maximum,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor, "shl": np.left_shift, "ashr": np.right_shift,
    "fabs": np.abs, "iabs": np.abs, "floor": np.floor, "ceil": np.ceil, "exp": np.exp, "exp2": np.exp2, "log": np.log, "log2": np.log2,
    "sin": np.sin, "cos": np.cos, "sqrt": np.sqrt, "precise_sqrt": np.sqrt, "rsqrt": lambda x: np.reciprocal(np.sqrt(x)),
    "erf": _erf, "fma": _fused_multiply_add,
}  # fmt: skip
_UNSIGNED: dict[str, Callable[..., Array]] = {
    "udiv": np.floor_divide, "urem": np.remainder, "minui": np.minimum, "maxui": np.maximum, "lshr": np.right_shift, "umulhi": _multiply_high,
}  # fmt: skip
_COMPARISONS = {"LT": np.less, "LE": np.less_equal, "GT": np.greater, "GE": np.greater_equal}
_ATOMIC_OPERATIONS: dict[Any, Callable[[Array, Array], Array]] = {
    ir.ATOMIC_OP.ADD: np.add, ir.ATOMIC_OP.FADD: np.add, ir.ATOMIC_OP.MIN: np.minimum, ir.ATOMIC_OP.MAX: np.maximum,
    ir.ATOMIC_OP.AND: np.bitwise_and, ir.ATOMIC_OP.OR: np.bitwise_or, ir.ATOMIC_OP.XOR: np.bitwise_xor,
    ir.ATOMIC_OP.XCHG: lambda old, new: new,
    ir.ATOMIC_OP.UMIN: lambda old, new: np.where(_unsigned(old) <= _unsigned(new), old, new),
    ir.ATOMIC_OP.UMAX: lambda old, new: np.where(_unsigned(old) >= _unsigned(new), old, new),
}  # fmt: skip


class NumpyBuilder:
    """Stands where Triton's IR builder stands. `memory` and `grid` belong to the launch that is running."""

    memory: Memory
    grid: tuple[int, int, int] = (1, 1, 1)

    def __init__(self) -> None:
        self.options = SimpleNamespace(
            debug=False, sanitize_overflow=False, arch="interpreter", backend_name="interpreter", extern_libs={}, num_warps=4,
            supported_fp8_dtypes=("fp8e5", "fp8e4nv"), deprecated_fp8_dot_operand_dtypes=(), max_num_imprecise_acc_default=0,
            default_dot_input_precision="tf32", allowed_dot_input_precisions=("tf32", "tf32x3", "ieee", "bf16x3", "bf16x6"),
        )  # fmt: skip
        self.codegen_fns = {"min_dot_size": _smallest_dot, "convert_custom_types": _refuse_custom_types}

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(f"the interpreter has no {name}; compile the kernel instead")

    # Types: Triton passes back what these return.
    def get_void_ty(self) -> None:
        return None

    def get_block_ty(self, element: Any, shape: Any) -> Block:
        return Block(element, shape)

    def get_ptr_ty(self, element: Element, address_space: int) -> Pointer:
        return Pointer(element)

    # Constants and indices.
    def get_null_value(self, kind: Any) -> Handle:
        return self._fill(kind, 0)

    def get_all_ones_value(self, kind: Any) -> Handle:
        return self._fill(kind, -1)

    def _fill(self, kind: Any, value: int) -> Handle:
        element, shape = (kind.element, kind.shape) if isinstance(kind, Block) else (kind, ())
        return Handle(np.full(shape, value, element.compute), element)

    def create_get_program_id(self, axis: int) -> Handle:
        return Handle(np.int32(self.memory.program[axis]), I32)

    def create_get_num_programs(self, axis: int) -> Handle:
        return Handle(np.int32(self.grid[axis]), I32)

    def create_make_range(self, kind: Block, start: int, stop: int) -> Handle:
        return Handle(np.arange(start, stop, dtype=np.int32), I32)

    # Memory.
    def get_cache_policy(self, *hints: Any) -> None:
        return None

    def create_load(self, pointer: Handle, *hints: Any) -> Handle:
        element = pointer.element.element
        return Handle(element.decode(self.memory.load(pointer.data, None, element.memory, pointer.home)), element)

    def create_masked_load(self, pointer: Handle, mask: Handle, other: Handle | None, *hints: Any) -> Handle:
        element, memory = pointer.element.element, self.memory
        pointers, active = pointer.data, mask.data
        if active.shape != pointers.shape and (pointers.shape != np.broadcast(pointers, active).shape or not active.all()):
            pointers, active = np.broadcast_arrays(pointers, active)
        if active.all():
            return self.create_load(Handle(pointers, pointer.element, pointer.home))
        data = element.decode(memory.load(pointers, active, element.memory, pointer.home))
        if other is not None:
            return Handle(np.where(active, data, other.data), element)
        return Handle(np.where(active, data, _poison(element) if memory.checked else element.compute.type(0)), element)

    def create_store(self, pointer: Handle, value: Handle, *hints: Any) -> None:
        self._store(pointer, value, None)

    def create_masked_store(self, pointer: Handle, value: Handle, mask: Handle, *hints: Any) -> None:
        self._store(pointer, value, np.broadcast_to(mask.data, pointer.data.shape))

    def _store(self, pointer: Handle, value: Handle, mask: Array) -> None:
        element = pointer.element.element
        raw = np.broadcast_to(np.asarray(element.encode(value.data)), pointer.data.shape)
        self.memory.store(pointer.data, raw, mask, pointer.home)

    def create_atomic_rmw(self, operation: Any, pointer: Handle, value: Handle, mask: Handle, *order: Any) -> Handle:
        combine = _ATOMIC_OPERATIONS[operation]
        element = pointer.element.element

        def change(old: Array, new: Array, lane: Array) -> Array:
            return element.encode(combine(element.decode(old), element.decode(new)))

        return self._update(pointer, value, mask.data, change)

    def create_atomic_cas(self, pointer: Handle, compare: Handle, value: Handle, *order: Any) -> Handle:
        element = pointer.element.element
        expected = np.broadcast_to(element.encode(np.asarray(compare.data)), pointer.data.shape).reshape(-1)
        everyone = np.ones(pointer.data.shape, bool)
        return self._update(pointer, value, everyone, lambda old, new, lane: np.where(old == expected[lane], new, old))

    def _update(self, pointer: Handle, value: Handle, mask: Array, change: Callable[[Array, Array, Array], Array]) -> Handle:
        element = pointer.element.element
        pointers, raw, active = np.broadcast_arrays(pointer.data, element.encode(np.asarray(value.data)), mask)
        old = np.zeros(active.shape, element.memory)
        old[active] = self.memory.update(pointers[active], raw[active], pointer.home, change)
        return Handle(element.decode(old), element)

    def create_addptr(self, pointer: Handle, offset: Handle) -> Handle:
        size = pointer.element.element.memory.itemsize
        return Handle(pointer.data + np.multiply(offset.data, size, dtype=np.int64), pointer.element, pointer.home)

    # Conversions.
    def create_fp_to_fp(self, source: Handle, kind: Any, rounding: Any = None) -> Handle:
        element = _element(kind)
        if rounding == ir.ROUNDING_MODE.RTZ:
            raise NotImplementedError("the interpreter rounds to nearest even only")
        return _rounded(source.data.astype(element.compute), element)

    create_fp_ext = create_fp_trunc = create_si_to_fp = create_fp_to_si = create_fp_to_ui = create_fp_to_fp

    def create_ui_to_fp(self, source: Handle, kind: Any) -> Handle:
        element = _element(kind)
        return _rounded(_unsigned(source.data).astype(element.compute), element)

    def create_int_cast(self, source: Handle, kind: Any, signed: bool) -> Handle:
        element = _element(kind)
        data = source.data if signed else _unsigned(source.data)
        if element is I1:
            return Handle((data & 1).astype(np.bool_), I1)
        return Handle(data.astype(element.compute), element)

    def create_bitcast(self, source: Handle, kind: Any) -> Handle:
        element = _element(kind)
        if isinstance(element, Pointer) or isinstance(source.element, Pointer):
            return Handle(source.data, element, source.home)
        raw = np.ascontiguousarray(source.element.encode(source.data)).reshape(np.shape(source.data))
        return Handle(element.decode(raw.view(element.memory)), element)

    create_int_to_ptr = create_ptr_to_int = create_bitcast

    # Shapes.
    def create_reshape(self, source: Handle, shape: Any, allow_reorder: bool) -> Handle:
        return Handle(source.data.reshape(tuple(shape)), source.element, source.home)

    def create_expand_dims(self, source: Handle, axis: int) -> Handle:
        return Handle(np.expand_dims(source.data, axis), source.element, source.home)

    def create_broadcast(self, source: Handle, shape: Any) -> Handle:
        return Handle(np.broadcast_to(source.data, tuple(shape)), source.element, source.home)

    def create_splat(self, kind: Block, source: Handle) -> Handle:
        return Handle(np.broadcast_to(source.data, kind.shape), source.element, source.home)

    def create_unsplat(self, source: Handle) -> Handle:
        return Handle(source.data.reshape(()), source.element, source.home)

    def create_trans(self, source: Handle, order: Any) -> Handle:
        return Handle(np.transpose(source.data, order), source.element, source.home)

    def create_cat(self, left: Handle, right: Handle) -> Handle:
        return Handle(np.concatenate([left.data, right.data]), left.element)

    def create_join(self, left: Handle, right: Handle) -> Handle:
        return Handle(np.stack(np.broadcast_arrays(left.data, right.data), axis=-1), left.element)

    def create_split(self, source: Handle) -> tuple[Handle, Handle]:
        return Handle(source.data[..., 0], source.element), Handle(source.data[..., 1], source.element)

    def create_gather(self, source: Handle, index: Handle, axis: int) -> Handle:
        return Handle(np.take_along_axis(source.data, index.data.astype(np.int64), axis=axis), source.element)

    def create_histogram(self, source: Handle, bins: int, mask: Handle | None) -> Handle:
        values = source.data if mask is None else source.data[mask.data]
        return Handle(np.bincount(values[(values >= 0) & (values < bins)], minlength=bins).astype(np.int32), I32)

    # Arithmetic that is no plain function of its operands.
    def create_select(self, condition: Handle, yes: Handle, no: Handle) -> Handle:
        home = yes.home if yes.home is no.home else None
        return Handle(np.where(condition.data, yes.data, no.data), yes.element, home)

    def create_clampf(self, x: Handle, low: Handle, high: Handle, propagate: Any) -> Handle:
        quiet = propagate == ir.PROPAGATE_NAN.NONE
        data = np.fmin(np.fmax(x.data, low.data), high.data) if quiet else np.clip(x.data, low.data, high.data)
        return _rounded(data, x.element)

    def create_dot(self, a: Handle, b: Handle, accumulator: Handle, precision: Any, *limits: Any) -> Handle:
        if a.element is I8:
            product = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64)).astype(np.int32)
            return Handle(accumulator.data + product, I32)
        compute = np.float64 if a.element is F64 else np.float32
        x, y = a.data.astype(compute, copy=False), b.data.astype(compute, copy=False)
        if a.element is F32 and precision == ir.INPUT_PRECISION.TF32:
            x, y = _to_tf32(x), _to_tf32(y)
        return Handle((np.matmul(x, y) + accumulator.data).astype(accumulator.element.compute), accumulator.element)

    # Effects without a result.
    def create_barrier(self, *hints: Any) -> None:
        return None

    create_grid_dependency_wait = create_grid_dependency_launch_dependents = create_barrier

    def create_assert(self, condition: Handle, message: str) -> None:
        if not np.all(condition.data):
            raise AssertionError(f"device_assert: {message}")

    def create_assume(self, condition: Handle) -> None:
        self.create_assert(condition, "tl.assume does not hold")

    def create_print(self, prefix: str, hexadecimal: bool, values: list[Handle], signed: Any) -> None:
        print(f"{self.memory.program}{prefix}", *(value.data for value in values))


def _element(kind: Any) -> Any:
    return kind.element if isinstance(kind, Block) else kind


def _poison(element: Element) -> Any:
    """What a masked lane without `other` holds in checked mode: NaN, or a large odd number."""
    if element.compute.kind == "f":
        return element.compute.type(np.nan)
    return element.compute.type(True) if element is I1 else element.compute.type(np.iinfo(element.compute).max // 3 * 2 + 1)


def _to_tf32(x: Array) -> Array:
    """f32 with the mantissa rounded to 10 bits, as the tensor core reads it."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + np.uint32(0xFFF) + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), rounded.view(np.float32), x)


def _smallest_dot(left: Any, right: Any) -> tuple[int, int, int]:
    """The compiler's own limits, so that a dot that would not compile does not run either."""
    widths = left.scalar.primitive_bitwidth, right.scalar.primitive_bitwidth
    assert widths[0] == widths[1], f"tl.dot of {left.scalar} and {right.scalar}: the widths differ"
    return (1, 1, 32) if widths[0] == 8 else (1, 1, 16)


def _refuse_custom_types(*args: Any, **kwargs: Any) -> None:
    raise NotImplementedError("the interpreter knows fp8e4nv and fp8e5 only")


def _define_operations() -> None:
    for name, function in _ELEMENTWISE.items():
        setattr(NumpyBuilder, f"create_{name}", _elementwise(function))
    for name, function in _UNSIGNED.items():
        setattr(NumpyBuilder, f"create_{name}", _unsigned_elementwise(function))
    for name, function in _COMPARISONS.items():
        setattr(NumpyBuilder, f"create_icmpS{name}", _compare(function))
        setattr(NumpyBuilder, f"create_icmpU{name}", _compare(function, _unsigned))
        setattr(NumpyBuilder, f"create_fcmpO{name}", _compare(function))
    for name, function in {"icmpEQ": np.equal, "icmpNE": np.not_equal, "fcmpOEQ": np.equal, "fcmpUNE": np.not_equal}.items():
        setattr(NumpyBuilder, f"create_{name}", _compare(function))
    types = {"int1": I1, "int8": I8, "int16": I16, "int32": I32, "int64": I64, "half": F16, "bf16": BF16, "float": F32, "double": F64}
    for name, element in {**types, "fp8e4nv": F8E4M3, "fp8e5": F8E5M2}.items():
        setattr(NumpyBuilder, f"get_{name}_ty", lambda self, element=element: element)
    integers = {f"{sign}int{bits}": element for bits, element in ((8, I8), (16, I16), (32, I32), (64, I64)) for sign in ("", "u")}
    for name, element in {**integers, "int1": I1, "fp16": F16, "bf16": BF16, "fp32": F32, "fp64": F64}.items():
        setattr(NumpyBuilder, f"get_{name}", lambda self, value, element=element: _constant(value, element))


def _constant(value: int | float | bool, element: Element) -> Handle:
    if element.compute.kind == "i":  # unsigned constants keep their bits
        half = 2 ** (8 * element.compute.itemsize - 1)
        value = (int(value) + half) % (2 * half) - half
    return _rounded(element.compute.type(value), element)


_define_operations()
