"""Networks, and what one takes, gives and needs.

* networks: `unet`, `resenc`, `unet3d`, `vgg16`, `cosem`, `sections`; `sizes` that they take,
  `published` weights
* made and run: `build`, `forward` one pass, `compiling`, `passing` a pass that leaves no trace,
  `exported` files for other programs
* looked at: `shapes` and memory, `output_layers` and where they begin, `activation` at its end,
  `seen_range` of raw
"""
