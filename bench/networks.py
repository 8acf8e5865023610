"""Time and work of a training step, for each voxel of target: LeibNetz, MONAI and ours.

    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1 python bench/networks.py

Every step in turn, `--steps` times; the least processor time of one thread counts, which other work
on the machine changes little. With `dynamic-network-architectures` installed its network of as many
channels is there, too.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.peers import build_basic_unet
from common.model.resenc import build_resenc
from common.model.unet import build_unet

CLASSES = ["pm", "cell"]
PATCH = (64, 64, 64)
OURS = {
    "resenc": {},
    "resenc, stem_stride 2": {"stem_stride": 2},
    "resenc, stem_stride 2, instance norm": {"stem_stride": 2, "norm": "instance"},
    "resenc, stem_stride 2, width 12": {"stem_stride": 2, "width": 12},
    "resenc, stem_stride 2, width 8": {"stem_stride": 2, "width": 8},
}


def nnunet() -> nn.Module:
    """The residual encoder of nnU-Net's authors, as wide and deep as ours."""
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    levels = 5
    return ResidualEncoderUNet(
        input_channels=1,
        n_stages=levels,
        features_per_stage=[16 * 2**k for k in range(levels)],
        conv_op=nn.Conv3d,
        kernel_sizes=3,
        strides=[1, 2, 2, 2, 2],
        n_blocks_per_stage=[1, 2, 2, 2, 2],
        num_classes=len(CLASSES),
        n_conv_per_stage_decoder=1,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )


class Contestant:
    """A network, its batch and its optimiser."""

    def __init__(self, build: Callable[[], nn.Module], raw: torch.Tensor):
        torch.manual_seed(0)
        self.model = build().to(memory_format=torch.channels_last_3d)
        self.raw = raw.contiguous(memory_format=torch.channels_last_3d)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        with FlopCounterMode(display=False) as counter:
            self.loss().backward()
        self.gflop = counter.get_total_flops() / 1e9
        self.seconds = math.inf

    def loss(self) -> torch.Tensor:
        """Return the cross-entropy with an empty target; note the number of target voxels."""
        logits = self.model(self.raw)
        self.voxels = logits.shape[0] * math.prod(logits.shape[2:])
        return functional.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits))

    def step(self) -> None:
        """Take one step, and keep its time if it is the least."""
        begun = time.process_time()
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.seconds = min(self.seconds, time.process_time() - begun)


def contestants(batch_size: int) -> dict[str, Contestant]:
    """Return the networks that can be built here, by name."""
    patches = torch.rand(batch_size, 1, *PATCH)
    by_name = {
        "LeibNetz, 92^3 -> 52^3": Contestant(
            lambda: build_unet(CLASSES, 10), torch.rand(1, 1, 92, 92, 92)
        ),
        "MONAI BasicUNet": Contestant(lambda: build_basic_unet(CLASSES), patches),
    }
    try:
        by_name["dynamic-network-architectures"] = Contestant(nnunet, patches)
    except ModuleNotFoundError as error:
        print(f"not compared: {error}", file=sys.stderr)
    for name, options in OURS.items():
        build = partial(build_resenc, CLASSES, 10, PATCH, **options)
        by_name[name] = Contestant(build, patches)
    return by_name


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=2, help="patches of 64^3")
    args = parser.parse_args()
    torch.set_num_threads(1)
    by_name = contestants(args.batch_size)
    for _ in range(args.steps):
        for contestant in by_name.values():
            contestant.step()
    print("| network | parameters | ms a step | GFLOP | us a voxel | kFLOP a voxel |")
    print("|---|---|---|---|---|---|")
    for name, contestant in by_name.items():
        parameters = sum(parameter.numel() for parameter in contestant.model.parameters())
        milliseconds = contestant.seconds * 1e3
        microseconds = contestant.seconds * 1e6 / contestant.voxels
        work = contestant.gflop * 1e6 / contestant.voxels
        print(
            f"| {name} | {parameters:,} | {milliseconds:.0f} | {contestant.gflop:.1f} | "
            f"{microseconds:.2f} | {work:.0f} |"
        )


if __name__ == "__main__":
    main()
