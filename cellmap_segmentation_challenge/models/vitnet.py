"""The toolbox's ViT-V-Net: a transformer between a convolutional encoder and decoder.

The architecture is that of Chen et al. 2021 (ViT-V-Net). Tensors have the names of the toolbox's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from cellmap_segmentation_challenge._public import names_of
from common.errors import UserError

__getattr__ = names_of(__name__, {})

CONFIGS: dict[str, dict[str, Any]] = {
    "ViT-V-Net": {
        "patches": {"size": (8, 8, 8)},
        "hidden_size": 252,
        "transformer": {
            "mlp_dim": 3072,
            "num_heads": 12,
            "num_layers": 12,
            "attention_dropout_rate": 0.0,
            "dropout_rate": 0.1,
        },
        "conv_first_channel": 512,
        "encoder_channels": (16, 32, 32),
        "down_factor": 2,
        "down_num": 2,
        "decoder_channels": (96, 48, 32, 32, 16),
        "skip_channels": (32, 32, 32, 32, 16),
        "n_skip": 5,
        "input_channels": 1,
    }
}
"""Sizes of networks by name; keys are those of the toolbox."""

EPSILON = 1e-6
"""Of layer normalisation."""


class ViTVNet(nn.Module):
    """A ViT-V-Net over raw (B, 1, z, y, x) of one shape.

    It has the toolbox's layers and names of tensors, so that its weights load; logits are equal. It
    takes patches of `img_size` alone, multiples of 32 voxels, since each token has a learned
    position.

    Args:
        out_channels: of the logits.
        config: name in CONFIGS, or such sizes.
        img_size: voxels of a patch, z, y, x.
        vis: returns attention in the toolbox; only False is taken here.

    Raises:
        UserError: for another name, shape or `vis`.
    """

    def __init__(
        self,
        out_channels: int,
        config: str | Mapping[str, Any] = "ViT-V-Net",
        img_size: Sequence[int] = (128, 128, 128),
        vis: bool = False,
    ):
        super().__init__()
        if vis or (isinstance(config, str) and config not in CONFIGS):
            raise UserError(
                f"ViTVNet: config = {config!r}, vis = {vis}; write {', '.join(CONFIGS)}, and False"
            )
        sizes = CONFIGS[config] if isinstance(config, str) else config
        grid = _tokens_along(img_size, sizes)
        self.img_size = tuple(img_size)
        self.transformer = Transformer(sizes, math.prod(grid))
        self.decoder = Decoder(sizes, grid)
        self.reg_head = nn.Sequential(
            nn.Conv3d(sizes["decoder_channels"][-1], out_channels, kernel_size=3, padding=1)
        )
        # nearly 0: of a network that began as one for small displacements
        nn.init.normal_(self.reg_head[0].weight, std=1e-5)  # type: ignore[arg-type]
        nn.init.zeros_(self.reg_head[0].bias)  # type: ignore[arg-type]

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        """Return logits (B, out_channels, z, y, x) on the same voxels."""
        if tuple(raw.shape[2:]) != self.img_size:
            raise RuntimeError(
                f"shape {tuple(raw.shape[2:])}; this ViTVNet takes img_size = {self.img_size}"
            )
        tokens, features = self.transformer(raw)
        return self.reg_head(self.decoder(tokens, features))


def _tokens_along(img_size: Sequence[int], sizes: Mapping[str, Any]) -> tuple[int, ...]:
    """The number of tokens along each axis. Raises UserError for other than whole numbers."""
    reduction = 2 ** sizes["down_factor"]
    steps = [reduction * size for size in sizes["patches"]["size"]]
    is_whole = len(img_size) == 3 and all(
        n >= step and n % step == 0 for n, step in zip(img_size, steps, strict=True)
    )
    if not is_whole:
        raise UserError(
            f"ViTVNet: img_size = {tuple(img_size)}; write multiples of "
            f"{' x '.join(map(str, steps))} voxels, z, y, x"
        )
    return tuple(n // step for n, step in zip(img_size, steps, strict=True))


class Transformer(nn.Module):
    """From a patch to tokens, and the features of each level of the encoder."""

    def __init__(self, sizes: Mapping[str, Any], tokens: int):
        super().__init__()
        self.embeddings = Embeddings(sizes, tokens)
        self.encoder = Encoder(sizes)

    def forward(self, raw: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return (B, tokens, hidden), and the features of the levels, the coarsest first."""
        tokens, features = self.embeddings(raw)
        return self.encoder(tokens), features


class Embeddings(nn.Module):
    """A convolutional encoder whose output is cut into tokens with learned positions."""

    def __init__(self, sizes: Mapping[str, Any], tokens: int):
        super().__init__()
        hidden = sizes["hidden_size"]
        patch = tuple(sizes["patches"]["size"])
        self.hybrid_model = ConvEncoder(sizes)
        self.patch_embeddings = nn.Conv3d(
            sizes["encoder_channels"][-1], hidden, kernel_size=patch, stride=patch
        )
        self.position_embeddings = nn.Parameter(torch.zeros(1, tokens, hidden))
        self.dropout = nn.Dropout(sizes["transformer"]["dropout_rate"])

    def forward(self, raw: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return (B, tokens, hidden), and the features of the levels, the coarsest first."""
        deepest, features = self.hybrid_model(raw)
        tokens = self.patch_embeddings(deepest).flatten(2).transpose(1, 2)
        return self.dropout(tokens + self.position_embeddings), features


class DoubleConv(nn.Module):
    """Two convolutions of 3 voxels with ReLU."""

    def __init__(self, taken: int, given: int):
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv3d(taken, given, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv3d(given, given, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
        )

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return (B, given, z, y, x)."""
        return self.double_conv(values)


class Down(nn.Module):
    """To the next coarser level."""

    def __init__(self, taken: int, given: int):
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool3d(2), DoubleConv(taken, given))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return half as many voxels along each axis."""
        return self.maxpool_conv(values)


class ConvEncoder(nn.Module):
    """Three levels with convolutions, and `down_num` that are pooled from the last of them."""

    def __init__(self, sizes: Mapping[str, Any]):
        super().__init__()
        first, second, third = sizes["encoder_channels"]
        self.pooled = sizes["down_num"]
        self.inc = DoubleConv(sizes["input_channels"], first)
        self.down1 = Down(first, second)
        self.down2 = Down(second, third)

    def forward(self, raw: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the third level, and all of them, the coarsest first."""
        finest = self.inc(raw)
        middle = self.down1(finest)
        deepest = self.down2(middle)
        features = [finest, middle, deepest]
        for _ in range(self.pooled):
            features.append(functional.max_pool3d(features[-1], 2))
        return deepest, features[::-1]


class Encoder(nn.Module):
    """Blocks of a transformer, one after the other."""

    def __init__(self, sizes: Mapping[str, Any]):
        super().__init__()
        layers = sizes["transformer"]["num_layers"]
        self.layer = nn.ModuleList(Block(sizes) for _ in range(layers))
        self.encoder_norm = nn.LayerNorm(sizes["hidden_size"], eps=EPSILON)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (B, tokens, hidden)."""
        for block in self.layer:
            tokens = block(tokens)
        return self.encoder_norm(tokens)


class Block(nn.Module):
    """Attention between tokens, then a network for each."""

    def __init__(self, sizes: Mapping[str, Any]):
        super().__init__()
        hidden = sizes["hidden_size"]
        self.attention_norm = nn.LayerNorm(hidden, eps=EPSILON)
        self.ffn_norm = nn.LayerNorm(hidden, eps=EPSILON)
        self.ffn = Mlp(hidden, sizes["transformer"])
        self.attn = Attention(hidden, sizes["transformer"])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (B, tokens, hidden)."""
        tokens = tokens + self.attn(self.attention_norm(tokens))
        return tokens + self.ffn(self.ffn_norm(tokens))


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, hidden: int, sizes: Mapping[str, Any]):
        super().__init__()
        self.fc1 = nn.Linear(hidden, sizes["mlp_dim"])
        self.fc2 = nn.Linear(sizes["mlp_dim"], hidden)
        self.dropout = nn.Dropout(sizes["dropout_rate"])
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (B, tokens, hidden)."""
        between = self.dropout(functional.gelu(self.fc1(tokens)))
        return self.dropout(self.fc2(between))


class Attention(nn.Module):
    """Attention with several heads."""

    def __init__(self, hidden: int, sizes: Mapping[str, Any]):
        super().__init__()
        self.heads = sizes["num_heads"]
        width = hidden // self.heads * self.heads
        self.query = nn.Linear(hidden, width)
        self.key = nn.Linear(hidden, width)
        self.value = nn.Linear(hidden, width)
        self.out = nn.Linear(hidden, hidden)
        self.dropout_rate = sizes["attention_dropout_rate"]
        self.dropout = nn.Dropout(self.dropout_rate)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return (B, tokens, hidden)."""
        attended = functional.scaled_dot_product_attention(
            self._by_head(self.query(tokens)),
            self._by_head(self.key(tokens)),
            self._by_head(self.value(tokens)),
            dropout_p=self.dropout_rate if self.training else 0.0,
        )
        return self.dropout(self.out(attended.transpose(1, 2).flatten(2)))

    def _by_head(self, values: torch.Tensor) -> torch.Tensor:
        """(B, heads, tokens, width of a head)."""
        return values.unflatten(2, (self.heads, -1)).transpose(1, 2)


class Decoder(nn.Module):
    """From tokens back to the patch, with skip connections from each level of the encoder."""

    def __init__(self, sizes: Mapping[str, Any], grid: Sequence[int]):
        super().__init__()
        self.grid = tuple(grid)
        self.skips = sizes["n_skip"]
        first = sizes["conv_first_channel"]
        self.conv_more = _conv_norm_relu(sizes["hidden_size"], first)
        widths = [first, *sizes["decoder_channels"]]
        blocks = []
        for level, beside in enumerate(sizes["skip_channels"]):
            blocks.append(DecoderBlock(widths[level] + beside, widths[level + 1]))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, tokens: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return (B, channels, z, y, x) on the voxels of raw."""
        values = self.conv_more(tokens.transpose(1, 2).unflatten(2, self.grid))
        for level, block in enumerate(self.blocks):
            values = functional.interpolate(values, scale_factor=2, mode="trilinear")
            if level < self.skips:
                values = torch.cat([values, features[level]], dim=1)
            values = block(values)
        return values


class DecoderBlock(nn.Module):
    """Two convolutions of 3 voxels with batch normalisation and ReLU."""

    def __init__(self, taken: int, given: int):
        super().__init__()
        self.conv1 = _conv_norm_relu(taken, given)
        self.conv2 = _conv_norm_relu(given, given)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return (B, given, z, y, x)."""
        return self.conv2(self.conv1(values))


def _conv_norm_relu(taken: int, given: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(taken, given, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm3d(given),
        nn.ReLU(inplace=True),
    )
