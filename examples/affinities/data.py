"""Cells of the fly's optic medulla, with what tells them apart, at 10 nm.

The network takes multiples of 8 voxels on an axis.
"""

from common.config.derived import affinities, boundary

classes = ["cell"]
derived = {
    # thin processes keep an inside: a wider edge would fill them
    "cell_boundary": boundary("cell", inside=10, outside=10),
    # the near ones hold a cell together, the far ones keep two apart where the membrane is faint
    "cell_affinity": affinities(
        "cell",
        offsets=[
            (10, 0, 0),
            (0, 10, 0),
            (0, 0, 10),
            (50, 0, 0),
            (0, 50, 0),
            (0, 0, 50),
        ],
    ),
}
input_array_info = {"shape": (32, 32, 32), "scale": (10, 10, 10)}
target_array_info = {"shape": (32, 32, 32), "scale": (10, 10, 10)}
