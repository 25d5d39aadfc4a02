"""Attention that a model writes out: what its mask is found to mean, and what is refused instead of misread."""

import pytest
import torch
from torch import nn
from zoo import ARCHITECTURES

from tilewright.frontend.head_broadcast import narrow_heads
from tilewright.frontend.mask_probe import MaskProbe, ScoreBias
from tilewright.frontend.normalize import normalize
from tilewright.frontend.trace import trace_config
from tilewright.ir.errors import TraceError

pytestmark = pytest.mark.usefixtures("traced_anew")

MINIMUM = torch.finfo(torch.float32).min


class Positional(nn.Module):
    """A graph that holds one tensor made from positions alone."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, input_ids, positions):
        return self.make(torch.arange(input_ids.shape[0]))


def exported(module, *arguments):
    size = torch.export.Dim.DYNAMIC(min=1, max=99)
    with torch.no_grad():
        return normalize(torch.export.export(module, arguments, dynamic_shapes=[{0: size}] * len(arguments), strict=False))


def classify(make, kind="add", num_tokens=17):
    program = exported(Positional(make), torch.arange(7), torch.arange(7))
    (result,) = program.graph.output_node().args[0]
    return MaskProbe(program, {}, num_tokens).classify((ScoreBias(kind, result),))


def distance(at):
    return at[:, None] - at[None, :]


def test_an_added_causal_mask_is_causal():
    meaning = classify(lambda at: torch.where(distance(at) >= 0, 0.0, MINIMUM)[None, None])
    assert (meaning.window, meaning.slopes) == (None, None)


def test_a_boolean_mask_counts_as_visible_or_as_hidden():
    assert classify(lambda at: distance(at) >= 0, "where").window is None
    assert classify(lambda at: distance(at) < 0, "fill").window is None


@pytest.mark.parametrize("window", [1, 5, 16])
def test_the_size_of_a_window_is_found(window):
    assert classify(lambda at: (distance(at) >= 0) & (distance(at) < window), "where").window == window


@pytest.mark.parametrize("absolute", [True, False])
def test_alibi_slopes_are_found_in_either_form(absolute):
    slopes = torch.tensor([0.5, 0.07, 0.0])
    mask = lambda at: torch.where(distance(at) >= 0, 0.0, MINIMUM)  # noqa: E731
    bias = (lambda at: at[None, None, :].float()) if absolute else (lambda at: -distance(at)[None].float())
    found = classify(lambda at: slopes[:, None, None] * bias(at) + mask(at)).slopes
    assert found == pytest.approx(slopes.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda at: distance(at).abs() >= 0,  # all to all
        lambda at: distance(at) > 0,  # not itself
        lambda at: (distance(at) >= 0) & (at[:, None] // 4 == at[None, :] // 4),  # chunks
        lambda at: (distance(at) >= 0) & (distance(at) % 2 == 0),  # every second key
    ],
)
def test_a_mask_of_another_meaning_is_refused(make):
    with pytest.raises(TraceError, match="attention mask: for 17 tokens it is neither causal nor a sliding window"):
        classify(make, "where")


def test_a_bias_that_is_not_linear_is_refused():
    with pytest.raises(TraceError, match="not linearly in the key's position as ALiBi does"):
        classify(lambda at: torch.where(distance(at) >= 0, distance(at).float() ** 2, MINIMUM))


class Repeated(nn.Module):
    """Two key-value heads repeated for six query heads, then rotated; `honest=False` changes the copies afterwards."""

    def __init__(self, honest):
        super().__init__()
        self.honest = honest

    def forward(self, x, angle):
        k = x.reshape(1, -1, 2, 1, 8).expand(-1, -1, -1, 3, -1).reshape(1, -1, 6, 8).transpose(1, 2)
        if not self.honest:
            k = k * torch.arange(6).reshape(6, 1, 1)
        turned = torch.cat((-k[..., 4:], k[..., :4]), -1)
        return k * angle.cos() + turned * angle.sin()


@pytest.mark.parametrize(("honest", "heads"), [(True, 2), (False, 6)])
def test_repeated_heads_are_narrowed_only_where_they_are_copies(honest, heads):
    program = exported(Repeated(honest), torch.randn(7, 16), torch.randn(7, 8))
    output = program.graph.output_node()
    narrowed = narrow_heads(program.graph, output, output.args[0][0])
    assert narrowed.meta["val"].shape[1] == heads


def test_narrowed_heads_hold_what_the_copies_held():
    x, angle = torch.randn(5, 16), torch.randn(5, 8)
    program = exported(Repeated(True), torch.randn(7, 16), torch.randn(7, 8))
    output = program.graph.output_node()
    narrowed = narrow_heads(program.graph, output, output.args[0][0])
    output.args = ((narrowed,),)
    program.graph_module.recompile()
    assert torch.equal(program.graph_module(x, angle)[0], Repeated(True)(x, angle)[:, ::3])


def test_a_softmax_that_is_no_attention_is_named_with_its_module(monkeypatch):
    from transformers.models.gptj.modeling_gptj import GPTJMLP

    plain = GPTJMLP.forward
    monkeypatch.setattr(GPTJMLP, "forward", lambda self, x: plain(self, x).softmax(-1))
    config = ARCHITECTURES["gptj"]()
    config.num_hidden_layers = 1
    with pytest.raises(TraceError, match=r"transformer\.h\.0\.mlp \(.*\): a softmax that is not readable as causal attention: stopped at aten\.\w+"):
        trace_config(config)
