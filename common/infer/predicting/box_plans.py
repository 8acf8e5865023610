"""The blocks of a box for the networks that predict it: one, several, or one over several planes.

`common.infer.predicting.plan` has the geometry of blocks; here they meet networks and raw.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from common.data.splits.regions import Region
from common.data.volumes.raw import Raw
from common.infer.networks.network import Network
from common.infer.predicting.output import Output
from common.infer.predicting.plan import BlockPlan, in_same_blocks, plan_blocks


def plan_of_edge(
    network: Network, raw: Raw, region: Region, output: Output, *, edge: int
) -> BlockPlan:
    """Return the blocks of a box, of at most `edge` voxels along an edge.

    The plan lacks what the network needs beside raw, see `with_inputs`.

    Args:
        network: trained.
        raw: of the box, as the network gets it.
        region: the box.
        output: how it is stored.
        edge: voxels.
    """
    lower, upper = _with_margin(region, raw, output.margin)
    return plan_blocks(raw, network.window, lower, upper, scale=output.scale, largest=edge)


def _with_margin(region: Region, raw: Raw, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the corners of a box with `margin` nm around it, as far as its raw goes."""
    lower, upper = raw.grid.box()
    return (
        np.minimum(region.lower, np.maximum(region.lower - margin, lower)),
        np.maximum(region.upper, np.minimum(region.upper + margin, upper)),
    )


def with_inputs(plan: BlockPlan, network: Network, region: Region) -> BlockPlan:
    """Return the plan with how raw is normalised for a network, and its further input channels.

    Raise UserError or FileNotFoundError for a channel that is missing, or does not cover the box.
    """
    scaling = network.scaling_of(region, plan.raw)
    plan = replace(plan, scaling=scaling, channels=network.channels_of(region))
    plan.check_channels(str(region))
    return plan


def plans_of_passes(network: Network, region: Region, plan: BlockPlan) -> list[BlockPlan]:
    """Return the plan of each pass over a box, in the order of `Network.every_pass`.

    A pass is one network of an ensemble, or a network over the planes across one axis. All plans
    have the same written voxels in the same blocks; windows, raw and channels are each pass's own.

    plan: as of `common.infer.predicting.sizes.make_plan`.
    """
    passes = network.every_pass
    if passes[0] is network and len(passes) == 1:
        return [plan]
    plans = []
    for member in passes:
        pass_plan = in_same_blocks(plan, member.raw_of(region), member.window)
        plans.append(with_inputs(pass_plan, member, region))
    return plans
