"""Folding a scale of a layer's input channels into what computes that input, so that the model computes the same.

The columns of every linear that reads the input are multiplied by ``s`` and the channels of what feeds them are divided
by it. Which module feeds which linears is told by the tables of :mod:`fewbit.models`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewbit.models import Group, Layout
from fewbit.models.layout import has
from fewbit.nn import kinds


def feed_channels(model: nn.Module, layout: Layout, group: Group) -> Tensor | None:
    """For each input channel of a group, the channel of the feeding module that it comes from.

    Key-value heads that serve several query heads feed several input channels each.

    Returns:
        int64 ``[K]``, or None where nothing can be folded: no feed, a norm without a weight, shapes that do not fit.
    """
    feed = group.feed
    if feed is None or not all(has(model, name) for name in (feed.path, *group.linears)):
        return None
    columns = kinds.weight_matrix_shape(model.get_submodule(group.linears[0]))[1]
    weight = getattr(model.get_submodule(feed.path), "weight", None)
    if not isinstance(weight, nn.Parameter):
        return None
    if feed.kind.startswith("norm"):
        return torch.arange(columns) if tuple(weight.shape) == (columns,) else None
    if kinds.kind(model.get_submodule(feed.path)) not in ("Linear", "Conv1D"):
        return None
    rows = kinds.weight_matrix_shape(model.get_submodule(feed.path))[0]
    channels = torch.arange(columns)
    if feed.kind == "values" and layout.key_value_heads and layout.heads % layout.key_value_heads == 0:
        width, repeat = columns // layout.heads, layout.heads // layout.key_value_heads
        channels = channels // width // repeat * width + channels % width
    return channels if int(channels.max()) < rows else None


@torch.no_grad()
def fold_scale(model: nn.Module, layout: Layout, group: Group, scale: Tensor) -> None:
    """Multiply the input channels of a group by a scale, and divide what feeds them.

    Args:
        model: Changed in place.
        layout: Of the model.
        group: Of the layout; :func:`feed_channels` is not None for it.
        scale: Positive ``[channels of the feeding module]``.
    """
    channels, feed = feed_channels(model, layout, group), group.feed
    assert channels is not None
    assert feed is not None
    for name in group.linears:
        _scale_columns(model.get_submodule(name), scale[channels])
    module = model.get_submodule(feed.path)
    if feed.kind == "norm":
        for parameter in (module.weight, getattr(module, "bias", None)):
            if isinstance(parameter, Tensor):
                _set(parameter, parameter.to(torch.float32) / scale.to(parameter.device))
    elif feed.kind == "norm_plus_one":
        weight = module.weight
        assert isinstance(weight, Tensor)
        _set(weight, (1 + weight.to(torch.float32)) / scale.to(weight.device) - 1)
    else:
        _scale_last_rows(module, 1 / scale)


def _scale_columns(module: nn.Module, scale: Tensor) -> None:
    weight = module.weight
    assert isinstance(weight, Tensor)
    scale = scale.to(weight.device)
    _set(weight, weight.to(torch.float32) * (scale[:, None] if kinds.kind(module) == "Conv1D" else scale))


def _scale_last_rows(module: nn.Module, scale: Tensor) -> None:
    """Multiply the last outputs of a linear, with their biases."""
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, Tensor)
    last, scale = slice(-scale.shape[0], None), scale.to(weight.device)
    if kinds.kind(module) == "Conv1D":
        _set(weight[:, last], weight[:, last].to(torch.float32) * scale)
    else:
        _set(weight[last], weight[last].to(torch.float32) * scale[:, None])
    if isinstance(bias, Tensor):
        _set(bias[last], bias[last].to(torch.float32) * scale)


def _set(parameter: Tensor, value: Tensor) -> None:
    parameter.copy_(value.to(parameter.dtype))
