"""A Swin transformer with a U-Net decoder, MONAI's."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from monai.networks.nets import SwinUNETR

from cellmap_segmentation_challenge._public import names_of
from common.errors import UserError
from common.talk import note_once

__getattr__ = names_of(__name__, {})

PATCH = 2
"""Pixels along an edge of a token: each of MONAI's five levels halves the one before."""


class SwinTransformer(SwinUNETR):
    """MONAI's SwinUNETR over raw (B, 1, y, x), by the arguments of public configurations.

    It is another network than the one of that name there, whose weights do not load: tokens are of
    2 x 2 pixels whatever `patch_size` is, there are four stages, and the decoder is MONAI's. It
    takes multiples of 32 pixels.

    Args:
        patch_size: as typed there; not used, which is said.
        embed_dim: channels of a token, a multiple of 12.
        depths: blocks of the four stages.
        num_heads: of attention, in the four stages.
        window_size: tokens along the edges of a window.
        mlp_ratio: hidden channels by channels.
        dropout: of tokens.
        attention_dropout: of attention weights.
        stochastic_depth_prob: of leaving a block out, for the last one.
        num_classes: channels of the logits.
        in_channels: of raw.
        ndims: spatial axes, 2 or 3.

    Raises:
        UserError: for another number of stages, or without einops.
    """

    def __init__(  # noqa: PLR0913, PLR0917  # the public signature
        self,
        patch_size: Sequence[int],
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: Sequence[int],
        *,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        stochastic_depth_prob: float = 0.1,
        num_classes: int = 1000,
        in_channels: int = 1,
        ndims: int = 2,
    ):
        if importlib.util.find_spec("einops") is None:
            raise UserError(
                "SwinTransformer: MONAI's SwinUNETR needs einops, which is not installed; "
                "pip install einops"
            )
        if len(depths) != 4 or len(num_heads) != 4:
            raise UserError(
                f"SwinTransformer: depths = {list(depths)}, num_heads = {list(num_heads)}; MONAI's "
                "has four stages: write four numbers for each"
            )
        if set(patch_size) != {PATCH}:
            note_once(
                f"SwinTransformer: tokens of {PATCH} voxels along each axis, since MONAI's decoder "
                f"is made for these; patch_size = {list(patch_size)} is not used"
            )
        super().__init__(
            in_channels,
            num_classes,
            patch_size=PATCH,
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            window_size=tuple(window_size),
            mlp_ratio=mlp_ratio,
            feature_size=embed_dim,
            drop_rate=dropout,
            attn_drop_rate=attention_dropout,
            dropout_path_rate=stochastic_depth_prob,
            spatial_dims=ndims,
        )
