"""Loops that climb a landscape and join its basins, compiled."""

from __future__ import annotations

import numpy as np

from common.compiled import compiled, part_of_compiled

OUTSIDE = -1
"""Stands in the place of a summit where the id is 0."""


@compiled
def climb(height, ids, is_open, top):
    """Fill `top` with the voxel that steepest ascent ends at, OUTSIDE where the id is 0.

    A voxel climbs to the highest of its 26 neighbours of the same id. Of equal ones the later is
    the higher, so that plateaus are climbed too. Beyond an open end of the array nothing is known:
    ascent ends at the last layer before it.

    height, ids, top: (z, y, x) float32, int64, int64. is_open: (3, 2) bool, whether the volume goes
    on before the first and behind the last voxel of an axis.
    """
    layers, rows, voxels = ids.shape
    to = top.ravel()
    for z in range(layers):
        open_z = _is_at_end(z, layers, is_open[0])
        for y in range(rows):
            open_y = open_z or _is_at_end(y, rows, is_open[1])
            for x in range(voxels):
                here = (z * rows + y) * voxels + x
                to[here] = here
                if ids[z, y, x] == 0:
                    to[here] = OUTSIDE
                elif not (open_y or _is_at_end(x, voxels, is_open[2])):
                    to[here] = _highest_neighbour(height, ids, z, y, x)
    _follow(to)


@part_of_compiled
def _is_at_end(place, length, is_open):
    """Return whether a voxel is at an end of an axis behind which the volume goes on."""
    return (place == 0 and is_open[0]) or (place == length - 1 and is_open[1])


@part_of_compiled
def _highest_neighbour(  # noqa: PLR0917
    height, ids, z, y, x
):
    """Return the highest voxel of the 27, counted through the array."""
    layers, rows, voxels = ids.shape
    best = height[z, y, x]
    highest = (z * rows + y) * voxels + x
    for k in range(max(z - 1, 0), min(z + 2, layers)):
        for j in range(max(y - 1, 0), min(y + 2, rows)):
            for i in range(max(x - 1, 0), min(x + 2, voxels)):
                neighbour = (k * rows + j) * voxels + i
                is_equal_and_later = height[k, j, i] == best and neighbour > highest
                is_higher = height[k, j, i] > best or is_equal_and_later
                if is_higher and ids[k, j, i] == ids[z, y, x]:
                    best = height[k, j, i]
                    highest = neighbour
    return highest


@part_of_compiled
def _follow(to):
    """Let every voxel lead to where its path ends."""
    for first in range(to.size):
        if to[first] == OUTSIDE:
            continue
        last = first
        while to[last] != last:
            last = to[last]
        here = first
        while to[here] != last:
            after = to[here]
            to[here] = last
            here = after


@compiled
def join_over_passes(  # noqa: PLR0917  # compiled functions take no keywords
    passes, heights, summits, least, part, places, min_distance
):
    """Join basins over the passes between them; `part` then leads to the basin that each is in.

    See `common.infer.objects.merge`. Two basins stay apart where the pass is lower than `least` of
    the one with the lower summit, unless their summits are nearer than `min_distance`.

    passes: (k, 2) int64 basins, from the highest pass to the lowest. heights: (k,) float64 of the
    passes. summits, least: (n,) float64. part: (n,) int64, each its own number. places: (n, 3)
    float64 of the summits.
    """
    for k in range(heights.size):
        high = _root(part, passes[k, 0])
        low = _root(part, passes[k, 1])
        if high == low:
            continue
        if summits[high] < summits[low] or (summits[high] == summits[low] and high > low):
            high, low = low, high
        if heights[k] >= least[low] or _distance(places, high, low) < min_distance:
            part[low] = high
    for basin in range(part.size):
        part[basin] = _root(part, basin)


@part_of_compiled
def _distance(places, first, second):
    """Return how far two summits are from each other."""
    z = places[first, 0] - places[second, 0]
    y = places[first, 1] - places[second, 1]
    x = places[first, 2] - places[second, 2]
    return np.sqrt(z * z + y * y + x * x)


@part_of_compiled
def _root(part, basin):
    """Return the basin that stands for a part, halving the path (Tarjan and van Leeuwen 1984)."""
    while part[basin] != basin:
        part[basin] = part[part[basin]]
        basin = part[basin]
    return basin
