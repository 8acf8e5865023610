"""A 2-D network over the planes across all three axes of a volume.

Trained on slices across one axis, it is also given those across the other two, as the public
toolbox does; what is predicted is the mean of the three logits. So is a network of sections, whose
planes have their neighbours beside them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from common.data.samples.sampling import Patch
from common.errors import UserError
from common.infer.networks.network import Network, over
from common.model.sections import Sections
from common.talk import nm, note

OWN = "own"
ALL = "all"
AUTO = "auto"
CHOICES = (OWN, ALL, AUTO)
"""Planes that are predicted: OWN those of the training, ALL those across all axes.

AUTO is ALL for a 2-D network, and OWN for others.
"""


def with_planes(network: Network, which: str) -> Network:
    """Return the network, or the ensemble, over the planes that are asked for.

    Raise UserError for ALL planes of a network that is not 2-D.

    which: one of CHOICES.
    """
    if network.members:
        members = [with_planes(member, which) for member in network.members]
        return replace(network, members=tuple(members))
    own = own_axis(network)
    if which == OWN or (which == AUTO and own is None):
        return network
    if own is None:
        raise UserError(
            f"{network.config.folder}: --planes {ALL} is for networks whose convolutions are all "
            "2-D, with a patch of one voxel along an axis, or of sections; leave it out"
        )
    patches = [across(network, axis) for axis in range(3)]
    _note_other_voxels(network, patches)
    planes = [_over_planes(network, axis, *patch) for axis, patch in enumerate(patches)]
    return replace(network, planes=tuple(planes))


def _over_planes(network: Network, axis: int, input_patch: Patch, output_patch: Patch) -> Network:
    """Return the network over the planes across one axis, whose patches are given."""
    if network.flat is None:
        forward = replace(network.forward_pass, sections=axis)
    else:
        forward = replace(network.forward_pass, flat=axis)
    window, shapes = over(
        network.model,
        forward,
        input_patch,
        output_patch,
        in_channels=network.config.in_channels,
    )
    return replace(
        network,
        forward=partial(forward, network.model),
        forward_pass=forward,
        window=window,
        shapes=shapes,
    )


def own_axis(network: Network) -> int | None:
    """Return the axis across which a network got planes in training; None for a 3-D network."""
    if isinstance(network.model, Sections):
        return 0
    return network.flat


def across(network: Network, axis: int) -> tuple[Patch, Patch]:
    """Return the patches that a network takes and gives in the planes across an axis.

    Within a plane voxels have the size in nm that they had in training; planes are as far from each
    other as the voxels that are predicted.
    """
    input_patch = Patch(**network.config.input_array_info)
    output_patch = Patch(**network.config.target_array_info)
    own = own_axis(network)
    assert own is not None
    if axis == own:
        return input_patch, output_patch
    turned = (
        _turned(input_patch, output_patch, own, axis),
        _turned(output_patch, output_patch, own, axis),
    )
    if network.flat is not None:
        return turned
    # sections are seen as far from each other as in training
    apart = input_patch.scale[own]
    return (
        _along(turned[0], axis, voxels=input_patch.shape[own], nm=apart),
        _along(turned[1], axis, voxels=output_patch.shape[own], nm=apart),
    )


def _along(patch: Patch, axis: int, *, voxels: int, nm: float) -> Patch:
    """Return a patch with `voxels` voxels of `nm` along an axis."""
    shape = np.array(patch.shape)
    scale = np.array(patch.scale)
    shape[axis] = voxels
    scale[axis] = nm
    return Patch(tuple(shape.tolist()), tuple(scale.tolist()))


def _turned(patch: Patch, output_patch: Patch, own: int, axis: int) -> Patch:
    """Return a patch of planes across the axis `own` as one of planes across `axis`.

    output_patch: of the training, which says how far planes are from each other.
    """
    shape = np.ones(3, int)
    scale = np.array(output_patch.scale)
    before = [other for other in range(3) if other != own]
    after = [other for other in range(3) if other != axis]
    shape[after] = np.array(patch.shape)[before]
    scale[after] = np.array(patch.scale)[before]
    return Patch(tuple(shape.tolist()), tuple(scale.tolist()))


def _note_other_voxels(network: Network, patches: list[tuple[Patch, Patch]]) -> None:
    """Note where planes have other voxels than the volume that is predicted."""
    own = network.config.target_array_info["scale"]
    other = [
        nm(output_patch.scale)
        for _, output_patch in patches
        if not np.allclose(output_patch.scale, own)
    ]
    if other:
        distinct = list(dict.fromkeys(other))
        note(
            f"planes across the other axes have the voxels that the network was trained on within "
            f"its own, {' and '.join(distinct)} nm: raw is interpolated to "
            f"them, and their logits to {nm(own)} nm"
        )
