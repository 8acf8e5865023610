"""The phantom cell, the whole way: data, training, prediction, objects, scores and a picture."""

from __future__ import annotations

from pathlib import Path

from common.config.load import load_config
from common.data import regions
from common.files import REPOSITORY
from common.infer import predict, process
from common.score import evaluate
from common.show import figures, visualize
from common.train import run
from testing import phantom

EXPERIMENT = REPOSITORY / "examples" / "phantom_cell"


def demo(output: str | Path, minutes: float) -> Path | None:
    """Make a phantom under `output`, train examples/phantom_cell on it, predict, process and score its validation crops; gives a picture.

    None if training was interrupted. It ends with the epoch that is under way after `minutes`. Started again, it goes on until its last epoch.
    """
    output = Path(output).absolute()
    data = output / "data"
    if not (data / "phantom" / "datasplit.csv").is_file():
        run.say(f"writing a phantom cell to {data}")
        phantom.write_phantom(data)
    settings = [f"data_path={data}", f"cache_path={output / 'cache'}"]
    for name, folder in (
        ("model_save_path", "checkpoints"),
        ("logs_save_path", "logs"),
        ("predictions_path", "predictions"),
        ("processed_path", "processed"),
        ("results_path", "results"),
    ):
        settings.append(f"{name}={output / folder}/{{model_name}}/{{run_name}}")
    if not run.train(EXPERIMENT, settings, training_time_limit=minutes * 60).finished:
        return None
    predict.predict(EXPERIMENT, overrides=settings, overwrite=True)
    process.process(EXPERIMENT, overrides=settings)
    evaluate.evaluate(EXPERIMENT, overrides=settings)
    config = load_config(EXPERIMENT, settings)
    rows = [
        visualize.montage(box, visualize.find_layers(config, box)) for box in regions.choose(config)
    ]
    picture = output / "demo.png"
    figures.write_png(picture, figures.above(rows, background=255))
    print(f"raw, truth, predictions and processed volumes of both validation crops: {picture}")
    return picture
