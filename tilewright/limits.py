"""How large requests and steps may be: what a user asks for, checked against the model before anything is traced."""

from __future__ import annotations

from dataclasses import dataclass

from tilewright.ir.errors import EngineError
from tilewright.ir.manifest import Limits

DEFAULT_LEN = 1024  # tokens in, and out, where the model has room for them
DEFAULT_STEP = 2048  # tokens of one step
DEFAULT_PAGE = 64  # tokens; a block of keys that attention reads at once then lies in one piece
LARGEST_STEP = 65536
PAGE_SIZES = (8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedLimits:
    """None: chosen from the model and the other limits."""

    max_batch_size: int = 16
    max_input_len: int | None = None
    max_output_len: int | None = None
    max_tokens: int | None = None  # tokens of one step, all sequences together
    page_size: int = DEFAULT_PAGE

    def choose(self, positions: int) -> Limits:
        """positions: that the model was made for. Raises EngineError for limits that cannot be."""
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise EngineError(name, f"is {value!r}", "pass a whole number of at least 1")
        max_input_len, max_output_len = self._lengths(positions)
        max_tokens = self.max_tokens or max(self.max_batch_size, min(DEFAULT_STEP, self.max_batch_size * max_input_len))
        if not self.max_batch_size <= max_tokens <= LARGEST_STEP:
            problem = f"is {max_tokens}, with max_batch_size={self.max_batch_size}"
            raise EngineError("max_tokens", problem, f"pass at least one token for each sequence, and at most {LARGEST_STEP}")
        if self.page_size not in PAGE_SIZES:
            raise EngineError("page_size", f"is {self.page_size}", "use one of " + ", ".join(map(str, PAGE_SIZES)))
        return Limits(self.max_batch_size, max_input_len, max_output_len, max_tokens, self.page_size)

    def _lengths(self, positions: int) -> tuple[int, int]:
        given_in, given_out = self.max_input_len, self.max_output_len
        room = positions - (given_in or 0) - (given_out or 0)
        if room < 0 or (room == 0 and (given_in is None or given_out is None)):
            asked = " and ".join(f"{k}={v}" for k, v in (("max_input_len", given_in), ("max_output_len", given_out)) if v)
            raise EngineError("limits", f"{asked} go past the model's {positions} positions", f"pass lengths that add up to at most {positions}")
        if given_in is None:
            given_in = min(DEFAULT_LEN, room if given_out is not None else max(1, positions // 2))
        return given_in, given_out if given_out is not None else min(DEFAULT_LEN, positions - given_in)
