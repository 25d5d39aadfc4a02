"""A rewrite that looks right and is not: validation on the reference interpreter refuses it, and names it."""

import tilewright as tw


@tw.rewrite("swap-gate-up", "gated(gate, up)")
def swap(m: tw.Match, rw: tw.Rewriter) -> str | None:
    """f(gate) * up -> f(up) * gate, as if f were linear"""
    rw.replace(m.root, "gated", [m.up, m.gate], m.ops[0].attrs)
    return None
