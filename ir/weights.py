"""Where tensor data comes from: the graph holds names, this protocol gives the tensors, one at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Weights(Protocol):
    def load(self, name: str) -> Tensor:
        """The tensor behind `@name`, in the dtype that the graph declares for it. Raises CheckpointError."""
        ...
