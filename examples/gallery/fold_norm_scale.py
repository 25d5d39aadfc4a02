"""A new fusion: the scale of a norm is multiplied into the weight that reads it, once, when weights are packed."""

import tilewright as tw


@tw.rewrite("fold-norm-scale", "linear(rms_norm(x, scale), weight)", "linear(rms_norm(x, scale), weight, bias)", tolerance=2e-2)
def fold(m: tw.Match, rw: tw.Rewriter) -> str | None:
    """linear(rms_norm(x, g), W) -> linear(rms_norm(x), W * g)"""
    linear, norm = m.ops
    if not (m.scale.is_const and m.weight.is_const) or m.weight.type.encoding is not None:
        return f"{m.weight.display} cannot be multiplied by {m.scale.display}"
    if norm.attrs["offset"]:
        return f"the norm multiplies by scale + {norm.attrs['offset']}"
    with rw.change(m.root, m.ops) as change:
        scaled = change.emit("mul", [m.weight, m.scale], name=f"{m.weight.name}.scaled")
        change.relate(scaled, "mul", m.weight)
        plain = change.emit("rms_norm", [m.x], {"eps": norm.attrs["eps"]}, name=f"{norm.result.name}.plain")
        change.take_over(change.emit("linear", [plain, scaled, *linear.inputs[2:]]), m.root)
    return None
