"""Which file the weights of a network are read from."""

from __future__ import annotations

from pathlib import Path

from common.config.settings import TrainConfig
from common.talk import note
from common.train.checkpointing import checkpoint


def checkpoint_path(config: TrainConfig, weights: str) -> Path:
    """Return the checkpoint that `weights` names: "best", "latest" or a path.

    "" is the best one; the latest where none was validated; the weights that the run is to begin
    with where it has not begun. A path is relative to the working folder or, where there is no such
    file, to the experiment's. Raise FileNotFoundError without a checkpoint.
    """
    if weights in ("", "best", "latest"):
        return _checkpoint_of_run(config, weights)
    path = Path(weights).expanduser()
    if not path.is_absolute() and not path.is_file():
        path = config.folder / path
    path = path.absolute()
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such checkpoint; write --checkpoint best, latest or the path of one"
        )
    return path


def _checkpoint_of_run(config: TrainConfig, which: str) -> Path:
    """Return a checkpoint of the run. which: "best", "latest" or "", as of `checkpoint_path`."""
    folder = config.path("model_save_path")
    path = checkpoint.find(folder, which or "best")
    if path is None and not which:
        path = checkpoint.find(folder, "latest") or _given_weights(config)
    if path is None:
        others = checkpoint.of_other_models(config)
        hint = f", --set model_name={others[0]}, which has this run," if others else ""
        raise FileNotFoundError(
            f"{folder}: no {which or 'best'} checkpoint; train first, write the run's name "
            f"(--set run_name=...){hint} or --checkpoint FILE"
        )
    return path


def _given_weights(config: TrainConfig) -> Path | None:
    """Return the file that load_model names, for a run that has not begun; None without one."""
    path = config.folder / Path(config.load_model).expanduser()
    if config.load_model in ("latest", "best", "scratch") or not path.is_file():
        return None
    note(
        f"{config.path('model_save_path')}: no checkpoint of this run; the weights that load_model "
        f"names are taken, {path}"
    )
    return path
