"""The setting `augmentations` with every kind in it, for 8 nm."""

EVERY_KIND = {
    "scale": {"probability": 0.5},
    "elastic": {"probability": 0.5, "amplitude_nm": 20, "spacing_nm": 60},
    "section_shift": {"probability": 0.5, "max_nm": 24},
    "section_slip": {"probability": 0.5, "max_nm": 24},
    "missing_sections": {"probability": 0.5},
    "section_contrast": {"probability": 0.5},
    "low_resolution": {"probability": 0.5, "voxel_nm": (16, 32)},
    "blur": {"probability": 0.5, "sigma_nm": 8},
    "sharpen": {"probability": 0.5, "sigma_nm": 8},
    "gradient": {"probability": 0.5},
    "cutout": {"probability": 0.5, "edge_nm": (24, 40)},
}
