"""Distances between what is expected and what is found, and gates over them: pure functions of tensors and numbers."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isnan

import torch
from torch import Tensor

from tilewright.ir.errors import TilewrightError

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq,
}  # fmt: skip

METRICS = {
    "kl": "mean KL(p_ref || p) over the positions, in nats",
    "kl_max": "the largest KL of a position",
    "rel": "relative error of the logits (Frobenius)",
    "top1": "share of positions whose most likely token is the reference's",
    "top5": "share of the reference's five most likely tokens that are among the five",
    "nan": "logits that are NaN or infinite",
    "isolated": "largest isolated relative error of a value, without what passes with a budget added on purpose",
    "ratio": "largest isolated error over its floor, likewise",
    "red": "values that are worse than their floor or their budget allows",
}
VALUE_METRICS = ("isolated", "ratio", "red")


class GateError(TilewrightError):
    """A gate that cannot be read, or that gives another answer each time."""


def relative_error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, in f64; NaN where found has one that expected has not."""
    found, expected = found.double(), expected.double()
    if not expected.numel():
        return 0.0
    same = torch.isinf(expected) & (found == expected)
    found, expected = found.masked_fill(same, 0), expected.masked_fill(same, 0)
    scale = float(expected.norm())
    error = float((found - expected).norm())
    return 0.0 if error == 0 else error / max(scale, 1e-30)


def count_not_finite(tensor: Tensor) -> int:
    return int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0


def kl_by_row(expected: Tensor, found: Tensor) -> Tensor:
    """KL(softmax(expected) || softmax(found)) of logits [rows, vocab], in nats: f64[rows]"""
    log_p, log_q = expected.double().log_softmax(-1), found.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@dataclass(frozen=True, slots=True)
class LogitsError:
    """How far logits are from the reference's, over teacher-forced positions."""

    rel: float
    kl: float
    kl_max: float
    top1: float
    top5: float
    nan: int
    divergent: int | None  # first row whose most likely token differs

    def as_dict(self) -> dict[str, float]:
        return {name: float(getattr(self, name)) for name in ("rel", "kl", "kl_max", "top1", "top5", "nan")}


def compare_logits(found: Tensor, expected: Tensor) -> LogitsError:
    """logits: [rows, vocab]"""
    kl = kl_by_row(expected, found)
    best = found.argmax(-1).eq(expected.argmax(-1).to(found.device))
    count = min(5, expected.shape[-1])
    fives = [logits.topk(count, -1).indices for logits in (found, expected)]
    shared = (fives[0][:, :, None] == fives[1][:, None, :]).any(-1).double().mean()
    wrong = (~best).nonzero()
    return LogitsError(
        relative_error(found, expected), float(kl.mean()), float(kl.max()), float(best.double().mean()), float(shared),
        count_not_finite(found), int(wrong[0]) if len(wrong) else None,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gate:
    """Conditions that all must hold, such as `kl<1e-3, top1>=0.99`. NaN holds for none."""

    terms: tuple[tuple[str, str, float], ...]

    @staticmethod
    def parse(text: str) -> Gate:
        """Raises GateError."""
        terms: list[tuple[str, str, float]] = []
        for part in re.split(r",|\band\b", text):
            found = re.fullmatch(r"\s*(\w+)\s*(<=|>=|==|<|>)\s*([-+.\deE]+)\s*", part)
            if found is None:
                raise GateError("gate", f"cannot read {part.strip()!r}", 'write conditions such as "kl<1e-3, top1>=0.99"')
            if found[1] not in METRICS:
                raise GateError("gate", f"no metric {found[1]!r}", "there are: " + ", ".join(METRICS))
            terms.append((found[1], found[2], _number(found[3])))
        return Gate(tuple(terms))

    @property
    def needs_values(self) -> bool:
        return any(name in VALUE_METRICS for name, _, _ in self.terms)

    def failure(self, metrics: Mapping[str, float]) -> str:
        """The first condition that does not hold, with what is found; empty where all do."""
        for name, sign, bound in self.terms:
            value = metrics[name]
            if isnan(value) or not _COMPARE[sign](value, bound):
                return f"{name} is {value:.3g}, the gate asks for {name}{sign}{bound:g}"
        return ""

    def __str__(self) -> str:
        return ", ".join(f"{name}{sign}{bound:g}" for name, sign, bound in self.terms)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise GateError("gate", f"{text!r} is no number", "write one such as 1e-3") from error
