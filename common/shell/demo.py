"""The command demo: from a phantom cell over training and prediction to scores and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.config.load import load_config
from common.config.module import load_module
from common.config.settings import RUN_FOLDERS, TrainConfig
from common.data.splits import regions
from common.errors import UserError
from common.files import REPOSITORY
from common.infer import predict, process
from common.score import evaluate
from common.score.whole_crops import of_run
from common.show import montage
from common.talk import command_line, say
from common.train import run

EXPERIMENT = REPOSITORY / "examples" / "phantom_cell"
PHANTOM = REPOSITORY / "testing" / "phantom.py"

ONLY_IN_A_CHECKOUT = (
    "demo: it takes examples/phantom_cell and testing/ of the repository; "
    f"clone that, install it with `pip install -e .`, and type {command_line('demo')} there"
)


def demo(
    output: str | Path,
    minutes: float = 0.0,
    experiment: str | Path | None = None,
    overrides: Sequence[str] = (),
) -> Path | None:
    """Train an example on a phantom cell that is written under `output`, and draw what it learnt.

    All steps are taken, on a slow machine as well: what is learnt depends on them.

    Args:
        output: folder of data, runs and the picture.
        minutes: training ends with the epoch that is under way then, and goes on if the demo is
            started again; 0 for no limit.
        experiment: examples/phantom_cell, or another one whose datasplit names the phantom.
        overrides: settings as "name=value".

    Returns the path of the picture; None if training was interrupted. Raises UserError outside of a
    checkout.
    """
    experiment = _chosen(experiment)
    output = Path(output).absolute()
    data = output / "data"
    places = [f"data_path={data}", f"cache_path={output / 'cache'}"]
    places += [f"{name}={output / getattr(TrainConfig, name)}" for name in RUN_FOLDERS]
    settings = [*places, *overrides]
    load_config(experiment, settings)  # what is wrong with it is told before a minute is spent
    if not is_written(data):
        say(f"writing a phantom cell to {data}")
        write_data(data)
    if not _train_to_scores(experiment, settings, minutes):
        return None
    name = "demo" if experiment == EXPERIMENT.resolve() else experiment.name
    picture = output / f"{name}.png"
    config = load_config(experiment, settings)
    montage.write_crops(picture, config, regions.choose(config))
    print(f"raw, truth, predictions and processed volumes of the validation crops: {picture}")
    own = command_line("import-data", "RAW", dataset="NAME", labels="CLASS=FILE")
    say(f"next, on your own data (docs/own_data.md): {own}")
    return picture


def _chosen(experiment: str | Path | None) -> Path:
    if not EXPERIMENT.is_dir():
        raise UserError(ONLY_IN_A_CHECKOUT)
    chosen = Path(experiment or EXPERIMENT).resolve()
    if not chosen.is_dir():
        raise UserError(f"{chosen}: no such folder; write one of {EXPERIMENT.parent}")
    return chosen


def _train_to_scores(experiment: Path, settings: Sequence[str], minutes: float) -> bool:
    """Train, predict, process and score; return False if training was interrupted."""
    result = run.train(experiment, settings, score=of_run, training_time_limit=minutes * 60)
    if not result.finished:
        return False
    predict.predict(experiment, overrides=settings, overwrite=True)
    process.process(experiment, overrides=settings)
    evaluate.evaluate(experiment, overrides=settings)
    return True


def is_written(folder: Path) -> bool:
    """Return whether a data root has the phantom cell, with the crops that the example names."""
    split = folder / "phantom" / "datasplit.csv"
    # it is written last, and names the crops: an older phantom has fewer
    return split.is_file() and split.read_text() == (EXPERIMENT / split.name).read_text()


def write_data(folder: Path) -> None:
    """Write the phantom cell as a data root. Raises UserError outside of a checkout."""
    if not PHANTOM.is_file():
        raise UserError(ONLY_IN_A_CHECKOUT)
    # by its path: an installed `csc` does not have the checkout's folder among its packages
    load_module(PHANTOM).write_phantom(folder)
