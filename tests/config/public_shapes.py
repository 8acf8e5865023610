"""One training configuration for each public one that was counted, put together from parts.

24 are the toolbox's 2-D and 3-D examples through time, 28 the original experiments at each of their
commits, 7 those of other groups. The words are ours; which names are assigned and imported, in
which form and by how many files, is as in the public ones, see COUNTS.
"""

from __future__ import annotations

import ast
import textwrap

PARTS = {
    # what every file begins with
    "example": """
        from upath import UPath
        learning_rate = 0.0001
        batch_size = 2
        epochs = 1000
        iterations_per_epoch = 1000
        """,
    "slice": """
        input_array_info = {"shape": (1, 32, 32), "scale": (8, 8, 8)}
        target_array_info = {"shape": (1, 32, 32), "scale": (8, 8, 8)}
        """,
    "cube": """
        input_array_info = {"shape": (16, 16, 16), "scale": (8, 8, 8)}
        target_array_info = {"shape": (16, 16, 16), "scale": (8, 8, 8)}
        """,
    "one_info": """
        input_array_info = {"shape": (1, 16, 16), "scale": (8, 8, 8)}
        target_array_info = input_array_info
        """,
    "cube_of_64": """
        input_array_info = {"shape": (64, 64, 64), "scale": (4, 4, 4)}
        target_array_info = {"shape": (64, 64, 64), "scale": (4, 4, 4)}
        """,
    "flat_voxels": """
        input_array_info = {"shape": (1, 32, 32), "scale": (8, 4, 4)}
        target_array_info = {"shape": (1, 32, 32), "scale": (8, 4, 4)}
        """,
    # seeds
    "seed": "random_seed = 42",
    "seed_of_environment": """
        import os
        random_seed = getattr(os.environ, "SEED", 42)
        """,
    "seed_that_is_text": """
        import os
        random_seed = os.environ.get("SEED", "7")
        """,
    # classes
    "two": 'classes = ["nuc", "er"]',
    "tested": """
        from cellmap_segmentation_challenge.utils import get_tested_classes
        classes = get_tested_classes()
        """,
    "some_tested": """
        from cellmap_segmentation_challenge.utils import get_tested_classes
        wanted = {"nuc", "er", "mito"}
        classes = [name for name in get_tested_classes() if name in wanted]
        """,
    "of_their_own": 'classes = ["mito", "er", "zebra_body"]',
    # networks of the toolbox; the 3-D example imports all that it could take
    "unet_2d": """
        from cellmap_segmentation_challenge.models import ResNet, UNet_2D
        model_name = "2d_unet"
        model_to_load = "2d_unet"
        model = UNet_2D(1, len(classes))
        """,
    "unet_2d_alone": """
        from cellmap_segmentation_challenge.models import UNet_2D
        model_name = "2d_unet"
        model_to_load = "2d_unet"
        model = UNet_2D(1, len(classes))
        """,
    "resnet_2d": """
        from cellmap_segmentation_challenge.models import ResNet, UNet_2D
        model_name = "2d_resnet"
        model_to_load = model_name
        model = ResNet(ndims=2, output_nc=len(classes))
        """,
    "either_2d": """
        from cellmap_segmentation_challenge.models import ResNet, UNet_2D
        model_name = "2d_resnet"
        if model_name.endswith("resnet"):
            model = ResNet(ndims=2, output_nc=len(classes))
        else:
            model = UNet_2D(1, len(classes))
        model_to_load = model_name
        """,
    "unet_3d": """
        from cellmap_segmentation_challenge.models import ResNet, UNet_3D, ViTVNet
        model_name = "3d_unet"
        model_to_load = "3d_unet"
        model = UNet_3D(1, len(classes))
        """,
    "resnet_3d": """
        from cellmap_segmentation_challenge.models import ResNet, UNet_3D, ViTVNet
        model_name = "3d_resnet"
        model_to_load = "3d_resnet"
        model = ResNet(ndims=3, output_nc=len(classes))
        """,
    "resnet_3d_alone": """
        from cellmap_segmentation_challenge.models import ResNet
        model_name = "3d_resnet"
        model_to_load = "3d_resnet"
        model = ResNet(ndims=3, output_nc=len(classes))
        """,
    "vit": """
        from cellmap_segmentation_challenge.models import ResNet, UNet_3D, ViTVNet
        model_name = "3d_vnet"
        model_to_load = "3d_vnet"
        model = ViTVNet(len(classes), img_size=input_array_info["shape"])
        """,
    # networks of the original experiments
    "cosem": """
        import torch
        from cellmap_models.pytorch import cosem
        backbone = cosem.load_model("setup04/1820500").backbone[0]
        for parameter in backbone.parameters():
            parameter.requires_grad = False
        model = torch.nn.Sequential(
            backbone, torch.nn.Conv3d(5, 6, 3), torch.nn.ReLU(), torch.nn.Conv3d(6, len(classes), 1)
        )
        input_array_info = {"shape": (38, 38, 38), "scale": (8, 8, 8)}
        target_array_info = {"shape": (6, 6, 6), "scale": (8, 8, 8)}
        model_name = f"setup04.1820500_{random_seed}_8nmOut.all"
        """,
    "cosem_whose_head_pads": """
        import torch
        from cellmap_models.pytorch import cosem
        network = cosem.load_model("setup04/1820500")
        features, out = 5, len(classes)
        model = torch.nn.Sequential(network.backbone[0], torch.nn.Conv3d(features, out, 1))
        input_array_info = {"shape": (38, 38, 38), "scale": (8, 8, 8)}
        target_array_info = {"shape": (8, 8, 8), "scale": (8, 8, 8)}
        model_name = "setup04." + str(random_seed)
        """,
    "leibnetz": """
        import leibnetz
        model = leibnetz.build_unet(
            top_resolution=(8, 8, 8), final_activation="Identity", base_nc=2,
            downsample_factors=[(2, 2, 2)], output_nc=len(classes),
        )
        input_array_info = model.input_shapes["input"]
        target_array_info = model.output_shapes["output"]
        model_name = f"unet8_all.{random_seed}"
        """,
    "leibnetz_of_kwargs": """
        import leibnetz
        resolution = 16
        model_kwargs = {
            "output_nc": len(classes),
            "top_resolution": (resolution, resolution, resolution),
            "final_activation": "Identity",
            "base_nc": 2,
            "nc_increase_factor": 2,
            "downsample_factors": [(2, 2, 2)],
            "residual": True,
        }
        model = leibnetz.build_unet(**model_kwargs)
        input_array_info = {
            "shape": model.input_shapes["input"]["shape"],
            "scale": model.input_shapes["input"]["scale"],
        }
        target_array_info = {
            "shape": model.output_shapes["output"]["shape"],
            "scale": model.output_shapes["output"]["scale"],
        }
        model_name = "unet16_all." + str(random_seed)
        """,
    "leibnetz_grown": """
        import leibnetz
        model = leibnetz.build_unet(
            top_resolution=(8, 8, 8), final_activation="Identity", base_nc=2,
            downsample_factors=[(2, 2, 2)], output_nc=len(classes),
        )
        model.step_up_size(steps=1, step_size=4)
        input_array_info = model.input_shapes["input"]
        target_array_info = model.output_shapes["output"]
        model_name = f"unet8_all.{random_seed}"
        """,
    "to_load_is_name": "model_to_load = model_name",
    # what the original experiments share
    "original": """
        from upath import UPath
        learning_rate = 1e-6
        batch_size = 1
        epochs = 1000
        iterations_per_epoch = 1000
        max_grad_norm = 100
        validation_time_limit = 60
        """,
    "shared_imported": """
        from shared import classes, random_seed, spatial_transforms, use_mutual_exclusion
        from shared import force_all_classes, train_raw_transforms, val_raw_transforms
        """,
    "shared_looked_up": """
        from cellmap_segmentation_challenge.utils import load_safe_config
        shared = load_safe_config(UPath(__file__).parent / "shared.py", force_safe=False)
        classes = shared.classes
        random_seed = shared.random_seed
        use_mutual_exclusion = shared.use_mutual_exclusion
        force_all_classes = shared.force_all_classes
        spatial_transforms = shared.spatial_transforms
        train_raw_value_transforms = shared.train_raw_transforms
        val_raw_value_transforms = shared.val_raw_transforms
        target_value_transforms = shared.target_value_transforms
        data_base_path = "../data"
        """,
    "nothing_shared": """
        import os
        import torch
        import torchvision.transforms.v2 as T
        from cellmap_data.transforms.augment import NaNtoNum, Normalize, RandomContrast
        from cellmap_data.transforms.augment import Binarize, GaussianNoise, RandomGamma
        from cellmap_segmentation_challenge.utils import get_tested_classes
        classes = get_tested_classes()
        random_seed = getattr(os.environ, "SEED", 42)
        use_mutual_exclusion = True
        force_all_classes = "validation"
        spatial_transforms = {"mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.1}}}
        train_raw_value_transforms = T.Compose([
            Normalize(), T.ToDtype(torch.float, scale=True), RandomContrast((0.9, 1.1)),
            RandomGamma((0.9, 1.1)), GaussianNoise(std=0.01), NaNtoNum({"nan": 0}),
        ])
        val_raw_value_transforms = T.Compose(
            [Normalize(), T.ToDtype(torch.float, scale=True), NaNtoNum({"nan": 0})]
        )
        target_value_transforms = T.Compose([T.ToDtype(torch.float), Binarize()])
        data_base_path = UPath("../data").path
        """,
    # where things are and from what a run goes on
    "places": """
        load_model = "latest"
        logs_save_path = UPath("tensorboard/{model_name}").path
        model_save_path = UPath("checkpoints/{model_name}_{epoch}.pth").path
        datasplit_path = "datasplit.csv"
        """,
    "places_as_text": """
        load_model = "best"
        logs_save_path = "tensorboard/{model_name}"
        model_save_path = "checkpoints/{model_name}_{epoch}.pth"
        datasplit_path = "datasplit.csv"
        """,
    "places_alone": """
        logs_save_path = UPath("tensorboard/{model_name}").path
        model_save_path = UPath("checkpoints/{model_name}_{epoch}.pth").path
        datasplit_path = "datasplit.csv"
        """,
    # turning
    "turn_2d": """
        spatial_transforms = {
            "mirror": {"axes": {"x": 0.5, "y": 0.5}},
            "transpose": {"axes": ["x", "y"]},
            "rotate": {"axes": {"x": [-180, 180], "y": [-180, 180]}},
        }
        """,
    "turn_3d": """
        spatial_transforms = {
            "mirror": {"axes": {"x": 0.5, "y": 0.5, "z": 0.1}},
            "transpose": {"axes": ["x", "y", "z"]},
            "rotate": {"axes": {"x": [-180, 180], "y": [-180, 180], "z": [-180, 180]}},
        }
        """,
    # limits, and which data
    "limit": "validation_time_limit = 30",
    "no_limit": "validation_time_limit = None",
    "batch_limit": "validation_batch_limit = 10",
    "no_batch_limit": "validation_batch_limit = None",
    "clipped": "max_grad_norm = 1.0",
    "not_clipped": "max_grad_norm = None",
    "accumulates": "gradient_accumulation_steps = 2",
    "weighted": "weighted_sampler = True",
    "without_weights": "weight_loss = False",
    "exclusive": "use_mutual_exclusion = True",
    "forced": "force_all_classes = True",
    "by_scale": "filter_by_scale = True",
    "by_a_scale": "filter_by_scale = [8, 8, 8]",
    "bucket": "use_s3 = True",
    "no_bucket": "use_s3 = False",
    "where": 'data_base_path = "../data"',
    # optimisers, schedulers, losses
    "radam": """
        import torch
        optimizer = torch.optim.RAdam(
            model.parameters(), lr=learning_rate, decoupled_weight_decay=True
        )
        """,
    "adamw_with_warmup": """
        import torch
        warmup_steps = 2
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
        rising = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=warmup_steps)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs - warmup_steps)
        scheduler = torch.optim.lr_scheduler.SequentialLR(
            optimizer, [rising, falling], [warmup_steps]
        )
        """,
    "stepped": """
        import torch
        scheduler = torch.optim.lr_scheduler.StepLR
        scheduler_kwargs = {"step_size": 100, "gamma": 0.5}
        """,
    "cosine": """
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR
        scheduler_kwargs = {"T_max": epochs}
        """,
    "bce": """
        import torch
        criterion = torch.nn.BCEWithLogitsLoss
        criterion_kwargs = {"pos_weight": torch.ones(len(classes), 1, 1, 1)}
        """,
    "dice": """
        import monai
        criterion = monai.losses.DiceLoss
        criterion_kwargs = {"sigmoid": True}
        """,
    # of other groups
    "swin": """
        from cellmap_segmentation_challenge.models import SwinTransformer
        from cellmap_segmentation_challenge.models import load_best_val, load_latest
        input_array_info = {"shape": (1, 64, 64), "scale": (8, 4, 4)}
        target_array_info = input_array_info
        model_name = "swin"
        model_to_load = "swin"
        model = SwinTransformer(
            patch_size=[2, 2], embed_dim=12, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2],
            window_size=[4, 4], num_classes=len(classes), ndims=2,
        )
        load_latest(f"checkpoints/{model_name}_{{epoch}}.pth", model)
        load_best_val(f"tensorboard/{model_name}", f"checkpoints/{model_name}_{{epoch}}.pth", model)
        """,
    "network_of_their_own": """
        import torch

        class Double(torch.nn.Module):
            def __init__(self, channels):
                super().__init__()
                self.first = torch.nn.Conv3d(1, channels, 3, padding=1)
                self.norm = torch.nn.BatchNorm3d(channels)
                self.last = torch.nn.Conv3d(channels, len(classes), 1)

            def forward(self, raw):
                return self.last(torch.relu(self.norm(self.first(raw))))

        model_name = "double"
        model_to_load = model_name
        model = torch.nn.DataParallel(Double(8)) if torch.cuda.device_count() > 1 else Double(8)
        """,
    "loaders_of_their_own": """
        from cellmap_segmentation_challenge import CellMapLossWrapper, get_dataloader
        from cellmap_segmentation_challenge.utils import make_datasplit_csv

        def loaders(device="cuda"):
            return get_dataloader("datasplit.csv", classes, batch_size, device=device)

        loss_class = CellMapLossWrapper
        """,
    "split_written": """
        from pathlib import Path
        from cellmap_segmentation_challenge.utils import make_datasplit_csv
        if not Path("datasplit.csv").exists():
            make_datasplit_csv(classes=classes, csv_path="datasplit.csv", validation_prob=0.2)
        """,
    "machine": """
        dataloader_kwargs = {"num_workers": 0, "pin_memory": True, "persistent_workers": False}
        use_mixed_precision = False
        n_gpus = 1
        device = None
        """,
    "device": """
        import torch
        device = "cuda" if torch.cuda.is_available() else "cpu"
        debug_memory = False
        notes = ["third try", {"helper": 1}]
        """,
    "own_transforms": """
        import torch
        import torchvision.transforms.v2 as T
        from cellmap_data.transforms.augment import GaussianNoise, NaNtoNum
        train_raw_value_transforms = T.Compose(
            [T.ToDtype(torch.float, scale=True), GaussianNoise(0, 0.05), T.RandomErasing(p=0.2)]
        )
        val_raw_value_transforms = T.Compose(
            [T.ToDtype(torch.float, scale=True), NaNtoNum({"nan": 0})]
        )
        """,
}
"""Lines by what they are about."""

_2D = ("example", "slice", "seed_of_environment")
_3D = ("example", "cube", "seed_of_environment")
_SETUP = ("original", "shared_imported", "cosem", "to_load_is_name", "places")
_UNET = ("original", "shared_imported", "leibnetz", "to_load_is_name", "places")
_ALONE = ("original", "nothing_shared", "to_load_is_name", "places_as_text")
_LOOKED_UP = ("original", "shared_looked_up", "to_load_is_name", "places")

ROWS: dict[str, tuple[str, ...]] = {
    # the toolbox's 2-D example
    "train_2d_01": (*_2D, "two", "unet_2d_alone", "places_alone"),
    "train_2d_02": (*_2D, "tested", "unet_2d", "places", "turn_2d"),
    "train_2d_03": (*_2D, "tested", "unet_2d", "places_as_text", "turn_2d", "batch_limit"),
    "train_2d_04": ("example", "slice", "seed", "two", "resnet_2d", "places", "turn_2d"),
    "train_2d_05": (*_2D, "two", "unet_2d", "places", "turn_2d", "limit"),
    "train_2d_06": (*_2D, "two", "either_2d", "places", "turn_2d", "limit", "by_scale"),
    "train_2d_07": (*_2D, "tested", "unet_2d", "places", "turn_2d", "limit", "by_scale"),
    "train_2d_08": ("example", "one_info", "seed", "two", "resnet_2d", "places", "turn_2d"),
    "train_2d_09": (*_2D, "two", "unet_2d", "places", "turn_2d", "no_limit", "weighted"),
    "train_2d_10": ("example", "flat_voxels", "seed", "two", "unet_2d", "places", "turn_2d"),
    "train_2d_11": (*_2D, "two", "unet_2d", "places", "turn_2d", "limit", "exclusive"),
    "train_2d_12": (*_2D, "two", "unet_2d", "places", "turn_2d", "limit", "radam", "cosine"),
    # its 3-D example
    "train_3d_01": (*_3D, "two", "resnet_3d_alone", "places"),
    "train_3d_02": (*_3D, "tested", "resnet_3d", "places", "turn_3d"),
    "train_3d_03": (*_3D, "tested", "unet_3d", "places_as_text", "turn_3d", "batch_limit"),
    "train_3d_04": ("example", "cube", "seed", "two", "unet_3d", "places", "turn_3d"),
    "train_3d_05": (*_3D, "two", "resnet_3d", "places", "turn_3d", "limit", "by_scale"),
    "train_3d_06": (*_3D, "two", "unet_3d", "places", "turn_3d", "limit", "by_a_scale"),
    "train_3d_07": ("example", "cube_of_64", "seed", "two", "vit", "places", "turn_3d", "limit"),
    "train_3d_08": (*_3D, "two", "unet_3d", "places", "turn_3d", "no_limit", "by_scale"),
    "train_3d_09": (*_3D, "two", "resnet_3d", "places", "turn_3d", "limit", "by_scale"),
    "train_3d_10": (*_3D, "two", "unet_3d", "places", "turn_3d", "limit", "by_scale", "bucket"),
    "train_3d_11": (*_3D, "two", "unet_3d", "places", "turn_3d", "limit", "by_scale", "clipped"),
    "train_3d_12": (*_3D, "two", "unet_3d", "places", "turn_3d", "limit", "by_scale", "stepped"),
    # the original experiments: over a network of COSEM
    "train_setup04_01": (*_ALONE[:2], "cosem", *_ALONE[2:]),
    "train_setup04_02": (*_ALONE[:2], "cosem_whose_head_pads", *_ALONE[2:]),
    "train_setup04_03": (*_LOOKED_UP[:2], "cosem", *_LOOKED_UP[2:]),
    "train_setup04_04": (*_LOOKED_UP[:2], "cosem_whose_head_pads", *_LOOKED_UP[2:]),
    "train_setup04_05": _SETUP,
    "train_setup04_06": (*_SETUP[:2], "cosem_whose_head_pads", *_SETUP[3:]),
    "train_setup04_07": (*_SETUP, "not_clipped"),
    # and of LeibNetz, at three voxel sizes
    "train_unet_01": (*_ALONE[:2], "leibnetz", *_ALONE[2:]),
    "train_unet_02": (*_ALONE[:2], "leibnetz_of_kwargs", *_ALONE[2:]),
    "train_unet_03": (*_ALONE[:2], "leibnetz_grown", *_ALONE[2:]),
    "train_unet_04": (*_ALONE[:2], "leibnetz", *_ALONE[2:], "accumulates"),
    "train_unet_05": (*_ALONE[:2], "leibnetz_of_kwargs", *_ALONE[2:], "no_limit"),
    "train_unet_06": (*_LOOKED_UP[:2], "leibnetz", *_LOOKED_UP[2:]),
    "train_unet_07": (*_LOOKED_UP[:2], "leibnetz_of_kwargs", *_LOOKED_UP[2:]),
    "train_unet_08": (*_LOOKED_UP[:2], "leibnetz_grown", *_LOOKED_UP[2:]),
    "train_unet_09": (*_LOOKED_UP[:2], "leibnetz", *_LOOKED_UP[2:], "not_clipped"),
    "train_unet_10": (*_LOOKED_UP[:2], "leibnetz_of_kwargs", *_LOOKED_UP[2:], "no_limit"),
    "train_unet_11": (*_LOOKED_UP[:2], "leibnetz_grown", *_LOOKED_UP[2:], "accumulates"),
    "train_unet_12": _UNET,
    "train_unet_13": (*_UNET[:2], "leibnetz_of_kwargs", *_UNET[3:]),
    "train_unet_14": (*_UNET[:2], "leibnetz_grown", *_UNET[3:]),
    "train_unet_15": (*_UNET, "no_limit"),
    "train_unet_16": (*_UNET[:2], "leibnetz_of_kwargs", *_UNET[3:], "not_clipped"),
    "train_unet_17": (*_UNET[:4], "places_as_text"),
    "train_unet_18": (*_UNET[:2], "leibnetz_of_kwargs", "to_load_is_name", "places_as_text"),
    "train_unet_19": (*_UNET[:2], "leibnetz_grown", "to_load_is_name", "places_as_text"),
    "train_unet_20": (*_UNET, "no_batch_limit"),
    "train_unet_21": (*_UNET, "accumulates"),
    # other groups
    "train_group_1": ("example", "seed", "two", "swin", "places_alone", "where", "no_bucket"),
    "train_group_2": (
        *("example", "cube", "seed", "two", "network_of_their_own", "loaders_of_their_own"),
        *("places", "turn_3d", "device", "without_weights"),
    ),
    "train_group_3": (*_3D, "tested", "resnet_3d_alone", "places", "turn_3d", "bce", "forced"),
    "train_group_4": (
        *("example", "cube", "seed", "some_tested", "resnet_3d_alone", "places", "turn_3d"),
        *("dice", "without_weights", "clipped", "machine"),
    ),
    "train_group_5": (
        *(*_2D, "of_their_own", "unet_2d_alone", "places", "turn_2d", "split_written"),
        *("forced", "weighted", "limit"),
    ),
    "train_group_6": (
        *("example", "cube", "seed_that_is_text", "two", "resnet_3d_alone", "places"),
        *("turn_3d", "adamw_with_warmup", "own_transforms", "clipped"),
    ),
    "train_group_7": (*_2D, "two", "unet_2d_alone", "places", "turn_2d", "radam", "limit"),
}
"""The parts of each configuration."""

COUNTS = {
    "model": 59,
    "logs_save_path": 59,
    "model_save_path": 59,
    "datasplit_path": 59,
    "validation_time_limit": 44,
    "max_grad_norm": 31,
    "force_all_classes": 17,
    "data_base_path": 16,
    "use_mutual_exclusion": 16,
    "train_raw_value_transforms": 16,
    "filter_by_scale": 9,
    "validation_batch_limit": 3,
    "gradient_accumulation_steps": 3,
    "optimizer": 3,
    "scheduler": 3,
    "scheduler_kwargs": 2,
    "criterion": 2,
    "criterion_kwargs": 2,
    "weighted_sampler": 2,
    "weight_loss": 2,
    "use_s3": 2,
}
"""How many of the public files assign a name."""

ENDS = """
if __name__ == "__main__":
    from cellmap_segmentation_challenge import train

    train(__file__)
"""


def text_of(name: str) -> str:
    """The content of a configuration."""
    parts = [textwrap.dedent(PARTS[part]).strip() for part in ROWS[name]]
    return "\n".join([*parts, ENDS])


def assigned(name: str) -> set[str]:
    """The names that a configuration assigns."""
    nodes = ast.walk(ast.parse(text_of(name)))
    return {node.id for node in nodes if isinstance(node, ast.Name) and _is_stored(node)}


def _is_stored(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Store)
