"""Experiment: axons and their borders by a U-Net over ImageNet's VGG16 in three dimensions."""
