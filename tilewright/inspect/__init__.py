"""What the compiler did, read back from an engine's `inspect/` folder: graphs at every stage, events, kernels. Changes nothing on disk."""

from tilewright.inspect.blame import History, Tensor
from tilewright.inspect.diff import GraphDiff, diff
from tilewright.inspect.run import PassRecord, Run, load

__all__ = ["GraphDiff", "History", "PassRecord", "Run", "Tensor", "diff", "load"]
