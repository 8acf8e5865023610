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
"""Planes that are predicted: those of the training; across all axes; all of a 2-D network."""


def with_planes(network: Network, which: str) -> Network:
    """The network, or each of an ensemble, with the planes that are asked for.

    which: one of CHOICES. Raises UserError for "all" planes of a network that is not 2-D.
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
    planes = []
    for axis, (taken, given) in enumerate(patches):
        if network.flat is None:
            forward = replace(network.forward_pass, sections=axis)
        else:
            forward = replace(network.forward_pass, flat=axis)
        window, shapes = over(
            network.model, forward, taken, given, in_channels=network.config.in_channels
        )
        planes.append(
            replace(
                network,
                forward=partial(forward, network.model),
                forward_pass=forward,
                window=window,
                shapes=shapes,
            )
        )
    return replace(network, planes=tuple(planes))


def own_axis(network: Network) -> int | None:
    """The axis across which a network got planes in training; None of a 3-D network."""
    if isinstance(network.model, Sections):
        return 0
    return network.flat


def across(network: Network, axis: int) -> tuple[Patch, Patch]:
    """What a network takes and gives in the planes across an axis.

    Within a plane it has the voxels that it was trained on, in nm; planes are as far from each
    other as the voxels that are predicted.
    """
    taken = Patch(**network.config.input_array_info)
    given = Patch(**network.config.target_array_info)
    own = own_axis(network)
    assert own is not None
    if axis == own:
        return taken, given
    turned = _turned(taken, given, own, axis), _turned(given, given, own, axis)
    if network.flat is not None:
        return turned
    # sections are seen as far from each other as in training
    apart = taken.scale[own]
    return (
        _along(turned[0], axis, voxels=taken.shape[own], nm=apart),
        _along(turned[1], axis, voxels=given.shape[own], nm=apart),
    )


def _along(patch: Patch, axis: int, *, voxels: int, nm: float) -> Patch:
    """A patch with so many voxels of another size along an axis."""
    shape = np.array(patch.shape)
    scale = np.array(patch.scale)
    shape[axis] = voxels
    scale[axis] = nm
    return Patch(tuple(shape.tolist()), tuple(scale.tolist()))


def _turned(patch: Patch, given: Patch, own: int, axis: int) -> Patch:
    """A patch across `own`, across another axis. given: of the target, as in training."""
    shape = np.ones(3, int)
    scale = np.array(given.scale)
    before = [other for other in range(3) if other != own]
    after = [other for other in range(3) if other != axis]
    shape[after] = np.array(patch.shape)[before]
    scale[after] = np.array(patch.scale)[before]
    return Patch(tuple(shape.tolist()), tuple(scale.tolist()))


def _note_other_voxels(network: Network, patches: list[tuple[Patch, Patch]]) -> None:
    """Say where planes have other voxels than the volume that is predicted."""
    own = network.config.target_array_info["scale"]
    other = [nm(given.scale) for _, given in patches if not np.allclose(given.scale, own)]
    if other:
        distinct = list(dict.fromkeys(other))
        note(
            f"planes across the other axes have the voxels that the network was trained on within "
            f"its own, {' and '.join(distinct)} nm: raw is interpolated to "
            f"them, and their logits to {nm(own)} nm"
        )
