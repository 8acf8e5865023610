"""The 3D U-Net of the unet* experiments, built of LeibNetz' layers, and the sizes that it takes.

Three levels (12, 36, 108 channels), unpadded convolutions, residual blocks, no normalisation,
logits out. Differences from the original baselines, which call `leibnetz.build_unet` and use the
result as it is: reflection padding by zero voxels is switched off, and the shape arithmetic of
every call is left out. Outputs and gradients are equal to the last bit, saved activations about
half, and `torch.compile` sees one graph instead of seventeen. Sizes that LeibNetz would silently
cut are refused. The blocks stay LeibNetz': there is no activation between the two convolutions of
a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from common.model.sizes import shrunk_shape, three_sizes

SMALLEST_INPUT = 44
INPUT_STEP = 4
LOST_VOXELS = 40


class UNet(nn.Module):
    """The layers of a LeibNetz U-Net, run on tensors.

    (B, in_channels, z, y, x) to logits (B, classes, z - 40, y - 40, x - 40), for the sizes of
    `unet_output_shape`. Weights have the names that they have in LeibNetz, so its checkpoints load.
    """

    def __init__(self, leibnet: nn.Module, voxel_size_nm: tuple[float, float, float]):
        super().__init__()
        self.nodes_dict = cast(nn.ModuleDict, leibnet.nodes_dict)
        self.voxel_size_nm = voxel_size_nm
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                # "reflect" copies its input, even where it pads by nothing
                module.padding_mode = "zeros"

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        """Logits of raw; raises UserError where `unet_output_shape` does."""
        unet_output_shape(raw.shape[2:])
        fine = self._block("in_conv_0", raw)
        middle = self._block("in_conv_1", functional.max_pool3d(fine, 2))
        coarse = self._block("bottleneck", functional.max_pool3d(middle, 2))
        middle = self._block("out_conv_1", _join(coarse, middle))
        fine = self._block("out_conv_0", _join(middle, fine))
        return self._block("output", fine)

    def _block(self, name: str, features: torch.Tensor) -> torch.Tensor:
        block = cast(nn.Module, self.nodes_dict[name].model)
        return block(features)


def build_unet(
    classes: Sequence[str],
    voxel_size: float | Sequence[float],
    in_channels: int = 1,
    width: int = 12,
) -> UNet:
    """An untrained network with one output channel for each class; 666,600 parameters for 48.

    Weights are drawn from torch's generator as LeibNetz draws them (kaiming, fan_out): same seed,
    same weights.

    Args:
        classes: names, in the order of the channels.
        voxel_size: nm, one number or z, y, x. The layers are the same for every voxel size; the
            network only carries it.
        in_channels: of the input, raw and what is beside it.
        width: channels of the finest level; each coarser one has three times as many.
    """
    import leibnetz  # takes seconds

    sizes = three_sizes(voxel_size)
    leibnet = leibnetz.build_unet(
        # LeibNetz uses them as whole numbers, and fails for 0
        top_resolution=tuple(max(1, round(size)) for size in sizes),
        base_nc=width,
        nc_increase_factor=3,
        residual=True,
        final_activation="Identity",
        input_nc=in_channels,
        output_nc=len(classes),
    )
    return UNet(leibnet, sizes)


def unet_output_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    """Voxels that come out of the U-Net on each axis: n - 40 for n = 44, 48, 52, ...

    Half of the lost ones are on each side; only these sizes keep the output in the centre of the
    input. Raises UserError naming the nearest sizes to use.
    """
    return shrunk_shape(
        "the U-Net",
        input_shape,
        smallest=SMALLEST_INPUT,
        step=INPUT_STEP,
        lost=LOST_VOXELS,
    )


def _join(coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
    """Channels of `coarse`, twice as large, and of the centre of `fine`."""
    large = functional.interpolate(coarse, scale_factor=2, mode="nearest")
    for axis in (2, 3, 4):
        size = large.shape[axis]
        fine = fine.narrow(axis, (fine.shape[axis] - size) // 2, size)
    return torch.cat([large, fine], dim=1)
