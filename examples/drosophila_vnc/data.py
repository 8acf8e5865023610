"""Membrane, mitochondria and cytosol of a fly larva's ventral nerve cord.

Serial sections of 50 nm, at 4.6 nm in the plane: as they were imaged. The network takes any number
of sections, and multiples of 8 voxels in the plane.
"""

classes = ["pm", "mito", "cyto"]
input_array_info = {"shape": (4, 64, 64), "scale": (50, 4.6, 4.6)}
target_array_info = {"shape": (4, 64, 64), "scale": (50, 4.6, 4.6)}
