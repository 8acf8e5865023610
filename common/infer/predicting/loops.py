"""Loops over all voxels of a predicted block, on a CPU.

A sigmoid in float32 and its rounding are four passes over a block and took 13 times as long as one
look into a table, whose result is the same (a core of a Xeon, bf16, 48 classes, channels_last); the
mean of eight voxels in NumPy took 4 times as long as here. Measured in one process each,
2026-11-26.
"""

from __future__ import annotations

import numpy as np

from common.compiled import compiled, part_of_compiled

# 32 voxels of 48 classes in bf16 are 3 kB: they stay in the smallest cache for their transposition
TILE = 32
"""Voxels of which all classes are looked up before the next ones are.

Networks often give the classes of a voxel side by side, and the voxels of a class are stored so.
"""

LIMIT = np.float32(6.5)
"""Logits beyond -LIMIT and LIMIT are 0 and 255 in 255ths: 255 begins at 6.24."""

BINS = 1023
"""Equal parts of -LIMIT .. LIMIT; in none of them two 255ths begin."""

PER_UNIT = np.float32(BINS / 13)
"""Bins of a logit of 1."""

SIGN_OFF = np.uint16(0x7FFF)
"""The bits of a number but for its sign."""


@compiled
def by_bits(bits, table, stored):
    """Fill `stored` with the entries of a table; return the largest bits without their sign.

    The bits of NaN are above those of infinity.

    bits, stored: (classes, z, y, x), uint16 and uint8. table: (65536,) uint8.
    """
    classes, layers, rows, voxels = bits.shape
    largest = np.uint16(0)
    for z in range(layers):
        for y in range(rows):
            for first in range(0, voxels, TILE):
                last = min(first + TILE, voxels)
                for c in range(classes):
                    row_bits = bits[c, z, y]
                    row = stored[c, z, y]
                    for x in range(first, last):
                        value = row_bits[np.uint64(x)]
                        largest = max(largest, value & SIGN_OFF)
                        row[np.uint64(x)] = table[value]
    return largest


@compiled
def by_ends(values, ends, below, stored):
    """Fill `stored` with the number of ends that are at most a value; return whether any is NaN.

    NaN is stored as 0.

    values, stored: (classes, z, y, x), float32 and uint8. ends: float32, ascending, the last
    infinite; no two in one bin. below: (BINS + 1,) uint8, the number of ends in the bins before.
    """
    classes, layers, rows, voxels = values.shape
    has_nan = False
    for z in range(layers):
        for y in range(rows):
            for first in range(0, voxels, TILE):
                last = min(first + TILE, voxels)
                for c in range(classes):
                    row_values = values[c, z, y]
                    row = stored[c, z, y]
                    for x in range(first, last):
                        value = row_values[np.uint64(x)]
                        has_nan |= np.isnan(value)
                        # in this order NaN becomes the lower limit
                        value = value if value > -LIMIT else -LIMIT
                        value = value if value < LIMIT else LIMIT
                        count = below[np.uint32((value + LIMIT) * PER_UNIT)]
                        row[np.uint64(x)] = count + (value >= ends[count])
    return has_nan


@compiled
def halve(fine, coarse):
    """Fill `coarse` with the rounded means of 2 x 2 x 2 voxels, halves to even.

    fine, coarse: (z, y, x) uint8. An incomplete last layer is dropped.
    """
    for z in range(coarse.shape[0]):
        for y in range(coarse.shape[1]):
            upper = fine[2 * z, 2 * y]
            upper_next = fine[2 * z, 2 * y + 1]
            lower = fine[2 * z + 1, 2 * y]
            lower_next = fine[2 * z + 1, 2 * y + 1]
            row = coarse[z, y]
            for x in range(row.size):
                total = _pair(upper, x) + _pair(upper_next, x)
                total += _pair(lower, x) + _pair(lower_next, x)
                row[np.uint64(x)] = (total + THREE + ((total >> THREE) & ONE)) >> THREE


ONE = np.uint16(1)
THREE = np.uint16(3)
"""Uint16, which holds the sum of eight: numba makes 64 bits of a sum with another integer."""


@part_of_compiled
def _pair(row, x):
    """Return the sum of the two voxels that become voxel x."""
    return np.uint16(np.uint16(row[np.uint64(2 * x)]) + np.uint16(row[np.uint64(2 * x + 1)]))
