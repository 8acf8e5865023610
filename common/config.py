"""Every setting: its sentence, unit, default and check, once. Reads a Python file, refuses what it does not know."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import importlib.util
import inspect
import itertools
import math
import operator
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from common import classes as class_table

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Check:
    """A test that a value must pass, and what to write instead."""

    passes: Callable[[Any], bool]
    wanted: str


Positive = Check(lambda value: 0 < value < math.inf, "a number above 0")
NotNegative = Check(lambda value: 0 <= value < math.inf, "0 or more")
Fraction = Check(lambda value: 0 <= value <= 1, "a number between 0 and 1")
Seed = Check(lambda value: 0 <= value < 2**63, "a whole number from 0 to 2**63 - 1")
Interval = Check(
    lambda value: len(value) == 2 and 0 <= value[0] <= value[1] < math.inf,
    "two numbers (low, high), not negative, in order",
)
RawRange = Check(
    lambda value: len(value) == 0 or (len(value) == 2 and value[0] < value[1]), "two numbers (low, high), low first"
)
Sinks = Check(lambda value: value and set(value) <= {"tensorboard", "mlflow"}, "one or both of 'tensorboard' and 'mlflow'")
Halo = Check(lambda value: len(value) == 3 and min(value) >= 0, "three numbers of voxels, z, y, x")
NotAClass = Check(lambda value: not inspect.isclass(value), "a function such as common.losses.bce_dice, not a class")


def one_of(*choices: str) -> Check:
    """The value is one of `choices`."""
    return Check(lambda value: value in choices, "one of " + ", ".join(map(repr, choices)))


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one training run, checked. Read with `load_config`; the README's table is made of this class."""

    build_model: Callable
    """`build_model(classes, **model_kwargs)` gives the network; called after seeding. Raw (B, 1, z, y, x) in, logits
    (B, classes, z, y, x) out."""
    classes: tuple[str, ...]
    """The classes that are learnt, in the order of the output channels."""
    input_array_info: dict
    """Shape (voxels) and scale (nm) of the raw patch, z, y, x: `{"shape": (68, 68, 68), "scale": (8, 8, 8)}`."""
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
    """Where to start: "latest" or "best" of this run if there is one, "scratch", or a checkpoint file whose weights to
    take."""
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
    """Data root that relative paths in the datasplit start from, itself relative to the repository; CELLMAP_DATA and
    --data go before it."""
    datasplit_path: str = "datasplit.csv"
    """Which crops train and which validate."""
    extra_classes: tuple[str, ...] = ()
    """Class names outside the challenge's table; nothing is inferred about them."""
    cache_path: str = "cache"
    """Folder of decoded crops and pretrained weights, relative to the repository; CELLMAP_CACHE goes before it."""
    cache_gb: Annotated[float, Positive] = 100.0
    """Largest size of the decoded crops on disk, GB; the least recently used ones are removed, a run that needs more
    stops."""
    raw_range: Annotated[tuple[float, ...], RawRange] = ()
    """Raw values that become 0 and 1; the range of the raw's integer type unless set."""
    num_workers: Annotated[int, NotNegative] = 2
    """Processes that read patches; 0 reads in the training process. The batches are the same for any number."""

    use_mutual_exclusion: bool = True
    """True-negative masking: a class that is not annotated is negative where a class that excludes it is positive."""
    infer_groups: bool = True
    """A class that is not annotated follows from annotated parts or from a group known to be absent."""
    weighted_sampler: bool = True
    """Draw every class equally often; otherwise draw crops by their volume."""
    positive_centre_fraction: Annotated[float, Fraction] = 0.5
    """Of the patches drawn for a class, the fraction placed to contain a positive voxel of it; the others lie
    anywhere."""
    spatial_transforms: dict = field(default_factory=dict)
    """`{"mirror": {"axes": {"x": 0.5}}, "transpose": {"axes": ["x", "y"]}, "rotate": {"axes": {"z": [-180, 180]}}}`:
    probability per axis, axes to permute, degrees about each axis."""
    intensity_probability: Annotated[float, Fraction] = 0.5
    """Probability of each of the three intensity changes below."""
    gamma_range: Annotated[tuple[float, ...], Interval] = (1.0, 1.0)
    """Exponent applied to raw in [0, 1]."""
    contrast_range: Annotated[tuple[float, ...], Interval] = (1.0, 1.0)
    """Factor on the distance of raw from its mean."""
    noise_std: Annotated[float, NotNegative] = 0.0
    """Standard deviation of Gaussian noise added to raw in [0, 1]."""

    epochs: Annotated[int, Positive] = 1000
    """Epochs in total: a finished run that is started again does nothing."""
    iterations_per_epoch: Annotated[int, Positive] = 1000
    """Optimiser steps in an epoch."""
    batch_size: Annotated[int, Positive] = 8
    """Patches in a forward pass."""
    gradient_accumulation_steps: Annotated[int, Positive] = 1
    """Forward passes in an optimiser step; the loss is the mean over the known voxels of all of them."""
    learning_rate: Annotated[float, Positive] = 1e-4
    """Step size."""
    optimizer: Callable | None = None
    """`optimizer(parameters, lr=, weight_decay=)`; RAdam with decoupled weight decay unless set."""
    weight_decay: Annotated[float, NotNegative] = 0.01
    """Decoupled weight decay, on weights and not on biases."""
    scheduler: Callable | None = None
    """A class of torch.optim.lr_scheduler, stepped after each epoch; ReduceLROnPlateau is given best_metric."""
    scheduler_kwargs: dict = field(default_factory=dict)
    """Passed to the scheduler by name."""
    criterion: Annotated[Callable | None, NotAClass] = None
    """`criterion(logits, target, pos_weight)` from common.losses or like it; weighted_bce unless set."""
    weight_loss: bool = True
    """Weigh positive voxels of a class by background / foreground over the training crops."""
    pos_weight_cap: Annotated[float, Positive] = 10.0
    """Largest weight of a positive voxel: without a cap a rare class is painted everywhere to catch its few voxels."""
    init_output_to_prior: bool = True
    """Start the output layer at the frequency of each class instead of at random logits."""
    max_grad_norm: Annotated[float, NotNegative] = 0.0
    """Largest norm of the gradient of a step; 0 does not clip."""
    precision: Annotated[str, one_of("auto", "bf16", "fp16", "fp32")] = "auto"
    """Of the forward pass: "auto" is bf16 where the device has it, else fp16 with loss scaling on CUDA and fp32 on a
    CPU."""
    device: str = "auto"
    """ "auto" is CUDA, MPS or the CPU, the first that there is."""
    channels_last: bool = True
    """Keep activations as z, y, x, channel in memory: same result, faster convolutions."""
    random_seed: Annotated[int, Seed] = 42
    """Seed of weights, samples and augmentation; SEED in the environment goes before it."""

    training_time_limit: Annotated[float, NotNegative] = 0.0
    """Seconds after which this call ends with the epoch then under way, as for a cluster's queue; the next call goes
    on. 0 is no limit."""
    validation_time_limit: Annotated[float, NotNegative] = 0.0
    """Seconds that the first validation may take; it fixes the number of blocks for all epochs. 0 is no limit."""
    validation_batch_limit: Annotated[int, NotNegative] = 0
    """Batches of a validation. 0 is no limit. The blocks and their order are the same in all epochs."""
    best_metric: Annotated[str, one_of("dice", "iou", "precision", "recall", "loss")] = "dice"
    """What the best checkpoint is best at on the validation blocks: a mean over the classes that occur, or the loss."""
    early_stopping_patience: Annotated[int, NotNegative] = 0
    """Epochs without a better best_metric after which training ends; 0 never ends it."""
    figure_samples: Annotated[int, NotNegative] = 2
    """Fixed validation blocks shown in TensorBoard for each class after each epoch."""
    trackers: Annotated[tuple[str, ...], Sinks] = ("tensorboard",)
    """Where scalars, figures and settings go: "tensorboard", "mlflow" or both; history.csv and run.json are always
    written."""
    mlflow_uri: str = ""
    """MLflow's store, such as http://host:5000; logs/mlflow.db in the experiment's folder unless set."""
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
            text = text.format(model_name=self.model_name, random_seed=self.random_seed, run_name=self.run)
        root = REPOSITORY if name in ("data_path", "cache_path") else self.folder
        return (root / Path(text).expanduser()).resolve()

    def record(self) -> dict[str, str]:
        """Every setting as text, functions by their name, for logs and checkpoints."""
        return {f.name: _as_text(getattr(self, f.name)) for f in dataclasses.fields(self)}


RUN_FOLDERS = ("model_save_path", "logs_save_path", "predictions_path", "processed_path", "results_path")
"""Folders of one run: {model_name}, {run_name} and {random_seed} in them are filled in."""

MAY_CHANGE = frozenset(
    """base_experiment_path model_name run_name load_model data_path datasplit_path
    cache_path cache_gb num_workers epochs device precision channels_last early_stopping_patience training_time_limit
    figure_samples trackers mlflow_uri mlflow_parent""".split()
).union(RUN_FOLDERS)
"""Settings that a continued run may change: they take effect at once and do not change what is learnt from what."""

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
    **{
        f"{usage}_{kind}_transforms": "raw_range scales raw; gamma_range, contrast_range and noise_std change it"
        for usage in ("train", "val")
        for kind in ("raw", "raw_value")
    },
}
"""What to do instead of settings that the public toolbox has and that do not exist here."""


def load_config(
    path: str | Path, overrides: Sequence[str] = (), data: str | Path | None = None, **settings: Any
) -> TrainConfig:
    """The checked settings of a training configuration file (or of the experiment folder that holds train_config.py).

    overrides: "name=value" or "name.key=value", as `--set` takes them; settings: the same as Python values; data: the
    data root. They go before the environment (SEED, CELLMAP_DATA, CELLMAP_CACHE), and that before the file.
    Raises FileNotFoundError, or ValueError with everything that is wrong in one message.
    """
    path = _config_file(path, "train_config.py")
    values = _read_settings(path, TrainConfig)
    given, problems = environment()
    values |= {**given, **settings}
    if data:
        values["data_path"] = str(data_root(data))
    problems += [problem for override in overrides if (problem := _override(values, override))]
    root = data_root(data)
    if values.get("data_path") == str(root) and not root.is_dir():
        problems.append(f"the data root {root} is no folder; write the one that holds the datasets")
    config = check_settings(_short(path), values, problems)
    folder, name = path.parent / config.base_experiment_path, config.model_name or path.parent.name
    return dataclasses.replace(config, base_experiment_path=str(folder), model_name=name)


def read_overrides(path: str | Path) -> tuple[str, ...]:
    """The "name=value" lines of a file, as `load_config` takes them; empty lines and lines that begin with # are left out.

    Raises FileNotFoundError, or ValueError for a line without '='.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of overrides; write one with a line name=value for each setting")
    lines = [(number, line.strip()) for number, line in enumerate(path.read_text().splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if wrong := [f"{path}, line {number}: '{line}' has no '='; write name=value" for number, line in lines if "=" not in line]:
        raise ValueError("\n".join(wrong))
    return tuple(line for _, line in lines)


@dataclass(frozen=True)
class ProcessConfig:
    """What turns predictions into masks and objects."""

    process_func: Callable
    """`process_func(logits)`: (B, 1, z, y, x) float logits of one class to an array of that shape, 1 where it is. 0 is the
    class's threshold."""
    classes: tuple[str, ...]
    """The classes to process."""
    instance_func: Callable | None = None
    """`instance_func(mask, probability, name)`: volumes of an instance class to a volume of ids, see common.instances;
    its connected components unless set."""
    instance_classes: tuple[str, ...] = class_table.INSTANCES
    """The classes whose objects are told apart."""
    thresholds: dict = field(default_factory=dict)
    """Probability above which a voxel is of a class, by class; those that `tune` wrote into thresholds.json beside
    process_config.py unless set, 0.5 for the others."""
    halo: Annotated[tuple[int, ...], Halo] = (0, 0, 0)
    """Voxels around a block, z, y, x, that process_func sees and whose result is dropped."""
    input_array_info: dict = field(default_factory=dict)
    """Shape (voxels) of the blocks that process_func gets and scale (nm) that the prediction must have; the
    prediction's own unless set."""
    batch_size: Annotated[int, Positive] = 8
    """Blocks at a time."""
    extra_classes: tuple[str, ...] = ()
    """Class names outside the challenge's table."""


def load_process_config(path: str | Path) -> ProcessConfig:
    """The checked settings of a process_config.py (or of the experiment folder that holds it)."""
    path = _config_file(path, "process_config.py")
    return check_settings(_short(path), _read_settings(path, ProcessConfig), table=ProcessConfig)


@functools.cache
def describe(table: type = TrainConfig) -> tuple[tuple[str, str, str], ...]:
    """(name, default, meaning) of each setting, read from the one place where they stand."""
    body = ast.parse(inspect.getsource(table)).body[0].body  # type: ignore[attr-defined]
    rows = []
    for node, after in zip(body, body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr):
            default = "required" if node.value is None else ast.unparse(node.value)
            default = {"field(default_factory=dict)": "{}"}.get(default, default)
            rows.append((node.target.id, default, " ".join(after.value.value.split())))  # type: ignore[attr-defined]
    return tuple(rows)


_LOADED = itertools.count()


def load_module(path: str | Path) -> types.ModuleType:
    """Run a Python file of an experiment afresh, in a package of its own, so that `from .model import ...` works.

    Each call makes a new package: two copies of an experiment, or an edited one, never see each other's modules.
    Raises FileNotFoundError, or ValueError with file, line and reason if the file does not run.
    """
    path = Path(path).resolve()
    if not path.is_file() or path.suffix != ".py":
        raise FileNotFoundError(f"{path}: no such Python file")
    folder, name = (re.sub(r"\W", "_", text) for text in (path.parent.name, path.stem))
    package = types.ModuleType(f"experiment{next(_LOADED)}_{folder}")
    package.__path__ = [str(path.parent)]
    spec = importlib.util.spec_from_file_location(f"{package.__name__}.{name}", path)
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules |= {package.__name__: package, module.__name__: module}
    with _without_bytecode():
        try:
            spec.loader.exec_module(module)  # type: ignore[union-attr]
        except Exception as error:  # a configuration is a program, and can fail in every way
            raise ValueError(f"{_short(path)}: {_failure(error, path.parent)}") from error
    return module


@contextmanager
def _without_bytecode() -> Iterator[None]:
    """Compiled code counts as up to date if the source has its size and its second: a quick edit would not be seen."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _failure(error: Exception, folder: Path) -> str:
    """What went wrong in an experiment's file, and in which line of which of its files."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [(frame.filename, frame.lineno) for frame in frames if Path(frame.filename).is_relative_to(folder)]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno))
    where = f"line {places[-1][1]} of {Path(places[-1][0]).name}: " if places else ""
    reason = error.msg if isinstance(error, SyntaxError) else error
    beside = isinstance(error, ModuleNotFoundError) and error.name and (folder / f"{error.name}.py").is_file()
    hint = f"; write 'from .{error.name} import'" if beside else ""  # type: ignore[attr-defined]
    return f"{where}{type(error).__name__}: {reason}{hint}"


def data_root(given: str | Path | None = None) -> Path:
    """The data root, absolute: the given one, else CELLMAP_DATA, else data/ in the repository."""
    return Path(given or os.environ.get("CELLMAP_DATA") or REPOSITORY / "data").expanduser().absolute()


def _config_file(path: str | Path, name: str) -> Path:
    path = Path(path)
    path = path / name if path.is_dir() else path
    if not path.is_file() or path.suffix != ".py":
        raise FileNotFoundError(f"{path}: no such configuration; write the path of an experiment's {name}")
    return path.resolve()


def _read_settings(path: Path, table: type) -> dict[str, Any]:
    """The names that a configuration file gives and that are settings; what it works with is left out.

    That is: imports, definitions, CONSTANTS, _private names, and configurations that it reads its settings from.
    """
    known = {f.name for f in dataclasses.fields(table)}
    values = {}
    for name, value in vars(load_module(path)).items():
        is_tool = (
            isinstance(value, types.ModuleType | types.SimpleNamespace)
            or getattr(value, "__name__", None) == name
            or (name.isupper() and name.lower() not in known)
            or name.startswith("_")
            or name in ("annotations", "config_path")
        )
        if name in known or not is_tool:
            values[name] = value
    return values


def environment() -> tuple[dict[str, Any], list[str]]:
    """The settings that SEED, CELLMAP_DATA and CELLMAP_CACHE give, and what is wrong with them."""
    values: dict[str, Any] = {}
    if os.environ.get("CELLMAP_CACHE"):
        values["cache_path"] = str(Path(os.environ["CELLMAP_CACHE"]).expanduser().absolute())
    if os.environ.get("CELLMAP_DATA"):
        values["data_path"] = str(data_root())
    if "SEED" not in os.environ:
        return values, []
    try:
        return values | {"random_seed": int(os.environ["SEED"])}, []
    except ValueError:
        return values, [f"SEED is '{os.environ['SEED']}' in the environment; write a whole number, or unset it"]


def _override(values: dict[str, Any], text: str) -> str | None:
    """Apply one "name=value" or "name.key=value"; returns what is wrong with it."""
    name, equals, value = text.partition("=")
    name, *keys = name.strip().replace("-", "_").split(".")
    hints = typing.get_type_hints(TrainConfig)
    if not equals:
        return f"--set {text}: no '='; write --set name=value"
    if name not in hints:
        return f"--set {text}: {_unknown(name, hints)}"
    for place in (name, *keys[:-1]) if keys else ():
        below = values.get(place, {})
        if not isinstance(below, dict):
            return f"--set {text}: {name} has no parts with names; write --set {name}=value"
        values[place] = values = dict(below)
    literal = _literal(value)
    is_text = not keys and hints[name] is str and not isinstance(literal, str)
    values[keys[-1] if keys else name] = value.strip() if is_text else literal
    return None


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.strip().lower(), text.strip())


def check_settings(where: str, values: dict[str, Any], problems: Sequence[str] = (), table: type = TrainConfig) -> Any:
    """The values as a `table`. ValueError with these problems and all that are found, `where` before each."""
    fields = {f.name: f for f in dataclasses.fields(table)}
    hints = typing.get_type_hints(table, include_extras=True)
    problems, fitting = [*problems], {}
    for name, value in values.items():
        if name not in fields:
            problems.append(_unknown(name, fields))
            continue
        value, wrong = _fit(hints[name], value)
        if wrong:
            problems.append(f"{name} = {_as_text(value)}; {wrong}")
        else:
            fitting[name] = value
    meanings = {name: meaning for name, _, meaning in describe(table)}
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            problems.append(f"'{name}' is missing; {meanings[name]}")
    problems += _problems_within(fitting) + _problems_between(fitting)
    if problems:
        raise ValueError("\n".join(f"{where}: {problem}" for problem in problems))
    return table(**fitting)


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, 1, 0.6)
    hint = f"did you mean '{near[0]}'?" if near else "remove it, or begin its name with _ if it is not a setting"
    return f"unknown setting '{name}'; {TOOLBOX_NAMES.get(name, hint)}"


def _fit(hint: Any, value: Any) -> tuple[Any, str | None]:
    """`value` in the type of a setting, and what is wrong with it if it cannot be."""
    checks = getattr(hint, "__metadata__", ())
    hint = typing.get_args(hint)[0] if checks else hint
    if isinstance(hint, types.UnionType):
        if value is None:
            return None, None
        hint = typing.get_args(hint)[0]
    if hint is float and _is(int, value):
        value = float(value)
    if hint is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if isinstance(value, str):
            value = tuple(part.strip() for part in value.strip("[]() ").split(",") if part.strip())
        if not isinstance(value, list | tuple) or not all(_is(item, v) for v in value):
            return value, f"write a flat list of {'names' if item is str else 'numbers'}"
        value = tuple(value)
    elif not _is(hint, value):
        return value, f"write {KINDS[hint]}"
    return value, next((f"write {check.wanted}" for check in checks if not check.passes(value)), None)


KINDS = {
    bool: "True or False", int: "a whole number", float: "a number", str: "text in quotes", dict: "a dict",
    Callable: "a function or a class",
}  # fmt: skip


def _is(kind: type, value: Any) -> bool:
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, int | float if kind is float else kind)


def _problems_within(values: dict[str, Any]) -> list[str]:
    """What is wrong inside settings that have parts. Array infos are put into one form."""
    problems = []
    for name in ("input_array_info", "target_array_info"):
        if name in values:
            values[name], wrong = _array_info(values[name])
            problems += [f"{name} = {values[name]}; {wrong}"] if wrong else []
    names = values.get("classes", ("",))
    problems += [] if names else ["classes is empty; name at least one class"]
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    problems += [f"class '{name}' stands {names.count(name)} times in classes; write it once" for name in repeated]
    for name, value in values.get("thresholds", {}).items():
        if not (_is(float, value) and 0 < value < 1):
            problems.append(f"thresholds['{name}'] = {value}; write a probability between 0 and 1")
    if "classes" in values:
        problems += class_table.unknown_names(dict.fromkeys(names), values.get("extra_classes", ()))
    return problems + _spatial_problems(values.get("spatial_transforms", {})) + _field_problems(values)


def _problems_between(values: dict[str, Any]) -> list[str]:
    """What is wrong between settings that fit each by itself: functions that do not take what they will be given."""
    problems = []
    given: dict[str, tuple[int, dict]] = {
        "build_model": (1, values.get("model_kwargs", {})),
        "optimizer": (1, {"lr": 0.0, "weight_decay": 0.0}),
        "scheduler": (1, values.get("scheduler_kwargs", {})),
        "criterion": (3, {}),
        "process_func": (1, {}),
        "instance_func": (3, {}),
    }
    meanings = {name: meaning for table in (TrainConfig, ProcessConfig) for name, _, meaning in describe(table)}
    for name, (arguments, keywords) in given.items():
        if values.get(name) and (wrong := _refuses(values[name], arguments, keywords)):
            problems.append(f"{name} = {_as_text(values[name])}: {wrong}; {meanings[name]}")
    if values.get("scheduler_kwargs") and not values.get("scheduler"):
        problems.append(f"scheduler_kwargs = {values['scheduler_kwargs']} without a scheduler; set scheduler too")
    return problems


def _refuses(function: Callable, arguments: int, keywords: dict[str, Any]) -> str | None:
    """Why a function cannot be called with so many arguments and these keywords."""
    try:
        inspect.signature(function).bind(*[None] * arguments, **keywords)
    except TypeError as error:
        return str(error)
    except ValueError:  # one written in C need not say what it takes
        return None
    return None


def _field_problems(values: dict[str, Any]) -> list[str]:
    problems = []
    for name, fields in (("run_name", ()), *((folder, ("run_name",)) for folder in RUN_FOLDERS)):
        fields = ("model_name", "random_seed", *fields)
        try:
            values.get(name, "").format(**dict.fromkeys(fields, ""))
        except (KeyError, IndexError, ValueError, AttributeError):
            text = ", ".join(f"{{{field}}}" for field in fields)
            problems.append(f"{name} = {values[name]!r}; in braces write only {text}")
    return problems


def _array_info(info: dict) -> tuple[dict, str | None]:
    wanted = 'write {"shape": (z, y, x) in voxels, "scale": (z, y, x) in nm}'
    if any(isinstance(value, dict) for value in info.values()):
        return info, f"{wanted}, of one array; several are not supported, and the one has no name"
    try:
        shape, scale = tuple(map(operator.index, info["shape"])), tuple(map(float, info["scale"]))
    except (KeyError, TypeError, ValueError):
        return info, wanted
    if len(shape) == 2:  # a 2-D patch is one voxel thick
        shape, scale = (1, *shape), (scale[0], *scale) if len(scale) == 2 else scale
    fits = len(info) == 2 and len(shape) == len(scale) == 3 and min(shape) >= 1 and all(0 < s < math.inf for s in scale)
    return ({"shape": shape, "scale": scale}, None) if fits else (info, wanted)


def _spatial_problems(transforms: dict) -> list[str]:
    wanted = {
        "mirror": ('{"axes": {"x": 0.5}}, a probability for each axis', lambda p: _is(float, p) and 0 <= p <= 1),
        "rotate": ('{"axes": {"x": [-180, 180]}}, low and high in degrees for each axis', _is_angle_range),
        "transpose": ('{"axes": ["x", "y"]}, axes to permute', None),
    }
    problems = []
    for kind, spec in transforms.items():
        if kind not in wanted:
            problems.append(f"spatial_transforms: '{kind}' is none; mirror, transpose and rotate are")
            continue
        form, fits = wanted[kind]
        axes = spec.get("axes") if isinstance(spec, dict) and set(spec) == {"axes"} else None
        named = isinstance(axes, dict if fits else (list, tuple)) and all(axis in ("x", "y", "z") for axis in axes)
        if not named or len(set(axes)) < len(axes) or (fits and not all(map(fits, axes.values()))):
            problems.append(f"spatial_transforms['{kind}'] = {spec}; write {form}")
    return problems


def _is_angle_range(angles: Any) -> bool:
    return (
        isinstance(angles, list | tuple) and len(angles) == 2
        and all(_is(float, angle) and math.isfinite(angle) for angle in angles) and angles[0] <= angles[1]
    )  # fmt: skip


def _as_text(value: Any) -> str:
    """A setting in words that are the same in every run: without addresses, without the package a file was run in."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_as_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        items = ", ".join(map(_as_text, value))
        return f"[{items}]" if isinstance(value, list) else f"({items}{',' * (len(value) == 1)})"
    if isinstance(value, functools.partial):
        arguments = [*map(_as_text, value.args), *(f"{name}={_as_text(item)}" for name, item in value.keywords.items())]
        return f"{_as_text(value.func)}({', '.join(arguments)})"
    if hasattr(value, "__qualname__"):
        return f"{value.__module__.split('.')[-1]}.{value.__qualname__}"
    if type(value).__repr__ is object.__repr__:
        return f"{_as_text(type(value))}()"
    return repr(value)


def _short(path: Path) -> str:
    """A path as short as it can be said: relative to the working folder if it is inside."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
