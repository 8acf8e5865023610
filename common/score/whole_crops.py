"""The challenge's score of whole validation crops in the middle of a training.

Each crop is predicted, processed and scored by the functions of `predict`, `process` and `tune`, in
a folder of the run that is removed afterwards. So the best checkpoint is chosen by what will be
scored, with two exceptions: a class with too many objects to be scored counts as missing, because
the organisers' number would give it 1; and a class without a positive voxel in any crop is left
out.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from common.config.derived import channel_classes
from common.config.instance_options import takes_channels
from common.config.settings import TrainConfig
from common.data.crops.normalize import Scalings
from common.data.splits import regions, split
from common.data.splits.regions import Region
from common.data.volumes.placement import is_same_size
from common.data.volumes.records import PredictionRecord
from common.errors import UserError
from common.infer.networks.network import Network, network_of
from common.infer.predicting.output import Output
from common.infer.predicting.sizes import make_plan
from common.infer.predicting.work import begin, compute_and_write, finish
from common.infer.processing.recipe import Recipe, read_recipe
from common.model.forward import ForwardPass
from common.score import challenge
from common.score.trials import Trial, run_trial
from common.stopping import ShouldStop
from common.talk import nm, note, some
from common.train.processes import ranks
from common.train.validation import WholeCropScore

FOLDER = "validation_score"
"""Name of the folder, in the logs of a run, that holds crops while they are scored."""


@dataclass(frozen=True)
class WholeCrops:
    """The validation crops of a run, and how they are processed."""

    config: TrainConfig
    recipe: Recipe
    crops: tuple[tuple[Region, tuple[str, ...]], ...]
    """Each crop with the classes that are scored in it."""
    block: int
    """Edge of a predicted block in voxels."""

    def __call__(
        self, scalings: Scalings, model: nn.Module, forward: ForwardPass, stopped: ShouldStop
    ) -> WholeCropScore | None:
        """Score a network; return None if `stopped()` is true before all is done.

        Args:
            scalings: how the raw of each volume is normalised in this run.
            model: in eval mode, on its device.
            forward: how raw goes through it.
            stopped: asked between blocks.
        """
        folder = self.config.path("logs_save_path") / FOLDER
        with ranks.main_first():
            if ranks.is_main():
                shutil.rmtree(folder, ignore_errors=True)  # of a call that was killed
            folder.mkdir(parents=True, exist_ok=True)
        try:
            network = network_of(
                self.config, model, forward, record=PredictionRecord(), scalings=scalings
            )
            counted = self._own_counts(network, folder, ranks.here(stopped))
            ranks.wait_for_all()  # crops differ in size
        finally:
            if ranks.is_main():
                shutil.rmtree(folder, ignore_errors=True)
        if stopped():
            return None
        every: dict[int, list[Counted]] = {}
        for of_process in ranks.gathered(counted):
            every |= of_process
        in_order: list[Counted] = []
        for number in sorted(every):
            in_order += every[number]
        return combined(self.config.classes, in_order)

    def _own_counts(
        self, network: Network, folder: Path, stopped: ShouldStop
    ) -> dict[int, list[Counted]]:
        """Return the counts of the crops of this process by number; of some of them if stopped."""
        counted = {}
        for number in range(ranks.rank(), len(self.crops), ranks.size()):
            region, names = self.crops[number]
            counted[number] = self._counts(network, region, names, folder=folder, stopped=stopped)
            if stopped():
                break
            # so that one crop at a time is on disk
            shutil.rmtree(region.folder(folder))
        return counted

    def _predicted(self, names: Sequence[str]) -> list[str]:
        """Return the channels to predict: classes, and those that instance_func asks for."""
        function = self.recipe.settings.instance_func
        if function is None or not takes_channels(function):
            return list(names)
        made_of = channel_classes(self.config.classes, self.config.derived)
        return [name for name in self.config.channels if made_of[name] in names]

    def _counts(
        self,
        network: Network,
        region: Region,
        names: Sequence[str],
        *,
        folder: Path,
        stopped: ShouldStop,
    ) -> list[Counted]:
        """Predict a crop into a folder and count each class in it; return [] if stopped."""
        output = Output(block=self.block)
        plan = make_plan(network, self.config, region, output)
        of_crop = region.folder(folder)
        of_crop.parent.mkdir(parents=True, exist_ok=True)
        work = begin(network, region, plan, output, folder=of_crop, classes=self._predicted(names))
        compute_and_write(work, stopped)
        if stopped():
            return []
        finish(work)
        counted = []
        for name in names:
            if stopped():
                return []
            assert region.truth is not None
            trial = Trial(
                config_path=self.recipe.path,
                code=self.recipe.code,
                name=name,
                predicted=of_crop / name,
                truth=region.truth_of(name),
                thresholds=(self.recipe.threshold(name),),
                crop=str(region),
            )
            result = run_trial(trial)
            counted.append(Counted(name, result.is_positive, result.counts[0]))
        return counted


@dataclass(frozen=True)
class Counted:
    """The counts of one class in one crop."""

    name: str
    is_positive: bool
    """Whether the crop has a voxel of the class."""
    counts: challenge.Counts


def of_run(config: TrainConfig) -> WholeCrops | None:
    """Return what scores the validation crops of a run; None if no crop validates.

    Raises FileNotFoundError without a process_config.py, UserError if none of its classes is
    annotated in a validation crop, or if it wants voxels of another size than the network gives.
    """
    recipe = read_recipe(config.path("process_config_path"))
    _refuse_other_voxels(config, recipe)
    chosen = []
    unscored: set[str] = set()
    rows = split.read_datasplit(config.path("datasplit_path"), config.path("data_path"))
    if not any(row.usage == "validate" for row in rows):
        return None
    validating = regions.find(config, "validate")
    for region in validating:
        annotated = [name for name in config.classes if name in region.classes]
        unscored.update(name for name in annotated if name not in recipe.classes)
        names = [name for name in annotated if name in recipe.classes]
        if names:
            chosen.append((region, tuple(names)))
    if not chosen:
        raise UserError(
            f"{recipe.path}: none of its classes is annotated in a crop that validates, so that "
            "validation_score_every has nothing to score; add them, or set it to 0"
        )
    if unscored:
        note(
            f"{recipe.path}: {some(sorted(unscored))} is not among its classes, and left out of "
            "the scores of validation_score_every"
        )
    return WholeCrops(config, recipe, tuple(chosen), block_of(config))


def _refuse_other_voxels(config: TrainConfig, recipe: Recipe) -> None:
    """Raise UserError where process_config.py wants other voxels than predictions would have."""
    wanted = recipe.settings.input_array_info.get("scale")
    given = config.target_array_info["scale"]
    if wanted and not is_same_size(wanted, given):
        raise UserError(
            f"{recipe.path}: input_array_info says {nm(wanted)} nm, and the network gives "
            f"{nm(given)} nm, which validation_score_every scores; write that scale there, leave "
            "it out, or set validation_score_every = 0"
        )


def block_of(config: TrainConfig) -> int:
    """Return the edge of predicted blocks (voxels), which with context are about a training batch.

    For a batch there is memory. The free memory is not asked: it differs from run to run, and with
    it would the last bits of what is predicted.
    """
    taken = np.array(config.input_array_info["shape"])
    scales = np.divide(config.input_array_info["scale"], config.target_array_info["scale"])
    given = np.array(config.target_array_info["shape"])
    context = np.max(taken * scales - given)
    edge = round((config.batch_size * np.prod(taken * scales)) ** (1 / 3) - context)
    return max(int(edge), int(given.min()), 1)


def combined(classes: Sequence[str], counted: Sequence[Counted]) -> WholeCropScore:
    """Return the challenge's score over all crops and of each class; NaN for a class in no crop."""
    positive = {volume.name for volume in counted if volume.is_positive}
    present = [volume for volume in counted if volume.name in positive]
    score = challenge.combine((volume.name, volume.counts) for volume in present)
    per_class = np.full(len(classes), np.nan)
    for name, of_class in score.label_scores.items():
        per_class[classes.index(name)] = of_class.score
    # of one kind of classes alone there is no geometric mean of both
    known = [score.overall_score, score.overall_instance_score, score.overall_semantic_score]
    overall = next((value for value in known if np.isfinite(value)), np.nan)
    return WholeCropScore(overall, per_class)
