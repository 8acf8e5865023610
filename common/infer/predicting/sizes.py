"""How large the blocks of a box are: as large as pay, and as there is memory for."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from common import runtime
from common.config.settings import TrainConfig
from common.data.splits.regions import Region
from common.errors import UserError
from common.infer.networks.network import Network
from common.infer.predicting.box_plans import plan_of_edge, plans_of_passes, with_inputs
from common.infer.predicting.orientations import check_windows
from common.infer.predicting.output import Output
from common.infer.predicting.plan import BlockPlan
from common.infer.predicting.tiling import windows_at_once
from common.talk import voxels

LARGEST_BLOCK = {"cuda": 256}
"""Edge in voxels that blocks have at most, by kind of device; 128 on others."""

# below, a block is mostly context that is computed and dropped
SMALLEST_BLOCK = 32
"""Edge in voxels below which blocks are not made smaller to save memory."""

TOO_LARGE = 4
"""Multiple of the free memory above which an estimate of `gigabytes` is refused."""

# half: `gigabytes` is an estimate, and other processes want some too
MEMORY_FRACTION = 0.5
"""Fraction of the device's free memory that a block may take."""


def make_plan(
    network: Network,
    config: TrainConfig,
    region: Region,
    output: Output,
    *,
    largest: int = 0,
    sharers: int = 1,
) -> BlockPlan:
    """Return the blocks of a box, ready to be computed.

    Raise UserError for blocks that do not fit into memory, and for orientations that the network
    does not take; UserError or FileNotFoundError for further input channels.

    Args:
        network: trained.
        config: its experiment.
        region: the box.
        output: how it is stored.
        largest: edge of blocks in voxels; unless it or `output.block` is given, as large as there
            is memory for, up to the largest that pay.
        sharers: processes that share that memory.
    """
    raw = network.raw_of(region)
    asked = largest or output.block
    usual = LARGEST_BLOCK.get(network.device.type, 128)
    edge = asked or usual
    plan = plan_of_edge(network, raw, region, output, edge=edge)
    if not asked:
        free = MEMORY_FRACTION * runtime.free_memory_gb(network.device) / sharers
        classes = len(config.channels)
        while edge > SMALLEST_BLOCK and gigabytes(network, region, plan, classes) > free:
            edge = edge * 3 // 4
            plan = plan_of_edge(network, raw, region, output, edge=edge)
    elif edge > usual:
        _refuse_too_large(network, region, plan, edge)
    _check_orientations(network, region, plan, output.orientations)
    return with_inputs(plan, network, region)


def _check_orientations(network: Network, region: Region, plan: BlockPlan, number: int) -> None:
    """Raise UserError where a network does not take the windows of so many orientations."""
    if number == 16:
        for member, pass_plan in _passes(network, region, plan):
            _refuse_exchange(member, region, pass_plan.window.input.shape)
    if number > 1:
        for member in network.every_pass:
            check_windows(member)


def gigabytes(network: Network, region: Region, plan: BlockPlan, classes: int) -> float:
    """Return roughly what a block takes at its peak, in GB.

    That is the largest forward pass, and the block's logits in float32 twice; for an ensemble five
    times: two sums, and what is added to them. Where the network's voxels are smaller than the
    written ones, its logits before resampling are counted too.
    """
    logits = 4 * classes * math.prod(plan.block_shape) / 1e9
    needs = []
    for member, pass_plan in _passes(network, region, plan):
        window = pass_plan.window.of_slices(pass_plan.window.at_once)
        needed = member.shapes.forward_bytes(window.input.shape) / 1e9
        needed *= windows_at_once(window, network.device)
        if pass_plan.resampled:
            ratio = pass_plan.grid.scale / window.output.scale
            needed += logits * float(np.prod(np.maximum(ratio, 1)))
        needs.append(needed)
    return max(needs) + (5 if network.members else 2) * logits


def _passes(
    network: Network, region: Region, plan: BlockPlan
) -> Iterator[tuple[Network, BlockPlan]]:
    """Yield the network of each pass over a box, with its plan."""
    yield from zip(network.every_pass, plans_of_passes(network, region, plan), strict=True)


def _refuse_too_large(network: Network, region: Region, plan: BlockPlan, block: int) -> None:
    """Raise UserError for blocks that take far more memory than the device has free."""
    free = runtime.free_memory_gb(network.device)
    needed = gigabytes(network, region, plan, len(network.config.channels))
    # an estimate: what may still fit is tried
    if needed > TOO_LARGE * free:
        raise UserError(
            f"--block {block}: a block of {voxels(plan.block_shape)} voxels takes about "
            f"{needed:.3g} GB, and {network.device} has {free:.3g} GB free; write a smaller one, "
            "or leave it out"
        )


def _refuse_exchange(network: Network, region: Region, shape: tuple[int, int, int]) -> None:
    """Raise UserError where the network does not take a window with y and x exchanged."""
    across = network.forward_pass.sections or network.flat
    if across:
        raise UserError(
            f"{region}: 16 orientations exchange y and x, and planes across {'zyx'[across]} would "
            "be others then; write 8"
        )
    output_shape = network.shapes(shape)
    if output_shape is None:
        return  # it cannot be asked
    z, y, x = shape
    exchanged = network.shapes((z, x, y))
    if exchanged is None or exchanged[1:] != (output_shape[2], output_shape[1]):
        raise UserError(
            f"{region}: 16 orientations exchange y and x, and the network does not take "
            f"{(z, x, y)} voxels; write 8"
        )
