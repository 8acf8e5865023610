"""Checks settings one by one and against each other; everything wrong in one message."""

from __future__ import annotations

import inspect
import math
import os
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from common import classes as class_table
from common.config.as_text import as_text
from common.config.augmentations import augmentation_problems
from common.config.calls import call_problems, refuses
from common.config.derived import derived_problems
from common.config.heads import head_problems
from common.config.input_channels import RAW, apart_from_raw, channel_problems
from common.config.instance_options import option_problems
from common.config.kinds import LIMIT, fit, is_a, plain, wrong_fields
from common.config.other_names import unknown_setting
from common.config.settings import CHALLENGE, RUN_FOLDERS, ProcessConfig, TrainConfig, describe
from common.config.spatial import spatial_problems
from common.errors import refuse
from common.talk import nm, voxels

Table = TypeVar("Table", bound=TrainConfig | ProcessConfig)


def check_settings(
    where: str, values: Mapping[str, Any], problems: Sequence[str], table: type[Table]
) -> Table:
    """The values as a `table` of settings.

    Raises UserError with these problems and all that are found, a line each, `where` before it.
    """
    written_in = "input_channels" if _are_channels(values) else "input_array_info"
    values, unnamed = _channels_apart(values, table)
    fitting, misfits = _each_by_itself(values, table)
    fitting, malformed = _arrays_in_one_form(fitting, table)
    of_channels = _class_problems(fitting)
    if not malformed:
        of_channels += derived_problems(fitting, _wrong_name)
        of_channels = of_channels or head_problems(fitting)
    of_arrays = malformed or [*_patch_problems(fitting), *_size_problems(fitting)]
    input_info = {} if malformed else fitting.get("input_array_info", {})
    every = [
        *problems,
        *unnamed,
        *misfits,
        *_missing(values, table),
        *of_arrays,
        *of_channels,
        *_exclusion_problems(fitting),
        *_sampling_weight_problems(fitting),
        *channel_problems(fitting.get("input_channels", {}), written_in),
        *spatial_problems(fitting.get("spatial_transforms", {})),
        *augmentation_problems(fitting.get("augmentations", {}), input_info),
        *_name_problems(fitting),
        *call_problems(fitting),
        *_problems_without_effect(fitting),
        *option_problems(fitting),
        *_metric_problems(fitting),
        *_preview_problems(fitting),
    ]
    refuse(every, where)
    return table(**fitting)


def _channels_apart(values: Mapping[str, Any], table: type) -> tuple[Mapping[str, Any], list[str]]:
    """The values with input_channels out of an input_array_info that names raw and others."""
    raw, others = apart_from_raw(values.get("input_array_info"))
    if not others:
        return values, []
    apart = {**values, "input_array_info": raw}
    if table is ProcessConfig:  # what it processes are channels that come out
        return apart, []
    if _are_channels(values):
        return apart, [f"input_channels, and input_array_info names {RAW} and others; write one"]
    return {**apart, "input_channels": others}, []


def _are_channels(values: Mapping[str, Any]) -> bool:
    given = values.get("input_channels")
    return isinstance(given, dict) and bool(given)


def _each_by_itself(values: Mapping[str, Any], table: type) -> tuple[dict[str, Any], list[str]]:
    """The values that fit their settings, in those types, and what is wrong with the others."""
    hints = typing.get_type_hints(table, include_extras=True)
    names = [row.name for row in describe(table)]
    fitting: dict[str, Any] = {}
    problems = []
    for name, given in values.items():
        if name not in names:
            problems.append(unknown_setting(name, names))
            continue
        value, wanted = fit(hints[name], given)
        if wanted:
            problems.append(f"{name} = {_shown(value)}; {wanted}")
        else:
            fitting[name] = value
    return fitting, problems


LONGEST_VALUE = 200
"""Characters of a value in a sentence: a number can have thousands."""


def _shown(value: Any) -> str:
    text = as_text(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _missing(values: Mapping[str, Any], table: type) -> list[str]:
    problems = []
    for row in describe(table):
        if row.default == "required" and row.name not in values:
            problems.append(f"'{row.name}' is missing; {row.meaning}")
    return problems


def _arrays_in_one_form(values: dict[str, Any], table: type) -> tuple[dict[str, Any], list[str]]:
    """The values with their array infos as 3-D shape and scale, and what is wrong with those."""
    values = dict(values)
    problems = []
    for name in ("input_array_info", "target_array_info"):
        if name in values:
            values[name], wanted = _array_info(values[name])
            if wanted and table is TrainConfig and _is_of_several(values[name]):
                wanted += (
                    ", of raw, which has no name; several are not supported, but further channels "
                    "of this shape and scale, by the paths of their volumes: input_channels"
                )
            if wanted:
                problems.append(f"{name} = {values[name]}; {wanted}")
    return values, problems


def _is_of_several(info: dict) -> bool:
    """Whether arrays are written by their names, as in the toolbox."""
    return any(isinstance(value, dict) for value in info.values())


def _array_info(info: dict) -> tuple[dict, str]:
    """Shape and scale of an array as tuples of three, and what to write if they cannot be."""
    wanted = 'write {"shape": (z, y, x) in voxels, "scale": (z, y, x) in nm}'
    if _is_of_several(info):
        return info, wanted
    shape = _numbers(int, info.get("shape"))
    scale = _numbers(float, info.get("scale"))
    if len(shape) == 2:  # a 2-D patch is one voxel thick
        shape = (1, *shape)
        if len(scale) == 2:
            scale = (scale[0], *scale)
    if len(info) != 2 or len(shape) != 3 or len(scale) != 3:
        return info, wanted
    if min(shape) < 1 or max(shape) >= LIMIT or not all(0 < size < math.inf for size in scale):
        return info, wanted
    return {"shape": shape, "scale": scale}, ""


def _numbers(kind: type, given: Any) -> tuple[Any, ...]:
    """Numbers along z, y, x, listed in whatever way, as of that kind; () where one is none.

    A number by itself is the same along each.
    """
    given = given.tolist() if hasattr(given, "tolist") else given
    if is_a(kind, given):
        return (kind(given),) * 3
    listed = [plain(number) for number in given] if isinstance(given, Iterable) else []
    # True is no voxel, and "888" no list
    if isinstance(given, str) or not all(is_a(kind, number) for number in listed):
        return ()
    return tuple(kind(number) for number in listed)


def _patch_problems(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with a target patch that reaches beyond its input patch.

    A shape that no network gives is left to the network, which knows the one to write.
    """
    if "input_array_info" not in values or "target_array_info" not in values:
        return []
    given = values["input_array_info"]
    wanted = values["target_array_info"]
    axes = zip(given["shape"], wanted["shape"], _extent(given), _extent(wanted), strict=True)
    for size, target_size, extent, target_extent in axes:
        # sizes such as 5.24 nm are rounded
        if target_size <= size and target_extent > 1.001 * extent:
            return [
                f"target_array_info covers {nm(_extent(wanted))} nm, and input_array_info "
                f"{nm(_extent(given))} nm; a network cannot tell what it does not see: write "
                "another scale of the target, or a larger input"
            ]
    return []


MOST_VOXELS = 2**40
"""Of a batch, 4 TB of float32: more than the GPUs of a whole run have."""

MOST_SAMPLES = 2**63
"""Of a run: NumPy and torch do not count as far."""

RUN_LENGTH = ("epochs", "iterations_per_epoch", "gradient_accumulation_steps", "batch_size")
"""Settings whose product is the number of samples of a run."""


def _size_problems(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with patches and batches that no memory holds."""
    problems = []
    batch_size = values.get("batch_size", 1)
    counts = {name: values.get(name, 1) for name in RUN_LENGTH}
    if math.prod(counts.values()) >= MOST_SAMPLES:
        texts = [f"{name} = {value}" for name, value in counts.items() if name in values]
        problems.append(f"{', '.join(texts)}: more samples than can be counted; write fewer")
    for name in ("input_array_info", "target_array_info"):
        if not values.get(name):
            continue
        shape = values[name]["shape"]
        if math.prod(shape) > MOST_VOXELS:
            problems.append(
                f"{name}: a patch of {voxels(shape)} voxels, which no memory holds; write a "
                "smaller shape"
            )
        elif math.prod(shape) * batch_size > MOST_VOXELS:
            problems.append(
                f"batch_size = {batch_size} of patches of {voxels(shape)} voxels, which no memory "
                "holds; write a smaller one"
            )
            break
    return problems


def _extent(info: Mapping[str, Any]) -> list[float]:
    """Nm of a patch along z, y, x."""
    return [size * scale for size, scale in zip(info["shape"], info["scale"], strict=True)]


def _class_problems(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with the names of classes, and with the thresholds given by class."""
    problems = []
    if "classes" in values:
        names = values["classes"]
        if not names:
            problems.append("classes is empty; name at least one class")
        distinct = list(dict.fromkeys(names))
        for name in distinct:
            count = names.count(name)
            if count > 1:
                problems.append(f"class '{name}' stands {count} times in classes; write it once")
        problems += class_table.unknown_names(distinct, _own_classes(values))
    problems += _relations_without_effect(values)
    problems += class_table.relation_problems(
        values.get("class_relations", {}),
        _own_classes(values),
        values.get("exclusive_classes", ()),
    )
    for name, value in values.get("thresholds", {}).items():
        if not (is_a(float, value) and 0 < value < 1):
            problems.append(
                f"thresholds['{name}'] = {value!r}; write a probability between 0 and 1"
            )
    return problems


def _exclusion_problems(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with classes that are said to exclude each other, or to be counter-examples."""
    exclusive = values.get("exclusive_classes", ())
    counter = values.get("counter_classes", ())
    problems = []
    if not values.get("use_mutual_exclusion", True):
        problems += [
            f"{name} = {as_text(values[name])} with use_mutual_exclusion = False, which takes no "
            "class for negative where another is; leave one of them out"
            for name in ("exclusive_classes", "counter_classes")
            if values.get(name)
        ]
    known = _own_classes(values)
    for name, given in (("exclusive_classes", exclusive), ("counter_classes", counter)):
        for sentence in class_table.unknown_names(dict.fromkeys(given), known):
            problems.append(f"{name}: {sentence}")
    if exclusive and len(set(exclusive)) < max(2, len(exclusive)):
        problems.append(
            f"exclusive_classes = {exclusive}; name two or more, each once, or leave it out"
        )
    for first, second in class_table.overlapping(exclusive):
        problems.append(
            f"exclusive_classes: '{first}' and '{second}' share voxels by the class table; leave "
            "one of them out"
        )
    learnt = [name for name in counter if name in values.get("classes", ())]
    if learnt:
        problems.append(f"counter_classes: {', '.join(learnt)} is learnt; take it out of one")
    return problems


def _relations_without_effect(values: Mapping[str, Any]) -> list[str]:
    """What of class_relations the settings of true negatives leave unused."""
    relations = values.get("class_relations", {})
    said: set[str] = set()
    for about in relations.values():
        said |= set(about) if isinstance(about, Mapping) else set()
    if values.get("use_mutual_exclusion", True) or "excludes" not in said:
        return []
    return [
        "class_relations: 'excludes' with use_mutual_exclusion = False, which takes no class for "
        "negative where another is; leave one of them out"
    ]


def _own_classes(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes outside the table."""
    return (*values.get("extra_classes", ()), *values.get("class_relations", {}))


LARGEST_WEIGHT = 1e9
"""Of a class or crop in drawing: the sum of weights must be a number."""


def _sampling_weight_problems(values: Mapping[str, Any]) -> list[str]:
    problems = []
    for name, weight in values.get("class_sampling_weights", {}).items():
        if "classes" in values and name not in values["classes"]:
            problems.append(f"class_sampling_weights['{name}']: not one of classes; remove it")
        elif not (is_a(float, weight) and 0 <= weight <= LARGEST_WEIGHT):
            problems.append(
                f"class_sampling_weights['{name}'] = {weight}; write a number, 0 or more, up to "
                f"{LARGEST_WEIGHT:g}"
            )
    for pattern, weight in values.get("crop_sampling_weights", {}).items():
        if not isinstance(pattern, str):
            problems.append(
                f"crop_sampling_weights: {pattern!r} is no pattern; write dataset/crop in quotes"
            )
        elif not (is_a(float, weight) and 0 < weight <= LARGEST_WEIGHT):
            problems.append(
                f"crop_sampling_weights['{pattern}'] = {weight}; write a number above 0, up to "
                f"{LARGEST_WEIGHT:g} (a crop that is never to be drawn is left out of the split)"
            )
    return problems


def _name_problems(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with names and folders of a run, and with what stands in braces there."""
    problems = []
    for name in ("run_name", *RUN_FOLDERS):
        if name not in values:
            continue
        text = values[name]
        if name == "run_name":
            problem = wrong_fields(text, ("model_name", "random_seed")) or _wrong_name(text)
        else:
            fields = ("model_name", "random_seed", "run_name")
            problem = wrong_fields(text, fields) or _leads_out(text)
        if problem:
            problems.append(f"{name} = {text!r}; {problem}")
    model_name = values.get("model_name")
    if model_name:  # the folder's name is taken for ""
        problem = _wrong_name(model_name)
        if problem:
            problems.append(f"model_name = {model_name!r}; {problem}")
    for setting in ("extra_classes", "class_relations"):
        for name in values.get(setting, ()):  # the name of a class is a folder's, too
            is_text = isinstance(name, str)
            problem = _wrong_name(name) if is_text else "write the name of a class, in quotes"
            if problem:
                problems.append(f"{setting}: {name!r}; {problem}")
    return problems


LONGEST_NAME = 200
"""Bytes of a name: file systems take 255, and suffixes and numbers are added to it."""


def _wrong_name(text: str) -> str:
    """What to write if a name cannot be that of a folder; "" if it can."""
    if any(sign in "/\\" or not sign.isprintable() for sign in text):
        return "it is a name and no path; write it without / and \\ and signs that do not print"
    # a hidden folder is not found among the runs, and an option is no argument
    if not text or text[0] in ".-" or text != text.strip():
        return "write a name that begins with no dot, dash or space and ends with no space"
    if len(text.encode(errors="replace")) > LONGEST_NAME:
        return f"write a name of at most {LONGEST_NAME} bytes"
    return ""


def _leads_out(text: str) -> str:
    """What to write if a relative path goes above the folder that it starts from; "" if not."""
    if Path(os.path.normpath(text)).parts[:1] != (os.pardir,):
        return ""
    return (
        "it leads out of the experiment's folder; write a folder in it, or an absolute path if "
        "another place is meant"
    )


def _problems_without_effect(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with settings that have no effect beside others, or without them."""
    problems = []
    if values.get("scheduler_kwargs") and not values.get("scheduler"):
        given = values["scheduler_kwargs"]
        problems.append(f"scheduler_kwargs = {given} without a scheduler; set scheduler too")
    problems += _loss_keyword_problems(values.get("criterion"), values.get("criterion_kwargs"))
    if values.get("init_logit_rms") and not values.get("init_output_to_prior", True):
        problems.append(
            f"init_logit_rms = {values['init_logit_rms']} with init_output_to_prior = False, which "
            "leaves the output layer as it is; leave one of them out"
        )
    if values.get("scheduler_step") == "iteration" and not values.get("scheduler"):
        problems.append("scheduler_step = 'iteration' without a scheduler; set scheduler too")
    weights = values.get("class_sampling_weights")
    if weights and not values.get("weighted_sampler", True):
        problems.append(
            f"class_sampling_weights = {weights} with weighted_sampler = False, which draws no "
            "classes; set weighted_sampler = True, or leave the weights out"
        )
    return problems


METRICS = ("dice", "iou", "precision", "recall", "loss")
"""What best_metric may be without metrics of the user's own."""


def _metric_problems(values: Mapping[str, Any]) -> list[str]:
    """What is wrong with the user's metrics, and with a best_metric that is none."""
    own = values.get("metrics", {})
    problems = []
    for name, metric in own.items():
        if name in (*METRICS, CHALLENGE) or not isinstance(name, str) or not name.isidentifier():
            problems.append(f"metrics[{name!r}]; give it another name, of letters, digits and _")
        elif not callable(metric) or refuses(metric, 4, {}):
            problems.append(f"metrics['{name}'] = {as_text(metric)}; write metric(tp, fp, fn, tn)")
    if values.get("metric_smoothing") == 1:
        problems.append("metric_smoothing = 1 keeps the first value forever; write 0.9, or 0")
    best = values.get("best_metric", "dice")
    every = values.get("validation_score_every", 0)
    if best == CHALLENGE and not every:
        problems.append(
            "best_metric = 'challenge' with validation_score_every = 0, which never scores; write "
            "validation_score_every = 5"
        )
    if best == CHALLENGE and every > values.get("epochs", every):
        problems.append(
            f"validation_score_every = {every} is more than epochs, so that best_metric has no "
            "value; write fewer"
        )
    if best not in (*METRICS, CHALLENGE, *own):
        choices = ", ".join(map(repr, (*METRICS, *own)))
        problems.append(f"best_metric = '{best}'; write one of {choices}")
    return problems


def _loss_keyword_problems(criterion: Any, keywords: dict[str, Any] | None) -> list[str]:
    """What is wrong with criterion_kwargs that no criterion takes."""
    if not keywords:
        return []
    given = f"criterion_kwargs = {as_text(keywords)}"
    if criterion is None:
        return [f"{given} without a criterion; set criterion too"]
    if hasattr(criterion, "named_buffers") and not inspect.isclass(criterion):
        name = type(criterion).__name__
        return [f"{given} with a criterion that is made already; write criterion = {name}"]
    return []


def _preview_problems(values: Mapping[str, Any]) -> list[str]:
    every = values.get("preview_every", 0)
    problems = []
    if every and not values.get("figure_crops", 1):
        problems.append(
            f"preview_every = {every} with figure_crops = 0, which shows no crop; write "
            "figure_crops = 1"
        )
    if values.get("preview_tiff") and not every:
        problems.append("preview_tiff without preview_every; write preview_every = 10")
    return problems
