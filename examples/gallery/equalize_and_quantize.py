"""A new quantization scheme: each column of a weight is divided by its largest element before int8, and the norm in front multiplies by it."""

import tilewright as tw


@tw.rewrite("equalize-and-quantize", "linear(rms_norm(x, scale), weight)", tolerance=0.1)
def equalize(m: tw.Match, rw: tw.Rewriter) -> str | None:
    """linear(rms_norm(x, g), W) -> linear(rms_norm(x, g * s), quantize(W / s)), s[k] = max over n of |W[n, k]|"""
    _, norm = m.ops
    if not (m.scale.is_const and m.weight.is_const) or m.weight.type.encoding is not None or norm.attrs["offset"]:
        return f"{m.weight.display} cannot be divided by its columns' maxima"
    with rw.change(m.root, m.ops) as change:
        largest = change.emit("max", [change.emit("abs", [m.weight])], {"axis": 0, "keepdim": False})
        columns = change.emit("maximum", [largest], {"scalar": 1e-6}, name=f"{m.weight.name}.columns")
        even = change.emit("div", [m.weight, columns], name=f"{m.weight.name}.even")
        integers = change.emit("quantize", [even], name=f"{m.weight.name}.i8")
        change.relate(integers, "quantize", even)
        wide = change.emit("mul", [m.scale, columns], name=f"{m.scale.name}.wide")
        normed = change.emit("rms_norm", [m.x, wide], norm.attrs, name=f"{norm.result.name}.wide")
        change.take_over(change.emit("linear", [normed, integers]), m.root)
    return None
