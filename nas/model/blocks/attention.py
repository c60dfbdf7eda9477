"""Attention on a feature map: from the record of `nas.space.attention` to a module.

A gate that starts at zero makes every family an identity at first, so it can be inserted anywhere.

In a supernet, sparse and dense attention behind a learned gate share their weights under plain
names, and so do all ways to select. Every other family, and every other gate, has weights of its
own under its name; sizes such as windows, strides and buckets share them.
"""

from __future__ import annotations

from torch import nn

from nas.model.blocks.attention_base import Attention
from nas.model.blocks.attention_deformable import DeformableAttention
from nas.model.blocks.attention_global import GlobalAttention
from nas.model.blocks.attention_local import HashedAttention, StridedAttention, WindowedAttention
from nas.model.blocks.attention_published import EncoderLayer, PartialAttention
from nas.model.blocks.layers import Choice, part
from nas.space.attention import AttentionPoint
from nas.space.record import Size

__all__ = ["Attention", "GlobalAttention", "attention_at", "build_attention"]

_WHOLE: dict[str, type[EncoderLayer | PartialAttention]] = {
    "aifi": EncoderLayer,
    "psa": PartialAttention,
}
_Sized = WindowedAttention | StridedAttention | HashedAttention | DeformableAttention
_SIZED: dict[str, tuple[type[_Sized], str]] = {
    "windowed": (WindowedAttention, "window"),
    "strided": (StridedAttention, "stride"),
    "lsh": (HashedAttention, "buckets"),
    "deformable": (DeformableAttention, "points"),
}


def attention_at(level: str, point: AttentionPoint, channels: int, size: Size) -> nn.Module:
    """Build the attention of a level, under the names of its shared weights.

    Args:
        level: `P3`, `P4` or `P5`; no two attentions of a network have the same.
        point: canonical for the size.
        channels: of the map.
        size: height and width of the map.

    Returns:
        A module that maps (B, channels, *size) to the same shape.

    Raises:
        ArchitectureError: the point does not go with the map.
    """
    return part(f"attention.{level}", _named, point, channels, size)


def build_attention(point: AttentionPoint, channels: int, size: Size) -> Attention:
    """Build the bare module of a point; raises like `attention_at`."""
    if point.kind in _WHOLE:
        return _WHOLE[point.kind](channels, size, point.gate)
    if point.kind in _SIZED:
        family, name = _SIZED[point.kind]
        return family(channels, size, getattr(point, name), point.gate)
    tokens = point.tokens if isinstance(point.tokens, int) else None
    return GlobalAttention(channels, tokens, size, point.selection, point.gate)


def _named(point: AttentionPoint, channels: int, size: Size) -> nn.Module:
    module = build_attention(point, channels, size)
    name: str = "sparse" if point.kind == "dense" else point.kind
    if point.gate != "learned":
        name = f"{name}_{point.gate}"
    return module if name == "sparse" else Choice(name, module)
