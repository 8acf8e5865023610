"""Losses: those that an experiment imports from here, and how a run uses them.

* what experiments import: `losses` of channels with a sigmoid each, `categorical` of a softmax,
  `frequency` with weights that follow how often a class is annotated; `palette_sums` adds up
* of a run: `criterion` calls a loss of any library on known voxels, `own_loss` makes and tries
  that of the setting `criterion`, `heads` the sum over several, `priors` how often a channel is
  positive, for its weight and the first prediction
"""

from common.train.losses.categorical import (
    categorical_dice_loss,
    categorical_focal_loss,
    dice_focal,
)
from common.train.losses.frequency import FrequencyWeightedBCE
from common.train.losses.losses import (
    WeightedSum,
    bce_dice,
    categorical_cross_entropy,
    class_weighted_bce,
    dice_loss,
    focal_loss,
    tversky_loss,
    weighted_bce,
    weighted_sum,
)

__all__ = [
    "FrequencyWeightedBCE",
    "WeightedSum",
    "bce_dice",
    "categorical_cross_entropy",
    "categorical_dice_loss",
    "categorical_focal_loss",
    "class_weighted_bce",
    "dice_focal",
    "dice_loss",
    "focal_loss",
    "tversky_loss",
    "weighted_bce",
    "weighted_sum",
]
