"""What is stored of logits, looked up value by value on a CPU; `common.infer.encode` calls it.

A sigmoid in float32 and its rounding are four passes over a block and took 13 times as long as one
look into a table, whose result is the same (two cores of a Xeon, bf16, 48 classes in channels_last).
"""

from __future__ import annotations

import numpy as np

from common.compiled import compiled

# 64 voxels of 48 classes in bf16 are 6 kB: they stay in the smallest cache while they are transposed
TILE = 64
"""Voxels of which all classes are looked up before the next: networks often give the classes of a
voxel side by side, and stored are the voxels of a class."""

SIGN_OFF = np.uint16(0x7FFF)


@compiled
def by_bits(bits, table, stored):
    """Fill `stored` with the entries of a table.

    bits, stored: (classes, z, y, x), uint16 and uint8. table: (65536,) uint8.
    """
    classes, layers, rows, voxels = bits.shape
    for z in range(layers):
        for y in range(rows):
            for first in range(0, voxels, TILE):
                last = min(first + TILE, voxels)
                for c in range(classes):
                    for x in range(first, last):
                        stored[c, z, y, np.uint64(x)] = table[bits[c, z, y, np.uint64(x)]]


@compiled
def by_ends(values, bins, ends, below, stored):
    """Fill `stored` with the number of ends that are at most a value; 0 for NaN.

    values, stored: (classes, z, y, x), float32 and uint8. ends: float32, ascending, the last
    infinite. bins: (2,) float32, where the last bin ends, counted from 0 to both sides, and bins per
    unit; none has two ends. below: uint8, ends in the bins before each.
    """
    classes, layers, rows, voxels = values.shape
    limit = bins[0]
    for z in range(layers):
        for y in range(rows):
            for first in range(0, voxels, TILE):
                last = min(first + TILE, voxels)
                for c in range(classes):
                    for x in range(first, last):
                        value = values[c, z, y, np.uint64(x)]
                        # in this order NaN becomes the lower limit
                        value = value if value > -limit else -limit
                        value = value if value < limit else limit
                        count = below[np.uint32((value + limit) * bins[1])]
                        stored[c, z, y, np.uint64(x)] = count + (value >= ends[count])


@compiled
def largest_bits(bits):
    """Return the largest of 16 bits without their sign: of NaN they are above those of infinity.

    bits: (n,) uint16.
    """
    largest = np.uint16(0)
    for i in range(bits.size):
        largest = max(largest, bits[np.uint64(i)] & SIGN_OFF)
    return largest
