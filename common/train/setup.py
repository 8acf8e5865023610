"""What a run is built from: device, loss, network, crops and batches, made once before a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from common import runtime
from common.config.code import network_code
from common.config.heads import exclusive_channels
from common.config.idle import idle_settings
from common.config.settings import TrainConfig
from common.data.samples import augment, loaders
from common.data.samples.batches import Batch, Batches, training_batches, validation_batches
from common.data.samples.loaders import Data
from common.errors import UserError
from common.model import activation
from common.model.build import build_model
from common.model.compiling import try_compiling
from common.model.forward import ForwardPass, in_float32
from common.model.output_layers import calibrate_output, output_layers, start_output_at
from common.model.passing import in_mode, in_training_mode
from common.model.shapes import OnMeta, meta_patches, parameters_of_outputs
from common.talk import count, some
from common.train import metrics
from common.train.checkpointing import checkpoint, resume
from common.train.losses import criterion, heads
from common.train.losses.criterion import Criterion
from common.train.losses.priors import measure
from common.train.optimising import average, schedule
from common.train.processes import ranks, together
from common.train.recording import previews, tracking
from common.train.state import Method, State
from common.train.validation import ScoreCrops, Validation

Score = Callable[[TrainConfig], ScoreCrops | None]
"""Gives what scores the validation crops of a run: `common.score.whole_crops.of_run`.

It predicts, processes and scores, which the rooms after this one do: it is handed in from above.
"""


@dataclass(frozen=True)
class Setup:
    """Everything that does not change during a run."""

    config: TrainConfig
    device: torch.device
    data: Data
    method: Method
    training: Batches
    validation: Validation | None
    """None if the datasplit has no validation crop."""
    unusual: tuple[str, ...] = ()
    """What is unusual about the settings, as sentences."""
    replay: str = ""
    """The command that looks at steps that were skipped."""

    def about(self) -> dict[str, str]:
        """Return what is recorded about the run in addition to versions and commit.

        Also how each raw volume is normalised, and what further channels are.
        """
        texts = {
            "device": str(self.device),
            "precision": self.method.forward.precision.name,
            "split_hash": self.data.split_hash,
        }
        for name, scaling in self.data.scalings.items():
            texts[f"raw {name}"] = str(scaling)
        for name, crops in loaders.input_channels(self.config, self.data).items():
            networks = {about.get("network", "")[:12] for about in crops.values()}
            by = some(sorted(networks - {""})) or "no network on record"
            texts[f"channel {name}"] = f"{count(len(crops), 'crop')}, predicted by {by}"
        return texts

    def save(self, state: State, name: str = "latest") -> None:
        """Write a checkpoint of the run, "latest" or "best"."""
        checkpoint.save_state(self.config, state, self.data.split_hash, name)

    def training_from(self, iteration: int) -> Iterator[Batch]:
        """Iterate over the training batches of the run after `iteration`.

        They depend on the settings and the seed only, not on where earlier calls stopped. Of
        several processes each gets its part of every batch.
        """
        config = self.config
        per_iteration = config.batch_size * config.gradient_accumulation_steps
        last = config.epochs * config.iterations_per_epoch
        return self.training.part_of_each(
            iteration * per_iteration, last * per_iteration, part=ranks.rank(), parts=ranks.size()
        )


def prepare(config: TrainConfig, score: Score | None = None) -> tuple[Setup, State]:
    """Build everything that a run needs, and its state before the first step.

    What the user wrote is tried out first: mistakes are told before minutes go into decoding crops.
    """
    device = connect(config)
    precision = runtime.pick_precision(config.precision, device)
    try_out_own(config, device)
    loss, about_loss = build_loss(config, device)
    score_crops = prepare_score(config, score)
    model, about_network = build_network(config, device)

    begun_with = partial(resume.split_hash_of, config)
    with ranks.first_on_this_machine():  # the others find decoded crops
        data = loaders.open_data(config, resume.raw_scalings(config), begun_with)
    ranks.wait_for_all()  # one machine may have decoded hours before another
    frequencies = measure(config, data, device)
    weights = frequencies.weights(config, loss)
    if config.init_output_to_prior:
        start_at_prior(config, model, frequencies.prior(config, weights), data)
    forward, about_compiling = forward_pass(config, model, precision, device)

    setup = Setup(
        config=config,
        device=device,
        data=data,
        method=method_of(config, loss, forward, torch.from_numpy(weights).to(device)),
        training=training_batches(config, data, device),
        validation=build_validation(config, data, device, score_crops),
        unusual=(
            *idle_settings(config),
            *about_loss,
            *about_network,
            *frequencies.notices(config),
            *about_compiling,
        ),
    )
    state = first_state(config, model, precision, data=data, loss=loss)
    if ranks.rank():  # the weights are drawn: from here on each has random numbers of its own
        runtime.seed_process(config.random_seed, ranks.rank(), state.iteration)
    return setup, state


def connect(config: TrainConfig) -> torch.device:
    """Return the device of this process, which talks to the others of the run from now on.

    Raises UserError for a device that is not there, and a batch that cannot be shared out.
    """
    ranks.share_of(config.batch_size)
    device = runtime.pick_device(ranks.own_device(config.device))
    ranks.connect(device)
    return device


def try_out_own(config: TrainConfig, device: torch.device) -> None:
    """Call the user's own augmentation and metrics once, and ask for packages that are optional."""
    try:
        tracking.refuse_missing(config)
        if config.augment:
            augment.check_own(config.augment, config.input_array_info["shape"], device)
        metrics.try_out(config.metrics, len(config.channels))
    except UserError as error:
        raise UserError(f"{config.folder}: {error}") from error
    if config.preview_tiff:
        previews.import_tifffile()  # before an epoch is trained for it


def build_loss(config: TrainConfig, device: torch.device) -> tuple[Criterion, list[str]]:
    """Return the loss, tried out, and what is unusual about it, as sentences."""
    runtime.seed_everything(config.random_seed)  # a loss may draw weights of its own
    loss = heads.build(config, device)
    return loss, heads.unusual(loss, config, device)


def build_network(config: TrainConfig, device: torch.device) -> tuple[nn.Module, list[str]]:
    """Return the network with new weights, and what is unusual about it and its schedule."""
    runtime.seed_everything(config.random_seed)  # again: trying out a loss may draw numbers
    model = together.share_statistics(build_model(config, device), device)
    network_code(config)  # before hours in which the files may be edited: see there
    unusual = schedule.try_out(config, model)
    exact = in_float32(config.channels_last)
    shape = config.input_array_info["shape"]
    unusual.append(activation.notice(model, exact.outputs, shape, config.in_channels))
    unusual += single_patches(config, model)
    return model, [sentence for sentence in unusual if sentence]


def method_of(
    config: TrainConfig, loss: Criterion, forward: ForwardPass, pos_weight: torch.Tensor
) -> Method:
    """Return how a step is taken. pos_weight: (channels,), of positive voxels in the loss."""
    return Method(
        criterion=loss,
        pos_weight=pos_weight if config.weight_loss else None,
        forward=forward,
        max_grad_norm=config.max_grad_norm,
        accumulation=config.gradient_accumulation_steps,
        warmup=config.warmup_iterations,
        schedules_iterations=config.scheduler_step == "iteration",
    )


def forward_pass(
    config: TrainConfig, model: nn.Module, precision: runtime.Precision, device: torch.device
) -> tuple[ForwardPass, list[str]]:
    """Return how raw goes through the network, and what is to be said about it."""
    forward = ForwardPass(precision, config.channels_last, exclusive=exclusive_channels(config))
    batch_size = ranks.share_of(config.batch_size)
    shape = config.input_array_info["shape"]
    raw = torch.empty(batch_size, config.in_channels, *shape, device=device)
    sentence = ""
    if config.compile:
        forward, sentence = try_compiling(forward, model, raw.zero_())
    forward = together.with_gradients_of_all(forward, model, raw)
    return forward, [sentence] if sentence else []


def single_patches(config: TrainConfig, model: nn.Module) -> list[str]:
    """Return a sentence about batch normalisation over batches of one patch, if there is any.

    Raises UserError where the patch is pooled to one voxel, over which there is no statistic.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if config.batch_size > 1 or not layers:
        return []
    advice = "write batch_size = 2 or more, of which 8 is enough, or another norm in model_kwargs"
    exact = in_float32(config.channels_last)
    patch = meta_patches(config.input_array_info["shape"], config.in_channels)
    try:
        with in_mode(model, training=True):
            exact.outputs(OnMeta(model), patch)
    except Exception as error:  # a network that needs values raises whatever it likes
        if "more than 1 value per channel" in str(error):
            raise UserError(
                f"{config.folder}: batch_size = 1, and the network normalises a batch where a patch"
                f" is pooled to one voxel; {advice}"
            ) from error
    return [
        "batch_size = 1 with batch normalisation: what is learnt on the statistics of single "
        f"patches is validated and predicted with their running means, which differ; {advice}"
    ]


def start_at_prior(config: TrainConfig, model: nn.Module, prior: np.ndarray, data: Data) -> None:
    """Initialise every output of a network so that its logits begin at `prior`, (channels,)."""
    exact = in_float32(config.channels_last)
    shape = config.input_array_info["shape"]
    outputs = parameters_of_outputs(model, exact.outputs, shape, config.in_channels)
    ends = output_layers(model, exact.outputs, shape, config.in_channels)
    if not config.init_logit_rms:
        start_output_at(model, prior, outputs, ends=ends)
        return
    start_output_at(model, prior, outputs, factor=1.0, ends=ends)
    device = next(model.parameters()).device
    # its samples are the first of training, whoever reads them
    here = dataclasses.replace(config, num_workers=0)
    first = next(training_batches(here, data, device).between(0, config.batch_size))

    def measure() -> list[torch.Tensor]:
        # running statistics and random numbers stay as they are
        forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with forked, in_training_mode(model):
            return exact.outputs(model, first.raw)

    rms = config.init_logit_rms
    calibrate_output(model, prior, outputs, measure=measure, rms=rms, ends=ends)


def first_state(
    config: TrainConfig,
    model: nn.Module,
    precision: runtime.Precision,
    *,
    data: Data,
    loss: Criterion,
) -> State:
    """Return the state of a new run: the model, a new optimiser and scheduler, iteration 0.

    The average of the weights, if the run keeps one, begins with those of the model.
    """
    is_validated = bool(data.validation)
    optimizer = schedule.first_optimizer(config, model)
    scheduler = schedule.first_scheduler(config, optimizer, validated=is_validated)
    schedule.refuse_other_mode(config, scheduler, is_validated)
    return State(
        model,
        optimizer,
        scheduler,
        precision.scaler(),
        raw_scalings={name: scaling.record() for name, scaling in data.scalings.items()},
        input_channels=loaders.input_channels(config, data),
        labels=loaders.labels_of(data),
        raws=loaders.raws_of(data),
        criterion=criterion.module_of(loss),
        ema=average.new_average(config, model),
    )


def prepare_score(config: TrainConfig, score: Score | None) -> ScoreCrops | None:
    """Return what scores whole crops; None where they are not to be scored."""
    if not config.validation_score_every:
        return None
    if score is None:
        raise UserError(
            f"{config.folder}: validation_score_every = {config.validation_score_every}, and this "
            "call has nothing to score with; give train(..., score=common.score.whole_crops.of_run)"
        )
    return score(config)


def build_validation(
    config: TrainConfig, data: Data, device: torch.device, score: ScoreCrops | None = None
) -> Validation | None:
    """Return what every validation runs on; None if the datasplit has no validation crop."""
    batches = validation_batches(config, data, device)
    if batches is None:
        return None
    return Validation(config, batches, partial(score, data.scalings) if score else None)
