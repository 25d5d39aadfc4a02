"""What the compiler did, read back from an engine's `inspect/` folder: graphs at every stage, events, kernels. Changes nothing on disk."""

from tilewright.inspect.run import PassRecord, Run, load

__all__ = ["PassRecord", "Run", "load"]
