"""Events as folded JSON lines, and rising numbers as spans."""

from dataclasses import replace

import pytest

from tilewright.ir.events import Event, Miss
from tilewright.ir.records import print_records, read_records
from tilewright.ir.spans import print_spans, read_spans


def norm_event(number: int, layer: int, **changes) -> Event:
    name = f"model.layers.{layer}.norm"
    event = Event(
        number, "raise-rms-norm", "raise-rms-norm", name, ("pow", "mul"), ("rms_norm",),
        keeps=(name,), related=((f"{name}.i8", "quantize", name),), modules=(name, "model.norm"), erases=(f"{name}.1",),
    )  # fmt: skip
    return replace(event, **changes)


@pytest.mark.parametrize(
    "numbers, text",
    [([], ""), ([4], "4"), ([0, 1], "0..1"), ([0, 2], "0, 2"), ([0, 2, 4, 9], "0..4 step 2, 9"), ([3, 3, 1, 2, 3], "3, 3, 1..3"), ([7, 6], "7, 6")],
)
def test_numbers_are_spans_and_back(numbers, text):
    assert print_spans(numbers) == text
    assert read_spans(text) == numbers


def test_events_of_equal_layers_are_one_line():
    events = [norm_event(10 + 2 * layer + place, layer, rule=f"rule-{place}") for layer in range(32) for place in range(2)]
    text = print_records(events, [])
    assert len(text.splitlines()) == 2 and '"layers": "0..31", "n": "10..72 step 2"' in text
    assert read_records(text) == (events, [])


def test_what_differs_between_layers_stays_apart_and_in_order():
    events = [norm_event(1, 0), norm_event(2, 1, reason="the first"), norm_event(3, 2), norm_event(4, 3, anchor="head", into="model.layers.3.x {L}")]
    misses = [Miss("p", "r", f"model.layers.{layer}.x", f"{layer} of 9") for layer in (1, 0)]
    text = print_records(events, misses)
    assert len(text.splitlines()) == 5
    assert read_records(text) == (events, misses)
