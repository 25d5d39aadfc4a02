"""Finds attention in models that write it out (softmax or scaled_dot_product_attention) and puts the opaque op in its place.

Works on the normalized graph and knows no architecture: masks are classified by evaluation, heads repeated for multi-query attention are undone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from tilewright.frontend.capture import Capture
from tilewright.frontend.head_broadcast import narrow_heads
from tilewright.frontend.mask_probe import MaskMeaning, MaskProbe, ScoreBias
from tilewright.frontend.normalize import drop_dead_nodes, insert_call, module_path, source_line
from tilewright.ir.errors import TraceError

ATEN = torch.ops.aten
_SOFTMAXES = (ATEN.softmax.int, ATEN._softmax.default)
_PRODUCTS = (ATEN.matmul.default, ATEN.bmm.default)
_TRANSPARENT = (ATEN._to_copy.default, ATEN.reshape.default, ATEN.flatten.using_ints, ATEN.expand.default)


@dataclass(frozen=True, slots=True)
class WrittenAttention:
    """softmax(scale * q·kᵀ + biases)·v as found: q and v [.., heads, T, d], k [.., heads, T, d] or, with k_is_turned, [.., heads, d, T]."""

    output: Node
    q: Node
    k: Node
    v: Node
    scale: float
    biases: tuple[ScoreBias, ...]
    k_is_turned: bool


def restore_attention(capture: Capture) -> int:
    """Replaces every written-out attention by one op and returns how many. Raises TraceError where one cannot be read."""
    graph = capture.program.graph
    probe = MaskProbe(capture.program, capture.skeleton.buffers, _probe_length(capture))
    meanings: dict[tuple[ScoreBias, ...], MaskMeaning] = {}
    count = 0
    for node in list(graph.nodes):
        if node.target is ATEN.scaled_dot_product_attention.default:
            found, is_causal = _read_sdpa(node)
        elif node.target in _SOFTMAXES:
            found, is_causal = _read_softmax(node, probe), False
        else:
            continue
        if found.biases not in meanings:
            meanings[found.biases] = MaskMeaning(None, None) if is_causal and not found.biases else _classify(probe, found)
        _replace(capture, found, meanings[found.biases])
        count += 1
    drop_dead_nodes(graph)
    return count


def _probe_length(capture: Capture) -> int:
    """More tokens than any window of the config, or a window would look causal."""
    settings = capture.skeleton.model.config.to_dict()
    windows = [value for name, value in settings.items() if "window" in name and isinstance(value, int)]
    return max([8, *windows]) + 9


def _classify(probe: MaskProbe, found: WrittenAttention) -> MaskMeaning:
    try:
        return probe.classify(found.biases)
    except TraceError as error:
        raise TraceError(
            f"{module_path(found.output)} ({source_line(found.output)})", f"{error.where} {error.problem}", "supported are causal, windows, ALiBi"
        ) from error


def _read_sdpa(node: Node) -> tuple[WrittenAttention, bool]:
    arguments = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), node.args), **node.kwargs)
    q, k, v, mask = (arguments.get(name) for name in ("query", "key", "value", "attn_mask"))
    assert isinstance(q, Node) and isinstance(k, Node) and isinstance(v, Node)
    scale = arguments.get("scale")
    biases = (ScoreBias("add", mask),) if isinstance(mask, Node) else ()
    if isinstance(mask, Node) and mask.meta["val"].dtype == torch.bool:
        biases = (ScoreBias("where", mask),)
    factor = float(scale) if isinstance(scale, float) else float(q.meta["val"].shape[-1]) ** -0.5
    return WrittenAttention(node, q, k, v, factor, biases, k_is_turned=False), bool(arguments.get("is_causal"))


def _read_softmax(softmax: Node, probe: MaskProbe) -> WrittenAttention:
    product = _follow_to_product(softmax)
    scores, scale, biases = softmax.args[0], 1.0, []
    while True:
        assert isinstance(scores, Node)
        target, args = scores.target, scores.args
        if target in _PRODUCTS:
            q, k = args
            break
        if target is ATEN.baddbmm.default:
            biases.append(ScoreBias("add", _node(args[0]), float(scores.kwargs.get("beta", 1.0)) * scale))  # type: ignore[arg-type]  # a number
            scale *= float(scores.kwargs.get("alpha", 1.0))  # type: ignore[arg-type]  # a number
            q, k = args[1:3]
            break
        step = _step_back(scores, scale, probe)
        if step is None:
            raise _unmatched(softmax, scores)
        scores, scale, bias = step
        biases += [bias] if bias else []
    return WrittenAttention(product, _node(q), _node(k), _node(product.args[1]), scale, tuple(biases), k_is_turned=True)


def _step_back(scores: Node, scale: float, probe: MaskProbe) -> tuple[Node, float, ScoreBias | None] | None:
    """One op towards the product: (its scores, factor so far, what it adds); None where the op cannot be read."""
    target, args = scores.target, scores.args
    if target in _TRANSPARENT:
        return _node(args[0]), scale, None
    if target in (ATEN.div.Tensor, ATEN.mul.Tensor) and isinstance(args[1], int | float):
        return _node(args[0]), scale / args[1] if target is ATEN.div.Tensor else scale * args[1], None
    if target is ATEN.add.Tensor and isinstance(args[1], Node):
        left, right = _node(args[0]), args[1]
        if not probe.depends_on_weights(right):
            return left, scale, ScoreBias("add", right, scale)
        if not probe.depends_on_weights(left):
            return right, scale, ScoreBias("add", left, scale)
    if target in (ATEN.where.self, ATEN.where.ScalarOther):
        return _node(args[1]), scale, ScoreBias("where", _node(args[0]))
    if target in (ATEN.masked_fill.Scalar, ATEN.masked_fill.Tensor):
        return _node(args[0]), scale, ScoreBias("fill", _node(args[1]))
    return None


def _follow_to_product(softmax: Node) -> Node:
    node = softmax
    while len(node.users) == 1:
        node_before, node = node, next(iter(node.users))
        if node.target in _PRODUCTS and node.args[0] is node_before:
            return node
        if node.target not in _TRANSPARENT:
            break
    raise _unmatched(softmax, node)


def _unmatched(softmax: Node, stopped_at: Node) -> TraceError:
    return TraceError(
        f"{module_path(softmax)} ({source_line(softmax)})",
        f"a softmax that is not readable as causal attention: stopped at {stopped_at.target} ({source_line(stopped_at)})",
        "this architecture is not supported yet",
    )


def _node(argument: object) -> Node:
    assert isinstance(argument, Node)
    return argument


def _replace(capture: Capture, found: WrittenAttention, meaning: MaskMeaning) -> None:
    graph, out = capture.program.graph, found.output
    layer = module_path(out)
    with graph.inserting_before(out):
        q, k = (_in_cache_dtype(capture, x, found) for x in (found.q, _turn_back(capture, found)))
        q, k, v = (_tokens_first(capture, out, x) for x in (q, narrow_heads(graph, out, k), narrow_heads(graph, out, found.v)))
        slopes = _slopes_constant(capture, out, layer, meaning)
        result = insert_call(
            graph, out, torch.ops.tilewright.attention.default, q, k, v, layer, found.scale, meaning.window, None, None, slopes
        )  # fmt: skip
        result = insert_call(graph, out, ATEN.transpose.int, result, 0, 1)
        if out.meta["val"].dim() == 4:
            result = insert_call(graph, out, ATEN.unsqueeze.default, result, 0)
    out.replace_all_uses_with(result)
    graph.erase_node(out)


def _turn_back(capture: Capture, found: WrittenAttention) -> Node:
    """k with tokens before elements: the operand of the transpose that made kᵀ, where that is how it was made."""
    k = _uncast(found.k, found.v)
    if not found.k_is_turned:
        return k
    last = k.meta["val"].dim() - 1
    if k.target is ATEN.transpose.int and {int(a) % (last + 1) for a in k.args[1:]} == {last, last - 1}:  # type: ignore[arg-type]  # axis numbers
        return _node(k.args[0])
    return insert_call(capture.program.graph, found.output, ATEN.transpose.int, k, -2, -1)


def _in_cache_dtype(capture: Capture, x: Node, found: WrittenAttention) -> Node:
    """q and k in the dtype of v, which is the cache's: what transformers stores there too."""
    x, dtype = _uncast(x, found.v), found.v.meta["val"].dtype
    return x if x.meta["val"].dtype == dtype else insert_call(capture.program.graph, found.output, ATEN._to_copy.default, x, dtype=dtype)


def _uncast(x: Node, like: Node) -> Node:
    """Attention computes in f32 by itself: an upcast of q or k on the way in adds nothing."""
    while x.target is ATEN._to_copy.default and _node(x.args[0]).meta["val"].dtype == like.meta["val"].dtype:
        x = _node(x.args[0])
    return x


def _tokens_first(capture: Capture, out: Node, x: Node) -> Node:
    """[1, heads, T, d] or [heads, T, d] -> [T, heads, d]"""
    graph = capture.program.graph
    if x.meta["val"].dim() == 4:
        x = insert_call(graph, out, ATEN.squeeze.dim, x, 0)
    return insert_call(graph, out, ATEN.transpose.int, x, 0, 1)


def _slopes_constant(capture: Capture, out: Node, layer: str, meaning: MaskMeaning) -> Node | None:
    """A get_attr node of a constant `<layer>.alibi_slopes`: f32[heads], kept in `capture.constants`."""
    if meaning.slopes is None:
        return None
    name = f"{layer}.alibi_slopes"
    capture.constants[name] = torch.tensor(meaning.slopes, dtype=torch.float32)
    node = capture.program.graph.create_node("get_attr", name.replace(".", "_"))
    fake = out.meta["val"].new_empty(len(meaning.slopes), dtype=torch.float32)
    node.meta.update(val=fake, constant=name, nn_module_stack=out.meta.get("nn_module_stack"), stack_trace=out.meta.get("stack_trace"))
    return node
