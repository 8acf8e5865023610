"""The Custom Scalars page of TensorBoard: charts of losses and means, and of related classes."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalars
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.summary.writer.record_writer import RecordWriter

from common.classes import GROUP_ATOMS, TESTED, atoms_of
from common.runs.history import METRICS
from common.typed import is_number

FILE = "layout/events.out.tfevents.layout"
"""Event file of the page: TensorBoard takes it from any run; ours holds nothing else."""

FINAL = ("dice", "iou", "loss")
"""Columns of the HPARAMS page: a run has its best_metric and its loss."""

BEGAN = 1.0
"""Wall time of the events, s: always the same, so that the file is the same each time."""


def write(path: Path, differing: Mapping[str, Sequence[str]] | None = None) -> None:
    """Write the event file of the page, unless it is there already."""
    version = Event(wall_time=BEGAN, file_version="brain.Event:2")
    content = io.BytesIO()
    writer = RecordWriter(content)
    for event in (version, layout_event(), hparams_event(differing or {})):
        writer.write(event.SerializeToString())
    # a TensorBoard that is running need not read it again
    if path.is_file() and path.read_bytes() == content.getvalue():
        return
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.getvalue())


def layout_event() -> Event:
    """Return the page: charts of losses and means, and of each class by metric and group."""
    page = layout_pb2.Layout()
    charts = {"loss": "loss/(train|validation)$"}
    charts |= {f"mean {metric}": f"mean/{metric}(/train|_smoothed)?$" for metric in METRICS}
    _add_part(page, "losses and means", charts)
    for metric in METRICS:
        # a chart a class: within a chart colours tell runs apart, and nothing tells classes
        for title, names in class_groups().items():
            charts = {name: f"{metric}/{name}$" for name in names}
            _add_part(page, f"{metric}: {title}", charts, closed=True)
        # extra_classes, and names of the challenge that are not tested
        others = {"other classes": f"{metric}/(?!({'|'.join(TESTED)})$)"}
        _add_part(page, f"{metric}: other classes", others, closed=True)
    tensor = TensorProto(dtype="DT_STRING", string_val=[page.SerializeToString()])
    value = Summary.Value(
        tag=custom_scalars.CONFIG_SUMMARY_TAG,
        metadata=custom_scalars.create_summary_metadata(),
        tensor=tensor,
    )
    return Event(wall_time=BEGAN, summary=Summary(value=[value]))


def hparams_event(differing: Mapping[str, Sequence[str]]) -> Event:
    """Return the columns of the HPARAMS page: settings that differ, and final metrics.

    differing: the values of each such setting. TensorBoard takes the columns from any one run that
    has a list; runs have none, because none knows what the others were set to.
    """
    columns = []
    for name, values in differing.items():
        are_numbers = all(is_number(value) for value in values)
        kind = api_pb2.DATA_TYPE_FLOAT64 if are_numbers else api_pb2.DATA_TYPE_STRING
        if set(values) <= {"True", "False"}:
            kind = api_pb2.DATA_TYPE_BOOL
        columns.append(api_pb2.HParamInfo(name=name, type=kind, differs=True))
    metrics = []
    for name in FINAL:
        tag = api_pb2.MetricName(tag=f"final/{name}")
        metrics.append(api_pb2.MetricInfo(name=tag))
    experiment = api_pb2.Experiment(hparam_infos=columns, metric_infos=metrics)
    content = plugin_data_pb2.HParamsPluginData(experiment=experiment)
    value = Summary.Value(
        tag=hparams.EXPERIMENT_TAG,
        metadata=hparams.create_summary_metadata(content),
        tensor=hparams.NULL_TENSOR,
    )
    return Event(wall_time=BEGAN, summary=Summary(value=[value]))


def _add_part(
    page: layout_pb2.Layout, title: str, charts: Mapping[str, str], closed: bool = False
) -> None:
    """Add a part of the page; charts: title to a regular expression for the tags shown in it."""
    category = page.category.add(title=title, closed=closed)
    for name, expression in charts.items():
        content = layout_pb2.MultilineChartContent(tag=[expression])
        category.chart.add(title=name, multiline=content)


def class_groups() -> dict[str, list[str]]:
    """Return the tested classes grouped by first name: mito with mito_mem and mito_lum.

    Classes without relatives are grouped by place: cell or nucleus.
    """
    families = defaultdict(list)
    for name in TESTED:
        families[name.split("_")[0]].append(name)
    groups: dict[str, list[str]] = defaultdict(list)
    for family, names in families.items():
        atoms = atoms_of(names[0])
        if len(names) > 1:
            groups[family] += names
        elif atoms and atoms <= GROUP_ATOMS["nuc"]:
            groups["nucleus"] += names
        else:
            groups["cell"] += names
    return dict(groups)
