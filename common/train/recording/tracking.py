"""Where the scalars, figures and texts of a run go: TensorBoard, MLflow, or a sink of one's own."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams as hparams_summaries

from common.config.calls import refuses
from common.config.settings import TrainConfig
from common.errors import FileError, UserError
from common.show.figures import PANEL_WORDS
from common.train.recording.record import Recorder, add_epoch

Settings = Mapping[str, str | float | bool]

Scalars = Mapping[str, float]
"""By tag."""

Files = Sequence[Path]

PATCH = "uncommitted.patch"
"""In the folder of the logs: what the code that trains has more than its commit."""

WITHOUT_MLFLOW = (
    "trackers = 'mlflow' needs the package mlflow; pip install mlflow, or leave it out of trackers"
)

LONGEST_PARAMETER = 6000
"""Characters that an MLflow store takes for a parameter."""


class Sink(Protocol):
    """Gets everything that a run logs. The setting `trackers` accepts classes with these methods.

    Such a class, or a function that returns an object with the four methods, is called with
    (folder, run_name, settings) whenever `train` starts or continues a run: the folder of the run's
    logs, the name of the run, and each setting as text. Iterations that are trained again after a
    crash are logged again, with the same values. An exception in a method ends the run.

    Weights & Biases, as an example in a file `wandb_tracker.py` of an experiment:

        class WeightsAndBiases:
            def __init__(self, folder, run_name, settings):
                import wandb

                self.wandb = wandb
                self.run = wandb.init(
                    project=settings["model_name"].strip("'"),
                    name=run_name,
                    id=run_name,
                    resume="allow",
                    dir=folder,
                    config=settings,
                )

            def scalars(self, values, step):
                self.run.log(dict(values), step=step)

            def image(self, tag, image, step):
                self.run.log({tag: self.wandb.Image(image)}, step=step)

            def text(self, tag, values, step):
                self.run.config.update({tag: dict(values)}, allow_val_change=True)

            def finish(self, status, settings, metrics, files):
                self.run.summary.update({f"final/{name}": v for name, v in metrics.items()})
                self.run.finish(exit_code=0 if status == "FINISHED" else 1)

    and in train_config.py:

        from .wandb_tracker import WeightsAndBiases

        trackers = ("tensorboard", WeightsAndBiases)
    """

    def scalars(self, values: Scalars, step: int) -> None:
        """Log finite numbers by tag ("loss/train", "dice/mito", ...) at iteration `step`."""

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Log an RGB image (y, x, 3) uint8 at iteration `step`."""

    def text(self, tag: str, values: Mapping[str, str], step: int) -> None:
        """Log names and values; `tag` is "settings" or "provenance"."""

    def finish(self, status: str, settings: Settings, metrics: Scalars, files: Files) -> None:
        """Log how the call of `train` ended, and close. No method is called afterwards.

        Args:
            status: "FINISHED", "KILLED" (interrupted; the run may be continued) or "FAILED".
            settings: the settings but names and paths; empty if the call failed.
            metrics: the final values of best_metric and loss that are finite.
            files: files to keep with the run: the experiment's *.py, its datasplit and its best
                checkpoint.
        """


SinkFactory = Callable[[Path, str, Mapping[str, str]], Sink]
"""`factory(folder, run_name, settings)` returns a sink."""

HOW_TO_READ = "raw, target, prediction"
"""Tag of the text about the images, whose tags begin with it."""

CALLS = {"scalars": 2, "image": 3, "text": 3, "finish": 4}
"""Methods that a sink must have, and the number of their arguments."""


class TensorBoard:
    """Writes TensorBoard event files into a folder."""

    def __init__(self, folder: Path, iteration: int = 0):
        """Open the folder; what was logged after `iteration` is replaced."""
        self.folder = folder
        self.is_explained = False
        _leave_errors_to_the_caller()
        with self._told():
            purge_step = iteration + 1 if iteration else 0
            self.writer = SummaryWriter(str(folder), purge_step=purge_step)

    def scalars(self, values: Scalars, step: int) -> None:
        """Add a point to the curve of each tag."""
        with self._told():
            for tag, value in values.items():
                self.writer.add_scalar(tag, value, step)
            self.writer.flush()  # what led to a crash is then on disk

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Add an image at iteration `step`, and once a text that says what is to be seen."""
        with self._told():
            if not self.is_explained:
                self.is_explained = True
                self.writer.add_text(HOW_TO_READ, PANEL_WORDS, 0)
            self.writer.add_image(tag, image, step, dataformats="HWC")

    def text(self, tag: str, values: Mapping[str, str], step: int) -> None:
        """Add names and values as a Markdown table."""
        lines = ["| name | value |", "|---|---|"]
        for name, value in values.items():
            cell = str(value).replace("|", "/")  # which would end the cell
            lines.append(f"| {name} | {cell} |")
        with self._told():
            self.writer.add_text(tag, "\n".join(lines), step)

    def finish(self, status: str, settings: Settings, metrics: Scalars, files: Files) -> None:
        """Log settings and metrics on the HPARAMS page, and close; files are ignored."""
        with self._told():
            if metrics:
                self._add_hparams(settings, metrics)
            self.writer.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raise FileError where the system does not write, which its error names no file for."""
        try:
            yield
        except OSError as error:
            raise FileError(
                f"{self.folder}: TensorBoard's events could not be written "
                f"({error.strerror or error}); free space and run the same command again, which "
                "goes on from the last checkpoint"
            ) from error

    def _add_hparams(self, settings: Settings, metrics: Scalars) -> None:
        """Add the run to the HPARAMS page.

        SummaryWriter.add_hparams would make a second run of it, with a list of columns: which
        settings differ between runs is known to nobody but who looks at all of them.
        """
        for name, value in metrics.items():
            self.writer.add_scalar(f"final/{name}", value, 0)
        _, begin, end = hparams_summaries(dict(settings), {}, None)
        for summary in (begin, end):
            self.writer._get_file_writer().add_summary(summary)


def _leave_errors_to_the_caller() -> None:
    """Let a thread of TensorBoard's writer that finds no room end without a traceback.

    The next call of the writer raises the same error.
    """
    before = threading.excepthook
    if getattr(before, "leaves_out_writers", False):
        return

    def hook(args: Any) -> None:
        is_writer = type(args.thread).__module__.startswith("tensorboard.summary.writer")
        if not is_writer or not isinstance(args.exc_value, OSError):
            before(args)

    hook.leaves_out_writers = True  # type: ignore[attr-defined]
    threading.excepthook = hook


class MLflow:
    """Logs a run to an MLflow store.

    A store does not delete values: iterations that are trained again after a crash are there twice,
    with equal values.
    """

    def __init__(
        self, uri: str, experiment: str, run_name: str, *, run_id: str = "", parent: str = ""
    ):
        """Create a run, or continue the run `run_id` if the store has it.

        Args:
            uri: the store: a server, a folder, or a database file after sqlite:///.
            experiment: name of the MLflow experiment; it is created if it does not exist.
            run_name: name of a new run.
            run_id: id of this run in an earlier session.
            parent: id of the run that a new run is nested in.

        Raises:
            UserError: if mlflow, or a package that it needs for a database file, is not installed,
                or if the store cannot be opened.
        """
        client_class, not_opened = _import_mlflow()
        database = _database_of(uri)
        if database:
            database.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.client = client_class(tracking_uri=uri)
            experiment_id = self._experiment_id(experiment, database)
        except (ImportError, not_opened) as error:
            reason = str(error).strip().split(". ")[0]
            raise UserError(
                f"mlflow_uri = '{uri}': the store does not open ({reason}); pip install mlflow, "
                "or write another"
            ) from error
        self.run_id = ""
        if run_id:
            # it may be a run of another store, or one that was deleted there
            with suppress(not_opened):
                self.run_id = self.client.get_run(run_id).info.run_id
        if self.run_id:
            self.client.update_run(self.run_id, status="RUNNING")
            return
        tags = {"mlflow.parentRunId": parent} if parent else {}
        run = self.client.create_run(experiment_id, tags=tags, run_name=run_name)
        self.run_id = run.info.run_id

    def _experiment_id(self, name: str, database: Path | None) -> str:
        """Return the id of the experiment with this name, which is created if necessary."""
        known = self.client.get_experiment_by_name(name)
        if known:
            return known.experiment_id
        if not database:
            return self.client.create_experiment(name)
        # files beside the database: MLflow's default is a folder where the command was called
        return self.client.create_experiment(name, database.with_suffix("").as_uri())

    def scalars(self, values: Scalars, step: int) -> None:
        """Log a metric for each tag."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(tag, float(value), now, step) for tag, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Log an image; it replaces the previous one with the same tag."""
        name = tag.rsplit("/", 1)[-1]
        self.client.log_image(self.run_id, image, artifact_file=f"figures/{name}.png")

    def text(self, tag: str, values: Mapping[str, str], step: int) -> None:
        """Log settings as parameters and anything else as tags; both also as a JSON file."""
        if tag == "settings":
            self._parameters(values)
        else:
            self._tags(values)
        if "commit" in values:
            self.client.set_tag(self.run_id, "mlflow.source.git.commit", values["commit"])
        self.client.log_dict(self.run_id, dict(values), f"{tag}.json")

    def keep(self, path: Path) -> None:
        """Log a file now, where it is there: a run that is killed does not finish."""
        if path.is_file():
            self.client.log_artifact(self.run_id, str(path))

    def _parameters(self, values: Mapping[str, str]) -> None:
        """Log parameters that the run does not have yet; a store refuses to change the others."""
        from mlflow.entities import Param

        known = self.client.get_run(self.run_id).data.params
        parameters = []
        for name, value in values.items():
            if name not in known:
                parameters.append(Param(name, str(value)[:LONGEST_PARAMETER]))
        self.client.log_batch(self.run_id, params=parameters)

    def _tags(self, values: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(name, str(value)) for name, value in values.items()]
        self.client.log_batch(self.run_id, tags=tags)

    def finish(self, status: str, settings: Settings, metrics: Scalars, files: Files) -> None:
        """Log files and final metrics, and end the run."""
        for file in files:
            if file.suffix == ".py":
                # as text: a folder with a train_config.py would be taken for an experiment
                # a comment may be in the letters of another system
                text = file.read_text("utf-8", errors="replace")
                self.client.log_text(self.run_id, text, f"experiment/{file.name}.txt")
            else:
                self.client.log_artifact(self.run_id, str(file))
        self.scalars({f"final/{name}": value for name, value in metrics.items()}, 0)
        self.client.set_terminated(self.run_id, status)


class Tracker:
    """The log of one run: passes everything to its sinks, and writes history.csv."""

    def __init__(self, folder: Path, iteration: int = 0, sinks: Sequence[Sink] | None = None):
        """Create the folder. Without `sinks`, log to TensorBoard in it from `iteration` on."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.sinks = [TensorBoard(folder, iteration)] if sinks is None else list(sinks)

    def scalars(self, values: Scalars, step: int) -> None:
        """Log numbers by tag at iteration `step`; NaN and infinity are left out."""
        finite = {tag: value for tag, value in values.items() if np.isfinite(value)}
        for sink in self.sinks:
            sink.scalars(finite, step)

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Log an RGB image (y, x, 3) uint8."""
        for sink in self.sinks:
            sink.image(tag, image, step)

    def text(self, tag: str, values: Mapping[str, str], step: int = 0) -> None:
        """Log names and values as a table."""
        for sink in self.sinks:
            sink.text(tag, values, step)

    def finish(
        self,
        settings: Settings,
        metrics: Scalars,
        files: Files = (),
        status: str = "FINISHED",
    ) -> None:
        """Log settings, final metrics and files, and close all sinks; see `Sink.finish`."""
        finite = {name: value for name, value in metrics.items() if np.isfinite(value)}
        # each is taken off first: where one fails, a second call finishes the others alone
        while self.sinks:
            self.sinks.pop().finish(status, settings, finite, files)

    def history(self, row: Mapping[str, float]) -> None:
        """Add a row to history.csv; rows of this epoch and later ones are removed."""
        add_epoch(self.folder, row)


def open_sinks(config: TrainConfig, iteration: int, recorder: Recorder) -> list[Sink]:
    """Open the sinks in the setting `trackers`, for a run that is at `iteration`.

    The id of the MLflow run is written to the record, so that the next session continues it. Raises
    UserError for a sink that cannot be opened or lacks one of the four methods.
    """
    folder = config.path("logs_save_path")
    sinks: list[Sink] = []
    for tracker in config.trackers:
        if tracker == "tensorboard":
            sinks.append(TensorBoard(folder, iteration))
        elif tracker == "mlflow":
            record = recorder.record
            sink = open_mlflow(
                config, config.run, run_id=record.mlflow_run, parent=config.mlflow_parent
            )
            sink.keep(folder / PATCH)
            sinks.append(sink)
            record.mlflow_run = sink.run_id
            recorder.write()
        elif not isinstance(tracker, str):
            sinks.append(_own_sink(tracker, config))
    return sinks


def open_parent(config: TrainConfig, run_name: str, run_id: str) -> MLflow | None:
    """Open a run that others are nested in; None unless they are logged to MLflow.

    run_id: of a run that was opened before; "" if there is none.
    """
    return open_mlflow(config, run_name, run_id=run_id) if "mlflow" in config.trackers else None


def open_mlflow(
    config: TrainConfig, run_name: str, *, run_id: str = "", parent: str = ""
) -> MLflow:
    """Open a run of this experiment in the store mlflow_uri."""
    uri = config.mlflow_uri or f"sqlite:///{config.folder / 'logs' / 'mlflow.db'}"
    return MLflow(uri, config.model_name, run_name, run_id=run_id, parent=parent)


def _own_sink(factory: SinkFactory, config: TrainConfig) -> Sink:
    """Make a user's sink, and check that it has the four methods."""
    sink = factory(config.path("logs_save_path"), config.run, config.record())
    missing = [call for call in CALLS if not callable(getattr(sink, call, None))]
    if missing:
        name = getattr(factory, "__qualname__", repr(factory))
        given = type(sink).__qualname__
        raise UserError(
            f"trackers: {name} gives a {given} without {', '.join(missing)}; give it the calls "
            f"{', '.join(CALLS)} of common.train.recording.tracking.Sink"
        )
    for call, arguments in CALLS.items():
        # finish is called when hours are over
        refusal = refuses(getattr(sink, call), arguments, {})
        if refusal:
            raise UserError(
                f"trackers: {type(sink).__qualname__}.{call}: {refusal}; write it as that of "
                "common.train.recording.tracking.Sink"
            )
    return sink


def _database_of(uri: str) -> Path | None:
    """Return the database file of a store; None for another kind of store."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///")).absolute()


def refuse_missing(config: TrainConfig) -> None:
    """Raise UserError if a tracker that is asked for is not installed; quick, without importing."""
    if "mlflow" in config.trackers and importlib.util.find_spec("mlflow") is None:
        raise UserError(WITHOUT_MLFLOW)


def _import_mlflow() -> tuple[Any, type[Exception]]:
    """Return MlflowClient and MlflowException of the optional package."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # training calls nobody
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise UserError(WITHOUT_MLFLOW) from None
    # both say at the level of information what they do to a database file
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient, MlflowException
