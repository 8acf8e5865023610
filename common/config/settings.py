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
from typing import Annotated, Any, NamedTuple, cast

from common import classes as class_table
from common.config.kinds import (
    Fraction,
    Halo,
    Interval,
    NotNegative,
    Positive,
    RawRange,
    Seed,
    Sinks,
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
    """`build_model(classes, **model_kwargs)` gives the network; called after seeding. Raw (B, 1, z,
    y, x) in, logits (B, classes, z, y, x) out."""
    classes: tuple[str, ...]
    """The classes that are learnt, in the order of the output channels."""
    input_array_info: dict
    """Shape (voxels) and scale (nm) of the raw patch, z, y, x: `{"shape": (68, 68, 68), "scale":
    (8, 8, 8)}`."""
    target_array_info: dict
    """Shape and scale of the target patch, which has the same centre as the raw patch."""

    base_experiment_path: str = ""
    """Folder that relative paths below start from; the folder of the config file unless set."""
    model_name: str = ""
    """Name of the model in logs and checkpoints; the name of the experiment's folder unless set."""
    run_name: str = "seed{random_seed}"
    """Name of this run under the model; the same name continues the same run."""
    model_kwargs: dict = field(default_factory=dict)
    """Passed to build_model by name."""
    load_model: str = "latest"
    """Where to start: "latest" or "best" of this run if there is one, "scratch", or a checkpoint
    file whose weights to take."""
    model_save_path: str = "checkpoints/{model_name}/{run_name}"
    """Folder of latest.pt and best.pt."""
    logs_save_path: str = "logs/{model_name}/{run_name}"
    """Folder of the TensorBoard events, history.csv and run.json."""
    predictions_path: str = "predictions/{model_name}/{run_name}"
    """Folder that predict writes to: {dataset}.zarr/{crop}/{class}."""
    processed_path: str = "processed/{model_name}/{run_name}"
    """Folder that process writes to, likewise."""
    results_path: str = "results/{model_name}/{run_name}"
    """Folder of the scores that evaluate writes."""

    data_path: str = "data"
    """Data root that relative paths in the datasplit start from, itself relative to the repository;
    CELLMAP_DATA and --data go before it."""
    datasplit_path: str = "datasplit.csv"
    """Which crops train and which validate."""
    extra_classes: tuple[str, ...] = ()
    """Class names outside the challenge's table; nothing is inferred about them."""
    cache_path: str = "cache"
    """Folder of decoded crops and pretrained weights, relative to the repository; CELLMAP_CACHE
    goes before it."""
    cache_gb: Annotated[float, Positive] = 100.0
    """Largest size of the decoded crops on disk, GB; the least recently used ones are removed, a
    run that needs more stops."""
    raw_range: Annotated[tuple[float, ...], RawRange] = ()
    """Raw values that become 0 and 1; the range of the raw's integer type unless set."""
    num_workers: Annotated[int, NotNegative] = 2
    """Processes that read patches; 0 reads in the training process. The batches are the same for
    any number."""

    use_mutual_exclusion: bool = True
    """True-negative masking: a class that is not annotated is negative where a class that excludes
    it is positive."""
    infer_groups: bool = True
    """A class that is not annotated follows from annotated parts or from a group known to be
    absent."""
    weighted_sampler: bool = True
    """Draw every class equally often; otherwise draw crops by their volume."""
    positive_centre_fraction: Annotated[float, Fraction] = 0.5
    """Of the patches drawn for a class, the fraction placed to contain a positive voxel of it; the
    others lie anywhere."""
    class_sampling_weights: dict = field(default_factory=dict)
    """`{"mito": 3.0}`: how often weighted_sampler draws a class compared with the others; 1 unless
    set, 0 is never."""
    crop_sampling_weights: dict = field(default_factory=dict)
    """`{"jrc_hela-2/*": 2.0}`: how often a crop is drawn compared with others that have the class
    (without weighted_sampler: that are as large); patterns of dataset/crop, the last that fits
    counts, 1 unless set."""
    spatial_transforms: dict = field(default_factory=dict)
    """`{"mirror": {"axes": {"x": 0.5}}, "transpose": {"axes": ["x", "y"]}, "rotate": {"axes": {"z":
    [-180, 180]}}}`: probability per axis, axes to permute, degrees about each axis."""
    intensity_probability: Annotated[float, Fraction] = 0.5
    """Probability of each of the three intensity changes below."""
    gamma_range: Annotated[tuple[float, ...], Interval] = (1.0, 1.0)
    """Exponent applied to raw in [0, 1]."""
    contrast_range: Annotated[tuple[float, ...], Interval] = (1.0, 1.0)
    """Factor on the distance of raw from its mean."""
    noise_std: Annotated[float, NotNegative] = 0.0
    """Standard deviation of Gaussian noise added to raw in [0, 1]."""
    augment: Callable | None = None
    """`augment(raw, generator)` gives raw back: your own change of each training patch, (1, z, y,
    x) float32 in [0, 1] on the device, after the changes above. Draw random numbers with the
    torch.Generator, which is the sample's own."""

    epochs: Annotated[int, Positive] = 1000
    """Epochs in total: a finished run that is started again does nothing."""
    iterations_per_epoch: Annotated[int, Positive] = 1000
    """Optimiser steps in an epoch."""
    batch_size: Annotated[int, Positive] = 8
    """Patches in a forward pass."""
    gradient_accumulation_steps: Annotated[int, Positive] = 1
    """Forward passes in an optimiser step; the loss is the mean over the known voxels of all of
    them."""
    learning_rate: Annotated[float, Positive] = 1e-4
    """Step size."""
    optimizer: Callable | None = None
    """`optimizer(parameters, lr=, weight_decay=)`; RAdam with decoupled weight decay unless set."""
    weight_decay: Annotated[float, NotNegative] = 0.01
    """Decoupled weight decay, on weights and not on biases."""
    scheduler: Callable | None = None
    """A class of torch.optim.lr_scheduler, stepped after each epoch; ReduceLROnPlateau is given
    best_metric."""
    scheduler_kwargs: dict = field(default_factory=dict)
    """Passed to the scheduler by name."""
    criterion: Callable | None = None
    """The loss: `criterion(logits, target, pos_weight)` from common.train.losses or like it, or any
    loss of torch or MONAI, which is called with logits and a dense target of 0 and 1, see
    common.train.criterion; weighted_bce unless set."""
    weight_loss: bool = True
    """Weigh positive voxels of a class by background / foreground over the training crops."""
    pos_weight_cap: Annotated[float, Positive] = 10.0
    """Largest weight of a positive voxel: without a cap a rare class is painted everywhere to catch
    its few voxels."""
    init_output_to_prior: bool = True
    """Start the output layer at the frequency of each class instead of at random logits."""
    max_grad_norm: Annotated[float, NotNegative] = 0.0
    """Largest norm of the gradient of a step; 0 does not clip."""
    precision: Annotated[str, one_of("auto", "bf16", "fp16", "fp32")] = "auto"
    """Of the forward pass: "auto" is bf16 where the device has it, else fp16 with loss scaling on
    CUDA and fp32 on a CPU."""
    device: str = "auto"
    """ "auto" is CUDA, MPS or the CPU, the first that there is."""
    channels_last: bool = True
    """Keep activations as z, y, x, channel in memory: same result, faster convolutions."""
    random_seed: Annotated[int, Seed] = 42
    """Seed of weights, samples and augmentation; SEED in the environment goes before it."""

    training_time_limit: Annotated[float, NotNegative] = 0.0
    """Seconds after which this call ends with the epoch then under way, as for a cluster's queue;
    the next call goes on. 0 is no limit."""
    validation_time_limit: Annotated[float, NotNegative] = 0.0
    """Seconds that the first validation may take; it fixes the number of blocks for all epochs. 0
    is no limit."""
    validation_batch_limit: Annotated[int, NotNegative] = 0
    """Batches of a validation. 0 is no limit. The blocks and their order are the same in all
    epochs."""
    metrics: dict = field(default_factory=dict)
    """`{"specificity": specificity}`: your own metrics of a validation, by name. `metric(tp, fp,
    fn, tn)` gets voxel counts, a NumPy array over the classes each, and gives a value for each
    class; higher is better."""
    best_metric: str = "dice"
    """What the best checkpoint is best at on the validation blocks: "dice", "iou", "precision",
    "recall" or one of metrics, a mean over the classes that occur; or "loss"."""
    early_stopping_patience: Annotated[int, NotNegative] = 0
    """Epochs without a better best_metric after which training ends; 0 never ends it."""
    figure_samples: Annotated[int, NotNegative] = 2
    """Fixed validation blocks shown in TensorBoard for each class after each epoch."""
    trackers: Annotated[tuple[str | Callable, ...], Sinks] = ("tensorboard",)
    """Where scalars, figures and settings go: "tensorboard", "mlflow", and classes like
    common.train.tracking.Sink; history.csv and run.json are always written."""
    mlflow_uri: str = ""
    """MLflow's store, such as http://host:5000; logs/mlflow.db in the experiment's folder unless
    set."""
    mlflow_parent: str = ""
    """Id of the MLflow run that a new run is nested in, as the trials of a search are."""

    @property
    def folder(self) -> Path:
        """The experiment's folder, absolute."""
        return Path(self.base_experiment_path)

    @property
    def run(self) -> str:
        """run_name, its fields filled in."""
        return self.run_name.format(model_name=self.model_name, random_seed=self.random_seed)

    def path(self, name: str) -> Path:
        """A path setting, absolute; the fields of those for checkpoints and logs are filled in."""
        text = getattr(self, name)
        if name in RUN_FOLDERS:
            text = text.format(
                model_name=self.model_name, random_seed=self.random_seed, run_name=self.run
            )
        # data and decoded crops are shared by all experiments
        root = REPOSITORY if name in ("data_path", "cache_path") else self.folder
        return (root / Path(text).expanduser()).resolve()

    def record(self) -> dict[str, str]:
        """Every setting as text, functions by their name, for logs and checkpoints."""
        names = [field.name for field in dataclasses.fields(self)]
        return {name: as_text(getattr(self, name)) for name in names}

    @classmethod
    def recorded_defaults(cls) -> dict[str, str]:
        """The defaults as `record` writes them: what an older record without a setting ran with."""
        defaults = {}
        for setting in dataclasses.fields(cls):
            if setting.default is not dataclasses.MISSING:
                defaults[setting.name] = as_text(setting.default)
            elif setting.default_factory is not dataclasses.MISSING:
                defaults[setting.name] = as_text(setting.default_factory())
        return defaults


RUN_FOLDERS = (
    "model_save_path",
    "logs_save_path",
    "predictions_path",
    "processed_path",
    "results_path",
)
"""Folders of one run: {model_name}, {run_name} and {random_seed} in them are filled in."""


# that the datasplit's path may change does not let its content: a run keeps a hash of it
MAY_CHANGE = frozenset(
    [
        "base_experiment_path",
        "model_name",
        "run_name",
        "load_model",
        "data_path",
        "datasplit_path",
        "cache_path",
        "cache_gb",
        "num_workers",
        "epochs",
        "device",
        "precision",
        "channels_last",
        "early_stopping_patience",
        "training_time_limit",
        "figure_samples",
        "metrics",
        "trackers",
        "mlflow_uri",
        "mlflow_parent",
    ]
).union(RUN_FOLDERS)
"""Settings that a continued run may change.

They take effect at once, and do not change what is learnt from what.
"""


TOOLBOX_NAMES = {
    "model": "give build_model(classes), which is called after seeding",
    "model_to_load": "load_model takes a checkpoint file",
    "dataloader_kwargs": "num_workers is the one that is left of it",
    "criterion_kwargs": "criterion may be a functools.partial",
    "low_is_best": "best_metric says what is best",
    "smoothing_window": "best_metric says what is best",
    "validation_prob": "make-datasplit takes --validation-fraction",
    "force_all_classes": "write the datasplit with make-datasplit",
    "filter_by_scale": "make-datasplit takes --scale",
    "use_s3": "fetch the data to the data root first",
    "target_value_transforms": "labels are 0 and 1 already",
}
"""What to do instead of settings that the public toolbox has and that do not exist here."""

# the toolbox reads one pair of these names, configurations in use set the other
for _name in ("train_raw", "train_raw_value", "val_raw", "val_raw_value"):
    TOOLBOX_NAMES[f"{_name}_transforms"] = (
        "raw_range scales raw; gamma_range, contrast_range and noise_std change it"
    )


@dataclass(frozen=True)
class ProcessConfig:
    """What turns predictions into masks and objects."""

    process_func: Callable
    """`process_func(logits)`: (B, 1, z, y, x) float logits of one class to an array of that shape,
    1 where it is. 0 is the class's threshold."""
    classes: tuple[str, ...]
    """The classes to process."""
    instance_func: Callable | None = None
    """`instance_func(mask, probability, name)`: volumes of an instance class to a volume of ids,
    see common.infer.instances; its connected components unless set."""
    instance_classes: tuple[str, ...] = class_table.INSTANCES
    """The classes whose objects are told apart."""
    thresholds: dict = field(default_factory=dict)
    """Probability above which a voxel is of a class, by class; those that `tune` wrote into
    thresholds.json beside process_config.py unless set, 0.5 for the others."""
    halo: Annotated[tuple[int, ...], Halo] = (0, 0, 0)
    """Voxels around a block, z, y, x, that process_func sees and whose result is dropped."""
    input_array_info: dict = field(default_factory=dict)
    """Shape (voxels) of the blocks that process_func gets and scale (nm) that the prediction must
    have; the prediction's own unless set."""
    batch_size: Annotated[int, Positive] = 8
    """Blocks at a time."""
    extra_classes: tuple[str, ...] = ()
    """Class names outside the challenge's table."""


class Row(NamedTuple):
    """A setting as documents show it."""

    name: str
    default: str
    """As it is written in Python, or "required"."""
    meaning: str


@functools.cache
def describe(table: type = TrainConfig) -> tuple[Row, ...]:
    """A row for each setting of a table, read from the source: the only place where they stand."""
    body = cast(ast.ClassDef, ast.parse(inspect.getsource(table)).body[0]).body
    rows = []
    for field_line, docstring in itertools.pairwise(body):
        if isinstance(field_line, ast.AnnAssign) and isinstance(docstring, ast.Expr):
            name = ast.unparse(field_line.target)
            meaning = ast.literal_eval(docstring.value)
            rows.append(Row(name, _default(field_line), " ".join(meaning.split())))
    return tuple(rows)


def _default(field_line: ast.AnnAssign) -> str:
    if field_line.value is None:
        return "required"
    text = ast.unparse(field_line.value)
    return "{}" if text == "field(default_factory=dict)" else text


def as_text(value: Any) -> str:
    """A setting in words that are the same in every run.

    Without addresses of objects, and without the package that a configuration is run in.
    """
    if isinstance(value, dict):
        items = [f"{key!r}: {as_text(item)}" for key, item in value.items()]
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list | tuple):
        return _sequence_as_text(value)
    if isinstance(value, functools.partial):
        arguments = [as_text(item) for item in value.args]
        arguments += [f"{name}={as_text(item)}" for name, item in value.keywords.items()]
        return f"{as_text(value.func)}({', '.join(arguments)})"
    if hasattr(value, "__qualname__"):
        module = value.__module__.split(".")[-1]
        return f"{module}.{value.__qualname__}"
    # the text of an object without one of its own would give an address
    if type(value).__repr__ is object.__repr__ or hasattr(value, "named_buffers"):
        return _object_as_text(value)
    return repr(value)


def _object_as_text(value: Any) -> str:
    """An object by its class; a torch.nn.Module, such as a loss, with its numbers and texts.

    A module's own text leaves out most of them: two losses that differ would look like one.
    """
    arguments: dict[str, Any] = {}
    if hasattr(value, "named_buffers"):
        for name, attribute in vars(value).items():
            is_private = name[0] == "_" or name == "training"
            if not is_private and isinstance(attribute, bool | int | float | str):
                arguments[name] = attribute
        for name, tensor in value.state_dict().items():
            arguments[name] = tensor.tolist()
    text = ", ".join(f"{name}={arguments[name]!r}" for name in sorted(arguments))
    return f"{as_text(type(value))}({text})"


def _sequence_as_text(value: list | tuple) -> str:
    text = ", ".join(as_text(item) for item in value)
    if isinstance(value, list):
        return f"[{text}]"
    return f"({text},)" if len(value) == 1 else f"({text})"
