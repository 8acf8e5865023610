"""Plasma membrane and cell of the fly's optic medulla, at 10 nm."""

classes = ["pm", "cell"]
input_array_info = {"shape": (92, 92, 92), "scale": (10, 10, 10)}
target_array_info = {"shape": (52, 52, 52), "scale": (10, 10, 10)}
