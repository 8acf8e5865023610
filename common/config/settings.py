"""Every setting: its sentence, unit, default and check, once."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple, cast

from common import classes as class_table
from common.config.as_text import as_text
from common.config.derived import channel_names
from common.config.kinds import (
    BelowOne,
    Count,
    CountOrNone,
    Fraction,
    Halo,
    LowHigh,
    NotNegative,
    OfRaw,
    Passes,
    Positive,
    RawRange,
    SectionsBeside,
    Seed,
    Shown,
    Sinks,
    Time,
    WorkerCount,
    one_of,
)
from common.files import REPOSITORY


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one training run, checked; `load_config` reads them.

    The table of settings in the documents is made of this class: the string below a setting is its
    sentence, the annotation its check.
    """

    build_model: Callable
    """`build_model(classes, **model_kwargs)` returns the network; it is called after seeding, with
    the names of all channels: the classes, then those that are derived. The network takes raw
    (B, 1, z, y, x) and returns logits (B, channels, z, y, x). With input_channels build_model gets
    `in_channels`, too, and raw is the first of them."""
    classes: tuple[str, ...]
    """The classes to learn, in the order of the output channels."""
    input_array_info: dict
    """Shape (voxels) and voxel size (nm) of the raw patch, z, y, x: `{"shape": (68, 68, 68),
    "scale": (8, 8, 8)}`; one number stands for three."""
    target_array_info: dict
    """Shape (voxels) and voxel size (nm) of the target patch, z, y, x. It has the same centre as
    the raw patch."""
    input_channels: dict = field(default_factory=dict)
    """`{"mito": "../mito/predictions/mito/seed42/{dataset}.zarr/{crop}/mito"}`: further channels of
    the input, after raw and with its shape and scale: earlier predictions, by the path of their
    volumes; see Give the network earlier predictions. build_model must take `in_channels`."""
    derived: dict = field(default_factory=dict)
    """`{"cell_boundary": boundary("cell", inside=20, outside=20)}`: further channels, made of the
    objects of a class, after those of the classes; see Train on boundaries, affinities and
    distances."""
    softmax: tuple[str, ...] = ()
    """Channels of which exactly one is true of a voxel, such as `["background", "axon", "border"]`:
    they get a softmax, and where several are true the last one counts. The others get a sigmoid
    each."""

    base_experiment_path: str = ""
    """Folder that the relative paths below start from; by default the folder of the config file."""
    model_name: str = ""
    """Name of the model in logs and checkpoints; by default the name of the experiment's folder."""
    run_name: str = "seed{random_seed}"
    """Name of this run under the model; the same name continues the same run."""
    model_kwargs: dict = field(default_factory=dict)
    """Keyword arguments of build_model."""
    load_model: str = "latest"
    """"latest" or "best" continues this run from that checkpoint, or starts it with new weights;
    "scratch" does not continue an existing run but stops; a checkpoint file provides the weights
    that a new run starts from, also a bare state_dict of another trainer."""
    model_save_path: str = "checkpoints/{model_name}/{run_name}"
    """Folder of latest.pt and best.pt."""
    logs_save_path: str = "logs/{model_name}/{run_name}"
    """Folder of the TensorBoard events, history.csv and run.json."""
    predictions_path: str = "predictions/{model_name}/{run_name}"
    """Folder that predict writes to: {dataset}.zarr/{crop}/{class}."""
    predictions_codec: Annotated[str, one_of("zstd", "lz4")] = "zstd"
    """What predict compresses with: "lz4" takes about half the time for 1.3 to 2.2 times the bytes;
    see Benchmarks. A prediction that was begun goes on with its own."""
    processed_path: str = "processed/{model_name}/{run_name}"
    """Folder that process writes to: {dataset}.zarr/{crop}/{class}."""
    results_path: str = "results/{model_name}/{run_name}"
    """Folder of the scores that evaluate writes."""

    process_config_path: str = "process_config.py"
    """File with process_func, which process, tune and evaluate read."""

    data_path: str = "data"
    """Data root, which relative paths in the datasplit start from; itself relative to the
    repository. CELLMAP_DATA and --data take precedence."""
    datasplit_path: str = "datasplit.csv"
    """File that lists the training and validation crops."""
    extra_classes: tuple[str, ...] = ()
    """Class names outside the challenge's table; nothing is inferred about them but by
    class_relations."""
    class_relations: dict = field(default_factory=dict)
    """`{"granule": {"contains": ["granule_mem"], "excludes": ["mito", "er"]}}`: classes outside the
    challenge's table, with other classes that lie in them, and those that never share a voxel with
    them. use_mutual_exclusion and infer_groups go by it. `"granule"` need not stand in
    extra_classes, `"granule_mem"` must; a class of the table may contain others, too: `{"mito":
    {"contains": ["crista"]}}`."""
    cache_path: str = "cache"
    """Folder of decoded crops and pretrained weights, relative to the repository. CELLMAP_CACHE
    takes precedence."""
    cache_gb: Annotated[float, Positive] = 100.0
    """Largest size of the decoded crops on disk, in GB (10^9 bytes). The least recently used crops
    are removed; a run that needs more stops."""
    raw_range: Annotated[tuple[float, ...], RawRange] = ()
    """Raw values (low, high) that become 0 and 1; by default the range of the raw's unsigned
    integer type."""
    raw_normalization: Annotated[str, one_of("range", "percentile", "zscore", "values")] = "range"
    """How volumes that differ in contrast are made alike: "range" leaves raw as raw_range gives it;
    "percentile" makes the percentiles 0.5 and 99.5 of the whole raw volume 0 and 1, and clips;
    "zscore" does that, and the network gets mean 0 and deviation 1. Statistics are measured once in
    a volume, kept with the run, and used by predict. "values" is for networks that were trained on
    raw as it is stored, 0 to 255 of uint8, as by the public toolbox; of raw_range it gives these
    values. Changes of intensity and `augment` work on raw in [0, 1] in any case."""
    raw_sections: Annotated[int, SectionsBeside] = 0
    """Sections on each side, along z, with which every section of raw is averaged: 1 is the mean of
    three. Less noise, and less detail along z. Statistics of raw_normalization are those of the
    means, and predict makes the same ones. 0 leaves raw as it is."""
    num_workers: Annotated[int, WorkerCount] = 2
    """Worker processes that read patches; 0 reads them in the training process. The batches are the
    same for any number."""
    worker_time_limit: Annotated[float, Time] = 300.0
    """Seconds that training waits for the workers' next batch before they are replaced, as those
    are that die: at most 3 times within 1000 batches. 0 waits for ever."""

    use_mutual_exclusion: bool = True
    """True-negative masking: a class that is not annotated counts as negative where a class that
    excludes it is positive."""
    infer_groups: bool = True
    """Infer a class that is not annotated: positive where an annotated part of it is positive,
    negative where all of its parts, or a group that contains it, are negative. Crops that annotate
    parts of a learnt class alone train, too."""
    exclusive_classes: tuple[str, ...] = ()
    """Classes that never share a voxel, beside those that the class table keeps apart: where one is
    positive the others are negative. For classes of your own, `("axon", "border")`."""
    counter_classes: tuple[str, ...] = ()
    """Classes that are not learnt and give counter-examples: where one of them is positive, those
    of classes that it excludes are negative, also in crops that annotate nothing else. Samples that
    are not placed on a positive voxel then lie in any crop. `train --each-class` sets it."""
    selective: bool = False
    """Train only on crops that have a positive voxel of one of the classes."""
    pseudo_weight: Annotated[float, Fraction] = 1.0
    """Weight of labels that `joint init` took from networks: their gradient is multiplied by it;
    0 leaves them out. Annotated labels, and what follows from them, have 1."""
    weighted_sampler: bool = True
    """True draws every class equally often, then a crop that has it; False draws crops by their
    volume."""
    positive_centre_fraction: Annotated[float, Fraction] = 0.5
    """With weighted_sampler: the fraction of samples whose target patch is placed to contain a
    positive voxel of the class drawn. The others lie anywhere in the crop."""
    class_sampling_weights: dict = field(default_factory=dict)
    """`{"mito": 3.0}`: how often weighted_sampler draws a class relative to the others. Default 1;
    0 never draws it."""
    crop_sampling_weights: dict = field(default_factory=dict)
    """`{"jrc_hela-2/*": 2.0}`: how often a crop is drawn relative to others that have the class
    (without weighted_sampler: relative to others of its volume). Keys are patterns of dataset/crop,
    of which the last that matches counts. Default 1."""
    spatial_transforms: dict = field(default_factory=dict)
    """`{"mirror": {"axes": {"x": 0.5}}, "transpose": {"axes": ["x", "y"]}, "rotate": {"axes": {"z":
    [-180, 180]}}}`: the probability of mirroring each axis, the axes to permute, and the range of
    the angle about each axis in degrees."""
    intensity_probability: Annotated[float, Fraction] = 0.5
    """Probability of each of the three intensity changes below, independent of each other."""
    gamma_range: Annotated[tuple[float, ...], LowHigh] = (1.0, 1.0)
    """Range of the exponent applied to raw in [0, 1]."""
    contrast_range: Annotated[tuple[float, ...], LowHigh] = (1.0, 1.0)
    """Range of the factor on the distance of raw from the mean of its patch."""
    noise_std: Annotated[float, OfRaw] = 0.0
    """Standard deviation of Gaussian noise added to raw in [0, 1]."""
    augmentations: dict = field(default_factory=dict)
    """`{"elastic": {"probability": 0.3, "amplitude_nm": 40, "spacing_nm": 200}}`: deformation,
    scaling, blur, lost sections and other kinds, each with its probability, off by default; see Use
    your own augmentation and sampling."""
    augment: Callable | None = None
    """`augment(raw, generator)` returns the changed raw of one training patch, (1, z, y, x) float32
    in [0, 1] on the device; it is called after the changes above. Draw random numbers from the
    torch.Generator, which is seeded for each sample."""

    epochs: Annotated[int, Count] = 1000
    """Number of epochs in total: a finished run that is started again does nothing."""
    iterations_per_epoch: Annotated[int, Count] = 1000
    """Optimiser steps per epoch."""
    batch_size: Annotated[int, Count] = 8
    """Patches per forward pass; of a run of several processes, of all of them together."""
    gradient_accumulation_steps: Annotated[int, Passes] = 1
    """Forward passes per optimiser step; the loss is the mean over the known voxels of all of
    them."""
    learning_rate: Annotated[float, Positive] = 1e-4
    """Learning rate that the optimiser starts with."""
    optimizer: Callable | None = None
    """`optimizer(parameters, lr=, weight_decay=)` returns the optimiser; by default RAdam with
    decoupled weight decay."""
    weight_decay: Annotated[float, NotNegative] = 0.01
    """Decoupled weight decay, applied to weights but not to biases."""
    scheduler: Callable | None = None
    """A class of torch.optim.lr_scheduler, stepped as scheduler_step says; ReduceLROnPlateau gets
    the value of best_metric, or the training loss if no crop validates. A continued run may change
    it."""
    scheduler_kwargs: dict = field(default_factory=dict)
    """Keyword arguments of the scheduler. Its length (T_max, total_steps and the like) counts its
    steps: left out, or written as `epochs`, it is that of the run. A continued run may change
    it."""
    scheduler_step: Annotated[str, one_of("epoch", "iteration")] = "epoch"
    """Whether the scheduler is stepped after each epoch or after each iteration (optimiser step);
    ReduceLROnPlateau goes by epochs. A continued run may change it."""
    warmup_iterations: Annotated[int, CountOrNone] = 0
    """Iterations in which the learning rate rises in a line from nearly 0 to that of the scheduler;
    0 begins at full rate. A continued run may change it."""
    criterion: Callable | None = None
    """The loss, by default weighted_bce: `criterion(logits, target, pos_weight)` like those of
    common.train.losses, or any loss of torch or MONAI, which is called with logits and a dense
    target of 0 and 1; see common.train.losses.criterion."""
    criterion_kwargs: dict = field(default_factory=dict)
    """`{"gamma": 1.5}`: keyword arguments of criterion, a function or a class that is not made yet;
    a class is made with them."""
    criteria: dict = field(default_factory=dict)
    """`{"cell_affinity": dice_loss, "softmax": torch.nn.CrossEntropyLoss()}`: losses of single
    heads, by the name of a derived channel, or "softmax". Without one, channels with a sigmoid
    have the loss `criterion` together, those of `softmax` categorical cross-entropy, and a
    distance a smooth L1 loss."""
    loss_weights: dict = field(default_factory=dict)
    """`{"cell_distance": 0.5}`: weight of a head in the sum of the losses: a derived channel,
    "softmax", or "classes" for all others. Default 1."""
    weight_loss: bool = True
    """Weight the positive voxels of a class by background / foreground: its negative voxels over
    its positive voxels in the training crops."""
    pos_weight_cap: Annotated[float, Positive] = 10.0
    """Largest weight of a positive voxel. Without a cap, a network predicts a rare class everywhere
    to catch its few voxels."""
    init_output_to_prior: bool = True
    """Initialise the output layer so that the first prediction is the frequency of each class."""
    init_logit_rms: Annotated[float, NotNegative] = 0.0
    """With init_output_to_prior: root mean square, over the first batch, of what the weights of the
    output layer make of its input, to which they are scaled, such as 1.0; the bias makes up for the
    mean. 0 multiplies these weights by 0.01 instead."""
    max_grad_norm: Annotated[float, NotNegative] = 0.0
    """Norm to which the gradient of a step is clipped; 0 turns clipping off."""
    skipped_steps_limit: Annotated[int, Count] = 10
    """Steps in a row whose loss or gradient is not finite after which the run ends, with the
    weights from before them. Such a step is skipped and counted, and its samples are written to
    skipped.json, which the command replay reads. 1 ends at the first."""
    ema_decay: Annotated[float, BelowOne] = 0.0
    """Factor per step of a moving average of the weights, such as 0.999; it is the average that
    validates, is chosen as best and predicts. The factor after t steps is at most (1 + t) /
    (10 + t), so that short runs profit, too. 0 keeps no average. A continued run may change it."""
    precision: Annotated[str, one_of("auto", "bf16", "fp16", "fp32")] = "auto"
    """Number type of the forward pass: "auto" is bf16 where the device supports it, else fp16 with
    loss scaling on CUDA and fp32 on a CPU."""
    device: str = "auto"
    """Device of torch, such as "cuda" or "cpu"; "auto" is the first that exists of CUDA, MPS and
    the CPU."""
    channels_last: bool = True
    """Use torch's channels-last memory format: same result, faster convolutions."""
    compile: bool = False
    """Compile the network for training by torch.compile, which takes a minute or more before the
    first step; where that fails, a sentence says why and training goes on without. Validation and
    prediction are not compiled."""
    random_seed: Annotated[int, Seed] = 42
    """Seed of weights, samples and augmentation. The environment variable SEED takes precedence."""

    checkpoint_minutes: Annotated[float, Time] = 10.0
    """Minutes after which latest.pt is written within an epoch, again and again: what is lost at
    most, besides a validation, if the process is killed. It is also written before and after each
    validation; 0 is at these times only."""
    checkpoints_kept: Annotated[int, Count] = 2
    """Number of latest checkpoints that are kept: latest.pt, latest.1.pt and so on. If one is
    damaged the run goes on with the next. 1 keeps latest.pt only."""
    training_time_limit: Annotated[float, Time] = 0.0
    """Seconds after which this call ends, once the current epoch is finished; the same command
    continues the run. 0 is no limit."""
    validation_time_limit: Annotated[float, Time] = 0.0
    """Seconds after which the first validation ends; all later ones use the same blocks. 0 is no
    limit."""
    validation_batch_limit: Annotated[int, CountOrNone] = 0
    """Most batches in a validation; 0 is no limit. The blocks and their order are the same in all
    epochs."""
    metrics: dict = field(default_factory=dict)
    """`{"specificity": specificity}`: your own validation metrics by name. `metric(tp, fp, fn, tn)`
    gets voxel counts, NumPy arrays (classes,), and returns (classes,) values; higher is better."""
    best_metric: str = "dice"
    """The metric that chooses the best checkpoint: "dice", "iou", "precision", "recall" or one of
    metrics, averaged over the classes that occur in the validation blocks; "loss"; or "challenge",
    with validation_score_every."""
    validation_score_every: Annotated[int, CountOrNone] = 0
    """Epochs between two scores of whole validation crops: predicted, processed by
    process_config.py and scored as the challenge does it; 0 is never. With best_metric =
    "challenge" that score chooses the best checkpoint."""
    metric_smoothing: Annotated[float, Fraction] = 0.0
    """Weight of the epochs before in a running mean of best_metric, s x before + (1 - s) x value,
    that chooses the best checkpoint, steers ReduceLROnPlateau and stops early: 0.9 where validation
    is small and its metric jumps. 0 takes each epoch by itself."""
    early_stopping_patience: Annotated[int, CountOrNone] = 0
    """Number of epochs without an improvement of best_metric, or of the training loss if no crop
    validates, after which training ends; 0 turns early stopping off. Epochs without a value do not
    count."""
    figure_samples: Annotated[int, Shown] = 2
    """Validation blocks shown as figures for each class after each epoch, always the same ones."""
    figure_crops: Annotated[int, Shown] = 1
    """Validation crops of which a whole slice is shown after each epoch, with all classes in
    colour: the first ones, in the middle along z."""
    preview_every: Annotated[int, CountOrNone] = 0
    """Epochs between two previews of the figure_crops validation crops as a whole: a picture of
    each section in previews/ beside history.csv, and a few of them in the trackers; 0 is never. The
    last one is kept."""
    preview_tiff: bool = False
    """With preview_every: raw, truth and probabilities of these crops as TIFF stacks, too."""
    trackers: Annotated[tuple[str | Callable, ...], Sinks] = ("tensorboard",)
    """Where scalars, figures and settings are logged: "tensorboard", "mlflow", and classes like
    common.train.recording.tracking.Sink. history.csv and run.json are always written."""
    mlflow_uri: str = ""
    """MLflow's store, such as http://host:5000; by default logs/mlflow.db in the experiment's
    folder."""
    mlflow_parent: str = ""
    """Id of the MLflow run that a new run is nested in, as for the trials of a search."""

    # no setting, and without a sentence not in their table: see common.config.public.configs
    translated: tuple[str, ...] = ()
    missing_split: dict = field(default_factory=dict)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the network's output channels: the classes, then those that are derived."""
        return channel_names(self.classes, self.derived)

    @property
    def in_channels(self) -> int:
        """Number of the network's input channels: raw, and those beside it."""
        return 1 + len(self.input_channels)

    @property
    def folder(self) -> Path:
        """The experiment's folder, absolute."""
        return Path(self.base_experiment_path)

    @property
    def run(self) -> str:
        """run_name with its fields filled in."""
        return self.run_name.format(model_name=self.model_name, random_seed=self.random_seed)

    def path(self, name: str) -> Path:
        """Return the setting `name` as an absolute path, its {fields} filled in."""
        text = getattr(self, name)
        if name in RUN_FOLDERS:
            text = text.format(
                model_name=self.model_name, random_seed=self.random_seed, run_name=self.run
            )
        # data and decoded crops are shared by all experiments
        root = REPOSITORY if name in ("data_path", "cache_path") else self.folder
        return (root / Path(text).expanduser()).resolve()

    def record(self) -> dict[str, str]:
        """Return every setting as text, functions by their name, for logs and checkpoints."""
        names = [field.name for field in dataclasses.fields(self)]
        return {name: as_text(getattr(self, name)) for name in names}

    @classmethod
    def recorded_defaults(cls) -> dict[str, str]:
        """Return the defaults as `record` writes them.

        They stand for settings that an older record does not have yet.
        """
        defaults = {}
        for setting in dataclasses.fields(cls):
            if setting.default is not dataclasses.MISSING:
                defaults[setting.name] = as_text(setting.default)
            elif setting.default_factory is not dataclasses.MISSING:
                defaults[setting.name] = as_text(setting.default_factory())
        return defaults


CHALLENGE = "challenge"
"""What best_metric may be with validation_score_every: the score of whole crops."""

RUN_FOLDERS = (
    "model_save_path",
    "logs_save_path",
    "predictions_path",
    "processed_path",
    "results_path",
)
"""Path settings in which {model_name}, {run_name} and {random_seed} are filled in."""


LOGS = ("logs", "tensorboard")
"""Names of the folder of an experiment that its runs are found in: ours, and the toolbox's."""


@dataclass(frozen=True)
class ProcessConfig:
    """The settings of `process`, which turns predictions into masks and objects."""

    process_func: Callable
    """`process_func(logits)` takes float logits (B, 1, z, y, x) of one class, shifted so that 0 is
    the threshold of the class, and returns an array of that shape: 1 where the class is, else 0."""
    classes: tuple[str, ...]
    """The classes to process."""
    instance_func: Callable | None = None
    """`instance_func(mask, probability, name)` takes two volumes of an instance class and returns a
    volume of ids, see common.infer.instances; by default the connected components of the mask. With
    an argument `channels` it also takes all predicted channels of the box, by name."""
    instance_options: dict = field(default_factory=dict)
    """Values that `tune` tries for arguments of instance_func that have a default, such as
    {"neck": [0.5, 0.7, 0.9]}, class by class. What scores best goes into thresholds.json, and the
    default holds without it."""
    derived: dict = field(default_factory=dict)
    """The declarations of data.py, imported where instance_func reads offsets of affinities there.
    `process` itself does nothing with them."""
    instance_classes: tuple[str, ...] = class_table.INSTANCES
    """The classes whose objects are told apart."""
    thresholds: dict = field(default_factory=dict)
    """Probability above which a voxel belongs to a class, by class. A class that is not among them
    has what `tune` wrote into thresholds.json beside process_config.py, else 0.5."""
    halo: Annotated[tuple[int, ...], Halo] = (0, 0, 0)
    """Voxels around a block, one number or z, y, x, that process_func gets in addition and whose
    result is dropped."""
    input_array_info: dict = field(default_factory=dict)
    """Shape (voxels) of the blocks that process_func gets, and voxel size (nm) that the prediction
    must have; by default those of the prediction."""
    batch_size: Annotated[int, Count] = 8
    """Blocks that process_func gets at a time."""
    extra_classes: tuple[str, ...] = ()
    """Class names outside the challenge's table."""


class Setting(NamedTuple):
    """One setting as the documents show it."""

    name: str
    default: str
    """The default as written in Python, or "required"."""
    meaning: str


@functools.cache
def describe(table: type = TrainConfig) -> tuple[Setting, ...]:
    """Return one row for each setting of a table, read from the source of its class."""
    body = cast(ast.ClassDef, ast.parse(inspect.getsource(table)).body[0]).body
    rows = []
    for field_line, docstring in itertools.pairwise(body):
        if isinstance(field_line, ast.AnnAssign) and isinstance(docstring, ast.Expr):
            name = ast.unparse(field_line.target)
            meaning = ast.literal_eval(docstring.value)
            rows.append(Setting(name, _default(field_line), " ".join(meaning.split())))
    return tuple(rows)


def _default(field_line: ast.AnnAssign) -> str:
    if field_line.value is None:
        return "required"
    text = ast.unparse(field_line.value)
    return "{}" if text == "field(default_factory=dict)" else text
