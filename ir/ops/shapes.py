"""Shape rules shared by op declarations: broadcasting, axes, reshapes with one symbolic dim. Raises GraphError with both sides quoted."""

from __future__ import annotations

from math import prod

from tilewright.ir.errors import GraphError
from tilewright.ir.types import FLOATS, Dim, TensorType

Shape = tuple[Dim, ...]


def broadcast(where: str, *shapes: Shape) -> Shape:
    """NumPy broadcasting; a symbol equals only itself and stretches only 1."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(s)) + s for s in shapes]
    result: list[Dim] = []
    for position in range(rank):
        sizes = {s[position] for s in padded} - {1}
        if len(sizes) > 1:
            raise GraphError(where, f"shapes {' and '.join(map(show, shapes))} do not broadcast at axis {position - rank}")
        result.append(sizes.pop() if sizes else 1)
    return tuple(result)


def axis_of(where: str, type_: TensorType, axis: int) -> int:
    """The axis as a non-negative index."""
    if not -type_.rank <= axis < type_.rank:
        raise GraphError(where, f"axis {axis} of {type_} with {type_.rank} axes")
    return axis % type_.rank


def static_dim(where: str, type_: TensorType, axis: int) -> int:
    dim = type_.shape[axis]
    if not isinstance(dim, int):
        raise GraphError(where, f"axis {axis} of {type_} must be a fixed size, is {dim!r}")
    return dim


def check_reshape(where: str, old: Shape, new: Shape) -> None:
    symbols = [tuple(sorted(d for d in s if isinstance(d, str))) for s in (old, new)]
    sizes = [prod(d for d in s if isinstance(d, int)) for s in (old, new)]
    if symbols[0] != symbols[1] or sizes[0] != sizes[1]:
        raise GraphError(where, f"{show(old)} cannot become {show(new)}", "both need the same number of elements")


def check_float(where: str, type_: TensorType) -> None:
    if type_.dtype not in FLOATS:
        raise GraphError(where, f"operand is {type_}, must be a float")


def same_dtype(where: str, *types: TensorType | None) -> str:
    dtypes = list(dict.fromkeys(t.dtype for t in types if t is not None))
    if len(dtypes) > 1:
        raise GraphError(where, f"operands are {' and '.join(str(t) for t in types if t is not None)}", "cast one of them")
    return dtypes[0]


def show(shape: Shape) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
