"""Membrane, mitochondria and cytosol of a fly larva's ventral nerve cord.

Sections of 50 nm are resampled to 12.5 x 9.2 x 9.2 nm. 20 sections are 1000 nm, so that 68 voxels
of 12.5 nm fit into them.

The network takes 44, 48, 52, ... voxels (44 + 4k) on an axis, and gives 40 less.
"""

classes = ["pm", "mito", "cyto"]
input_array_info = {"shape": (68, 92, 92), "scale": (12.5, 9.2, 9.2)}
target_array_info = {"shape": (28, 52, 52), "scale": (12.5, 9.2, 9.2)}
