"""What a run says and keeps: lines on standard error, scalars and figures in TensorBoard or MLflow, history.csv and run.json.

A sink has the same four calls as `Tracker`, which passes them on: scalars, image, text, finish.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from common.errors import UserError
from common.train.record import add_epoch


class TensorBoard:
    """Event files in a folder. A run that starts or continues at `iteration` replaces what was logged after it."""

    def __init__(self, folder: Path, iteration: int = 0):
        self.writer = SummaryWriter(str(folder), purge_step=iteration + 1 if iteration else 0)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)
        self.writer.flush()  # what led to a crash is then on disk

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        self.writer.add_image(tag, image, step, dataformats="HWC")

    def text(self, tag: str, values: Mapping[str, str], step: int) -> None:
        lines = [f"| {name} | {str(value).replace('|', '/')} |" for name, value in values.items()]
        self.writer.add_text(tag, "\n".join(["| name | value |", "|---|---|", *lines]), step)

    def finish(
        self,
        status: str,
        settings: Mapping[str, str | float | bool],
        metrics: Mapping[str, float],
        files: Sequence[Path],
    ) -> None:
        if metrics:
            finals = {f"final/{name}": value for name, value in metrics.items()}
            self.writer.add_hparams(dict(settings), finals, run_name="hparams")
        self.writer.close()


class MLflow:
    """A run in MLflow's store: begun, or gone on with where `run_id` is one of that store.

    A store takes nothing back: iterations that are trained again after a crash stand there twice, with equal values.
    ValueError if mlflow, or what it needs for a database file, is not installed.
    """

    def __init__(
        self, uri: str, experiment: str, run_name: str, run_id: str = "", parent: str = ""
    ):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # training calls nobody
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError:
            raise UserError(
                "trackers = 'mlflow' needs the package mlflow; pip install mlflow, or leave it out of trackers"
            ) from None
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        artifacts = None
        if uri.startswith(
            "sqlite:///"
        ):  # files would go into the folder that the command was called in
            artifacts = Path(uri.removeprefix("sqlite:///")).absolute().with_suffix("")
            artifacts.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.client = MlflowClient(tracking_uri=uri)
            known = self.client.get_experiment_by_name(experiment)
            of = (
                known.experiment_id
                if known
                else self.client.create_experiment(
                    experiment, artifacts.as_uri() if artifacts else None
                )
            )
        except (ImportError, MlflowException) as error:
            reason = str(error).strip().split(". ")[0]
            raise UserError(
                f"mlflow_uri = '{uri}': the store does not open ({reason}); pip install mlflow, or write another"
            ) from error
        self.run_id = ""
        with suppress(MlflowException):  # a run of another store, or one that was deleted there
            self.run_id = self.client.get_run(run_id).info.run_id if run_id else ""
        if self.run_id:
            self.client.update_run(self.run_id, status="RUNNING")
        else:
            tags = {"mlflow.parentRunId": parent} if parent else {}
            self.run_id = self.client.create_run(of, tags=tags, run_name=run_name).info.run_id

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(
            self.run_id,
            metrics=[Metric(tag, float(value), now, step) for tag, value in values.items()],
        )

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """The latest image of a tag replaces the one before it."""
        self.client.log_image(
            self.run_id, image, artifact_file=f"figures/{tag.rsplit('/', 1)[-1]}.png"
        )

    def text(self, tag: str, values: Mapping[str, str], step: int) -> None:
        """Settings become parameters, once, as a store keeps the first; the rest become tags. Both also a file."""
        from mlflow.entities import Param, RunTag

        run = self.client.get_run(self.run_id).data
        if tag == "settings":
            new = [
                Param(name, str(value)[:6000])
                for name, value in values.items()
                if name not in run.params
            ]
            self.client.log_batch(self.run_id, params=new)
        else:
            self.client.log_batch(
                self.run_id, tags=[RunTag(name, str(value)) for name, value in values.items()]
            )
        if "commit" in values:
            self.client.set_tag(self.run_id, "mlflow.source.git.commit", values["commit"])
        self.client.log_dict(self.run_id, dict(values), f"{tag}.json")

    def finish(
        self,
        status: str,
        settings: Mapping[str, str | float | bool],
        metrics: Mapping[str, float],
        files: Sequence[Path],
    ) -> None:
        for file in files:
            if (
                file.suffix == ".py"
            ):  # under another name: a folder with a train_config.py is an experiment
                self.client.log_text(self.run_id, file.read_text(), f"experiment/{file.name}.txt")
            else:
                self.client.log_artifact(self.run_id, str(file))
        self.scalars({f"final/{name}": value for name, value in metrics.items()}, 0)
        self.client.set_terminated(self.run_id, status)


class Tracker:
    """One run's log in a folder. A run that starts or continues at `iteration` replaces what was logged after it."""

    def __init__(self, folder: Path, iteration: int = 0, sinks: Sequence[Any] | None = None):
        """sinks: TensorBoard in that folder unless given."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.sinks = [TensorBoard(folder, iteration)] if sinks is None else list(sinks)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers under their tags; NaN (a class that does not occur) is left out."""
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
        settings: Mapping[str, str | float | bool],
        metrics: Mapping[str, float],
        files: Sequence[Path] = (),
        status: str = "FINISHED",
    ) -> None:
        """Log settings and final metrics (TensorBoard: its HPARAMS page, as a run of its own), keep files, close.

        status: FINISHED, KILLED (interrupted) or FAILED, as MLflow calls them.
        """
        finite = {name: value for name, value in metrics.items() if np.isfinite(value)}
        while self.sinks:
            self.sinks.pop().finish(status, settings, finite, files)

    def history(self, row: Mapping[str, float]) -> None:
        """Add a row, whose first column is the epoch; rows of this or a later epoch are replaced."""
        add_epoch(self.folder, row)
