"""A tap: an own op that changes nothing, set behind values so that no fusion takes them away; `check` and `blame` find them by name."""

from dataclasses import dataclass
from fnmatch import fnmatch

import tilewright as tw


@tw.op(pointwise=True)
def tap(x: tw.TensorType) -> tw.TensorType:
    """x"""
    return x


tw.reference("tap")(lambda x: x)
tw.register_expression("tap", triton="{x}", torch="{x}")


@tw.register_pass("tap-values")
@dataclass(frozen=True)
class TapValues:
    """x -> tap(x) where the name fits."""

    at: str = "*down_proj"  # a glob of tensor names

    def run(self, graph, rw: tw.Rewriter) -> None:
        for op in [op for op in rw.each() if fnmatch(op.results[0].name, self.at) and not op.is_const and op.name != "tap"]:
            if all(user.name != "tap" for user in op.result.users):
                rw.insert_after(op.result, "tap")
