"""The smallest useful rewrite: two multiplications by numbers become one."""

import tilewright as tw


@tw.rewrite("join-scales", "mul{scalar=b}(mul{scalar=a}(x))")
def join(m: tw.Match, rw: tw.Rewriter) -> str | None:
    """(x * a) * b -> x * (a * b)"""
    if m.a is None or m.b is None or len(m.ops[0].inputs) + len(m.ops[1].inputs) != 2:
        return "one of the two multiplies tensors"
    if m.x.type.dtype != "f32":
        return f"x is {m.x.type}: its product with a is rounded before it meets b"
    rw.replace(m.root, "mul", [m.x], {"scalar": m.a * m.b}, removed=m.ops)
    return None
