"""A model of the zoo at each stage, made once."""

import pytest
import zoo
from onnx_models import STAGES

import tilewright as tw


@pytest.fixture(scope="session")
def staged():
    """A model of the zoo at a stage; traced once."""
    traced, made = {}, {}

    def staged(name, stage):
        if (name, stage) not in made:
            traced[name] = traced.get(name) or tw.trace(zoo.build(name))
            made[name, stage] = STAGES[stage](traced[name])
        return made[name, stage]

    return staged
