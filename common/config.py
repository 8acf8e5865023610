"""Every setting: its sentence, unit, default and check, once. Reads a Python file, refuses what it does not know."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from common import classes as class_table

REPOSITORY = Path(__file__).resolve().parent.parent

Positive = lambda value: value > 0  # noqa: E731
NotNegative = lambda value: value >= 0  # noqa: E731
Fraction = lambda value: 0 <= value <= 1  # noqa: E731


def one_of(*choices: str) -> Callable[[str], bool]:
    """Check that a value is one of `choices`."""

    def check(value: str) -> bool:
        return value in choices

    check.wanted = "one of " + ", ".join(map(repr, choices))  # type: ignore[attr-defined]
    return check


Positive.wanted, NotNegative.wanted, Fraction.wanted = "above 0", "0 or more", "between 0 and 1"  # type: ignore[attr-defined]


def interval(value: Sequence[float]) -> bool:
    """Check that a value is (low, high) with 0 <= low <= high."""
    return len(value) == 2 and 0 <= value[0] <= value[1]


interval.wanted = "two numbers (low, high), not negative, in order"  # type: ignore[attr-defined]


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one training run, checked. Read with `load_config`; the README's table is made from this class."""

    build_model: Callable
    """`build_model(classes, **model_kwargs)` gives the network; called after seeding. Raw (B, 1, z, y, x) in, logits (B, classes, z, y, x) out."""
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
    """Where to start: "latest" or "best" of this run if there is one, "scratch", or a checkpoint file whose weights to take."""
    model_save_path: str = "checkpoints/{model_name}/{run_name}"
    """Folder of latest.pt and best.pt."""
    logs_save_path: str = "logs/{model_name}/{run_name}"
    """Folder of the TensorBoard events and history.csv."""

    data_path: str = "data"
    """Data root that relative paths in the datasplit start from, itself relative to the repository; CELLMAP_DATA and --data go before it."""
    datasplit_path: str = "datasplit.csv"
    """Which crops train and which validate."""
    extra_classes: tuple[str, ...] = ()
    """Class names outside the challenge's table; nothing is inferred about them."""
    cache_path: str = "cache"
    """Folder of decoded crops and pretrained weights, relative to the repository; CELLMAP_CACHE goes before it."""
    cache_gb: Annotated[float, Positive] = 100.0
    """Largest size of the decoded crops on disk, GB; the least recently used ones are removed, a run that needs more stops."""
    raw_range: tuple[float, ...] = ()
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
    """Of the patches drawn for a class, the fraction placed to contain a positive voxel of it; the others lie anywhere."""
    spatial_transforms: dict = field(default_factory=dict)
    """`{"mirror": {"axes": {"x": 0.5}}, "transpose": {"axes": ["x", "y"]}, "rotate": {"axes": {"z": [-180, 180]}}}`: probability per axis, axes to permute, degrees about each axis."""
    intensity_probability: Annotated[float, Fraction] = 0.5
    """Probability of each of the three intensity changes below."""
    gamma_range: Annotated[tuple[float, ...], interval] = (1.0, 1.0)
    """Exponent applied to raw in [0, 1]."""
    contrast_range: Annotated[tuple[float, ...], interval] = (1.0, 1.0)
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
    criterion: Callable | None = None
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
    """Of the forward pass: "auto" is bf16 where the device has it, else fp16 with loss scaling on CUDA and fp32 on a CPU."""
    device: str = "auto"
    """ "auto" is CUDA, MPS or the CPU, the first that there is."""
    channels_last: bool = True
    """Keep activations as z, y, x, channel in memory: same result, faster convolutions."""
    random_seed: Annotated[int, NotNegative] = 42
    """Seed of weights, samples and augmentation; SEED in the environment goes before it."""

    training_time_limit: Annotated[float, NotNegative] = 0.0
    """Seconds after which this call ends with the epoch then under way, as for a cluster's queue; the next call goes on. 0 is no limit."""
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

    @property
    def folder(self) -> Path:
        """The experiment's folder, absolute."""
        return Path(self.base_experiment_path)

    def path(self, name: str) -> Path:
        """A path setting with its fields filled in, absolute."""
        names = {"model_name": self.model_name, "random_seed": self.random_seed}
        text = getattr(self, name).format(run_name=self.run_name.format(**names), **names)
        root = REPOSITORY if name in ("data_path", "cache_path") else self.folder
        return (root / Path(text).expanduser()).resolve()

    def record(self) -> dict[str, str]:
        """Every setting as text, functions by their name, for logs and checkpoints."""
        return {f.name: _as_text(getattr(self, f.name)) for f in dataclasses.fields(self)}


MAY_CHANGE = frozenset(
    """base_experiment_path model_name run_name load_model model_save_path logs_save_path data_path datasplit_path cache_path
    cache_gb num_workers epochs device precision channels_last early_stopping_patience training_time_limit figure_samples""".split()
)
"""Settings that a continued run may change: they take effect at once and do not change what is learnt from what."""


def load_config(
    path: str | Path, overrides: Sequence[str] = (), data: str | Path | None = None, **settings: Any
) -> TrainConfig:
    """The checked settings of a training configuration file (or of the experiment folder that holds train_config.py).

    overrides: "name=value" or "name.key=value", as `--set` takes them; `settings` the same as Python values; data: the data
    root. Raises FileNotFoundError, or ValueError with everything that is wrong in one message.
    """
    path = _config_file(path, "train_config.py")
    values = {**_read_settings(path, TrainConfig), **settings}
    problems = _apply_environment(values, data)
    problems += [problem for override in overrides if (problem := _override(values, override))]
    values["base_experiment_path"] = str(path.parent / values.get("base_experiment_path", ""))
    values.setdefault("model_name", "")
    values["model_name"] = values["model_name"] or path.parent.name
    return _checked(path, TrainConfig, values, problems)


@dataclass(frozen=True)
class ProcessConfig:
    """What turns logits into masks, and what that needs."""

    process_func: Callable
    """`process_func(logits)`: (B, 1, z, y, x) float logits of one class to an array of the same shape, 1 where the class is."""
    classes: tuple[str, ...]
    """The classes to process."""
    input_array_info: dict
    """Shape (voxels) and scale (nm) of the blocks."""
    batch_size: Annotated[int, Positive] = 8
    """Blocks at a time."""


def load_process_config(path: str | Path) -> ProcessConfig:
    """The checked settings of a process_config.py (or of the experiment folder that holds it)."""
    path = _config_file(path, "process_config.py")
    return _checked(path, ProcessConfig, _read_settings(path, ProcessConfig), [])


def describe(table: type = TrainConfig) -> list[tuple[str, str, str]]:
    """(name, default, meaning) of each setting, read from the one place where they stand."""
    body = ast.parse(inspect.getsource(table)).body[0].body  # type: ignore[attr-defined]
    rows = []
    for node, after in zip(body, body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr):
            default = "required" if node.value is None else ast.unparse(node.value)
            default = {"field(default_factory=dict)": "{}"}.get(default, default)
            rows.append((node.target.id, default, after.value.value.strip()))  # type: ignore[attr-defined]
    return rows


def load_module(path: Path) -> types.ModuleType:
    """Run a Python file of an experiment afresh, as part of a package of its own, so that `from .model import ...` works.

    The package's name is made from the absolute path: two copies of an experiment never see each other's modules.
    """
    folder = path.resolve().parent
    package = f"experiment_{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}_{folder.name}"
    for name in [n for n in sys.modules if n == package or n.startswith(package + ".")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    spec = importlib.util.spec_from_loader(package, loader=None, is_package=True)
    sys.modules[package] = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules[package].__path__ = [str(folder)]
    return importlib.import_module(f"{package}.{path.stem}")


def data_root(given: str | Path | None = None, otherwise: str | Path = REPOSITORY / "data") -> Path:
    """The data root: the given one, else CELLMAP_DATA, else `otherwise`."""
    return Path(given or os.environ.get("CELLMAP_DATA") or otherwise).absolute()


def _config_file(path: str | Path, name: str) -> Path:
    path = Path(path)
    path = path / name if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such configuration; write the path of an experiment's {name}")
    return path.resolve()


def _read_settings(path: Path, table: type) -> dict[str, Any]:
    """The names that a configuration file gives and that are settings; definitions and imports that it works with are left out."""
    module = load_module(path)
    known = {f.name for f in dataclasses.fields(table)}
    values = {}
    for name, value in vars(module).items():
        is_tool = isinstance(value, types.ModuleType) or getattr(value, "__name__", None) == name
        if not name.startswith("_") and name != "annotations" and (name in known or not is_tool):
            values[name] = value
    return values


def _apply_environment(values: dict[str, Any], data: str | Path | None) -> list[str]:
    """Put SEED, CELLMAP_DATA, CELLMAP_CACHE and the data root of the command line before what the file says."""
    if "SEED" in os.environ:
        values["random_seed"] = _literal(os.environ["SEED"])
    if "CELLMAP_CACHE" in os.environ:
        values["cache_path"] = str(Path(os.environ["CELLMAP_CACHE"]).absolute())
    if data or "CELLMAP_DATA" in os.environ:
        root = data_root(data)
        values["data_path"] = str(root)
        if not root.is_dir():
            return [f"the data root {root} is no folder; give --data or CELLMAP_DATA the folder that holds the datasets"]
    return []


def _override(values: dict[str, Any], text: str) -> str | None:
    """Apply one "name=value" or "name.key=value"; returns what is wrong with it."""
    name, equals, value = text.partition("=")
    if not equals:
        return f"--set {text}: no '='; write --set name=value"
    name, *keys = name.strip().replace("-", "_").split(".")
    if not keys:
        values[name] = _literal(value)
        return None
    values[name] = inner = dict(values.get(name) or {})
    for key in keys[:-1]:
        inner[key] = inner = dict(inner.get(key) or {})
    inner[keys[-1]] = _literal(value)
    return None


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.strip().lower(), text.strip())


def _checked(path: Path, table: type, values: dict[str, Any], problems: list[str]) -> Any:
    fields = {f.name: f for f in dataclasses.fields(table)}
    hints = typing.get_type_hints(table, include_extras=True)
    for name in [name for name in values if name not in fields]:
        near = difflib.get_close_matches(name, fields, 1, 0.5)
        hint = f"did you mean '{near[0]}'?" if near else "remove it, or begin its name with _ if it is not a setting"
        problems.append(f"unknown setting '{name}'; {hint}")
        del values[name]
    for name, f in fields.items():
        if name in values:
            values[name], wrong = _fit(hints[name], values[name])
            if wrong:
                problems.append(f"{name} = {_as_text(values[name])}; {wrong}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            problems.append(f"'{name}' is missing; {dict((r[0], r[2]) for r in describe(table))[name]}")
    if not problems:
        problems = _together(values)
    if problems:
        raise ValueError("\n".join(f"{_short(path)}: {problem}" for problem in problems))
    return table(**values)


def _fit(hint: Any, value: Any) -> tuple[Any, str | None]:
    """`value` in the type of a setting, and what is wrong with it if it cannot be."""
    checks = getattr(hint, "__metadata__", ())
    hint = typing.get_origin(hint) is Annotated and typing.get_args(hint)[0] or hint
    if isinstance(hint, types.UnionType):
        hint = None if value is None else typing.get_args(hint)[0]
    if hint is None:
        return value, None
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if typing.get_origin(hint) is tuple:
        item = typing.get_args(hint)[0]
        if isinstance(value, str):
            value = tuple(part.strip() for part in value.strip("[]() ").split(",") if part.strip())
        if not isinstance(value, list | tuple) or not all(_is(item, v) for v in value):
            return value, f"write a flat list of {'names' if item is str else 'numbers'}"
        value = tuple(value)
    elif hint in (Callable, typing.get_origin(Callable[[], None])) or "Callable" in str(hint):
        if not callable(value):
            return value, "write a function or a class"
    elif not _is(hint, value):
        return value, f"write {_article(hint)}"
    for check in checks:
        if not check(value):
            return value, f"write {check.wanted}"
    return value, None


def _is(kind: type, value: Any) -> bool:
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def _article(kind: type) -> str:
    return {bool: "True or False", int: "a whole number", float: "a number", str: "text in quotes", dict: "a dict"}[kind]


def _together(values: dict[str, Any]) -> list[str]:
    """What is wrong inside the nested settings, or between settings that fit each by itself."""
    problems = []
    for name in ("input_array_info", "target_array_info"):
        if name in values:
            values[name], wrong = _array_info(values[name])
            problems += [f"{name} = {values[name]}; {wrong}"] if wrong else []
    names = values["classes"]
    problems += class_table.unknown_names(names, values.get("extra_classes", ()))
    problems += [f"class '{n}' stands {names.count(n)} times in classes; once" for n in set(names) if names.count(n) > 1]
    problems += [] if names else ["classes is empty; name at least one class"]
    problems += _spatial_problems(values.get("spatial_transforms", {}))
    if len(values.get("raw_range", ())) not in (0, 2) or (values.get("raw_range") and np.diff(values["raw_range"]) <= 0):
        problems.append(f"raw_range = {values['raw_range']}; write two numbers (low, high)")
    try:
        values.get("run_name", "").format(random_seed=0, model_name="")
        for name in ("model_save_path", "logs_save_path"):
            values.get(name, "").format(random_seed=0, model_name="", run_name="")
    except (KeyError, IndexError, ValueError) as error:
        problems.append(f"a path has a field {error} that is none; {{model_name}}, {{run_name}} and {{random_seed}} are")
    return problems


def _array_info(info: dict) -> tuple[dict, str | None]:
    wanted = 'write {"shape": (z, y, x) in voxels, "scale": (z, y, x) in nm}'
    if set(info) != {"shape", "scale"}:
        nested = any(isinstance(value, dict) for value in info.values())
        return info, wanted + ("; one array only, several are not supported" if nested else "")
    try:
        shape, scale = tuple(int(n) for n in info["shape"]), tuple(float(s) for s in info["scale"])
    except (TypeError, ValueError):
        return info, wanted
    if len(shape) == 2:  # a 2-D patch is one voxel thick
        shape, scale = (1, *shape), (scale[0], *scale) if len(scale) == 2 else scale
    if len(shape) != 3 or len(scale) != 3 or min(shape) < 1 or min(scale) <= 0 or shape[-2:] != tuple(info["shape"])[-2:]:
        return info, wanted
    return {"shape": shape, "scale": scale}, None


def _spatial_problems(transforms: dict) -> list[str]:
    problems = []
    for kind, spec in transforms.items():
        if kind not in ("mirror", "transpose", "rotate"):
            problems.append(f"spatial_transforms: '{kind}' is none; mirror, transpose and rotate are")
            continue
        axes = spec.get("axes") if isinstance(spec, dict) and set(spec) == {"axes"} else None
        if axes is None or not set(axes) <= set("zyx") or (kind != "transpose" and not isinstance(axes, dict)):
            problems.append(f"spatial_transforms['{kind}'] = {spec}; write {{'axes': ...}} over z, y and x")
        elif kind == "mirror" and not all(_is(float, p) and 0 <= p <= 1 for p in axes.values()):
            problems.append(f"spatial_transforms['mirror'] = {spec}; write a probability for each axis")
        elif kind == "rotate" and not all(_is_angle_range(angles) for angles in axes.values()):
            problems.append(f"spatial_transforms['rotate'] = {spec}; write [low, high] in degrees for each axis")
    return problems


def _is_angle_range(angles: Any) -> bool:
    return isinstance(angles, list | tuple) and len(angles) == 2 and all(_is(float, a) for a in angles) and angles[0] <= angles[1]


def _as_text(value: Any) -> str:
    return f"{value.__module__.split('.')[-1]}.{value.__qualname__}" if hasattr(value, "__qualname__") else repr(value)


def _short(path: Path) -> str:
    """A path as short as it can be said: relative to the working folder if it is inside."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
