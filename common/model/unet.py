"""The 3D U-Net of the unet* experiments, built of LeibNetz' layers, and the sizes that it takes.

Three levels (12, 36, 108 channels), unpadded convolutions, residual blocks, no normalisation, logits out. Differences
from the original baselines, which call `leibnetz.build_unet` and use the result as it is: reflection padding by zero
voxels is switched off and the shape arithmetic of every call is left out. Outputs and gradients are equal to the last
bit, saved activations about half, and `torch.compile` sees one graph instead of seventeen. Sizes that LeibNetz would
silently cut are refused. The blocks stay LeibNetz': there is no activation between the two convolutions of a block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from common.errors import UserError

SMALLEST_INPUT = 44
INPUT_STEP = 4
LOST_VOXELS = 40


class UNet(nn.Module):
    """The layers of a LeibNetz U-Net, run on tensors: (B, 1, z, y, x) to logits (B, classes, z - 40, y - 40, x - 40).

    Tensors have the names that they have in LeibNetz, so its checkpoints load. Sizes: see `unet_output_shape`.
    """

    def __init__(self, leibnet: nn.Module, voxel_size_nm: tuple[float, float, float]):
        super().__init__()
        self.nodes_dict = leibnet.nodes_dict
        self.voxel_size_nm = voxel_size_nm
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                module.padding_mode = (
                    "zeros"  # "reflect" copies its input, even where it pads by nothing
                )

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        """Raises ValueError where `unet_output_shape` does."""
        unet_output_shape(raw.shape[2:])
        fine = self._block("in_conv_0", raw)
        middle = self._block("in_conv_1", functional.max_pool3d(fine, 2))
        coarse = self._block("bottleneck", functional.max_pool3d(middle, 2))
        middle = self._block("out_conv_1", _join(coarse, middle))
        fine = self._block("out_conv_0", _join(middle, fine))
        return self._block("output", fine)

    def _block(self, name: str, features: torch.Tensor) -> torch.Tensor:
        return self.nodes_dict[name].model(features)


def build_unet(classes: Sequence[str], voxel_size: float | Sequence[float]) -> UNet:
    """An untrained network with one output channel for each of `classes`; 666,600 parameters for 48.

    voxel_size: nm, one number or z, y, x. The layers are the same for every voxel size; the network only carries it.
    Weights are drawn from torch's generator as LeibNetz draws them (kaiming, fan_out): same seed, same weights.
    """
    import leibnetz  # takes seconds

    voxel_size_nm = tuple(
        float(v) for v in (voxel_size if isinstance(voxel_size, Sequence) else [voxel_size] * 3)
    )
    if len(voxel_size_nm) != 3 or not all(v > 0 for v in voxel_size_nm):
        raise UserError(
            f"voxel size {voxel_size}: not a size in nm; write one positive number, or three for z, y, x"
        )
    leibnet = leibnetz.build_unet(
        top_resolution=tuple(
            max(1, round(v)) for v in voxel_size_nm
        ),  # used as whole numbers, and 0 fails
        base_nc=12,
        nc_increase_factor=3,
        residual=True,
        final_activation="Identity",
        output_nc=len(classes),
    )
    return UNet(leibnet, voxel_size_nm)


def unet_output_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    """Voxels that come out of the U-Net on each axis: n - 40 for n = 44, 48, 52, ...; 20 are lost on each side.

    Raises ValueError naming the nearest sizes that can be used. Only these keep the output in the centre of the input.
    """
    return shrunk_shape("the U-Net", input_shape, SMALLEST_INPUT, INPUT_STEP, LOST_VOXELS)


def shrunk_shape(
    network: str, input_shape: Sequence[int], smallest: int, step: int, lost: int
) -> tuple[int, ...]:
    """`input_shape` less `lost` voxels on each axis, where a network takes the sizes smallest, smallest + step, ...

    Raises ValueError, naming `network` and the two nearest sizes that it takes, for any other size.
    """
    for n in input_shape:
        if n < smallest or (n - smallest) % step:
            below = max(smallest, n - (n - smallest) % step)
            raise UserError(
                f"input shape {tuple(input_shape)}: {network} does not take {n} voxels on an axis, only {smallest}, "
                f"{smallest + step}, {smallest + 2 * step}, ...; write {below} or {below + step}"
            )
    return tuple(n - lost for n in input_shape)


def _join(coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
    """Channels of `coarse`, twice as large, and of the centre of `fine`."""
    large = functional.interpolate(coarse, scale_factor=2, mode="nearest")
    for axis in (2, 3, 4):
        size = large.shape[axis]
        fine = fine.narrow(axis, (fine.shape[axis] - size) // 2, size)
    return torch.cat([large, fine], dim=1)
