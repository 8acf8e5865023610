"""Which code an experiment's network is made by."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config.code import network_code
from common.talk import _noted

LAYER = """
    # what a layer is
    from torch.nn import functional

    epochs = 3


    def act(raw):
        "Of raw."
        return functional.relu(raw)
    """
MODEL = """
    from torch import nn

    from .data import classes
    from .layer import act


    class Net(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.last = nn.Conv3d(1, n, 5)

        def forward(self, raw):
            return self.last(act(raw))


    def build_model(classes):
        return Net(len(classes))
    """


@pytest.fixture
def tiny(experiment):
    return experiment(files={"model.py": MODEL, "layer.py": LAYER})


def code(tiny) -> str:
    return network_code(tiny.config())


@pytest.mark.parametrize(
    ("file", "old", "new", "is_same"),
    [
        ("layer.py", "relu", "elu", False),
        ("model.py", "act(raw)", "act(-raw)", False),
        ("layer.py", "# what a layer is", "# of torch", True),
        ("layer.py", '"Of raw."', '"Of what is given."', True),
        ("layer.py", "epochs = 3", "epochs = 4", True),
        ("data.py", "(20, 20, 20)", "(24, 24, 24)", True),
        ("process_config.py", "logits > 0", "logits > 1", True),
    ],
)
def test_only_what_computes_counts(tiny, file, old, new, is_same):
    before = code(tiny)
    text = (tiny.folder / file).read_text()
    assert old in text
    (tiny.folder / file).write_text(text.replace(old, new, 1))
    assert len(before) == 64
    assert (code(tiny) == before) is is_same


def test_a_network_of_no_file_of_the_experiment_has_none(experiment):
    tiny = experiment(
        text="from torch import nn\nbuild_model = nn.Identity\n",
    )
    assert code(tiny) == ""
    elsewhere = experiment(
        "elsewhere",
        files={"model.py": "from common.model.unet3d import build_unet3d as build_model\n"},
    )
    assert code(elsewhere) == ""


def test_a_process_knows_the_code_that_it_loaded(tiny):
    config = tiny.config()
    before = network_code(config)
    tiny.write("layer.py", LAYER.replace("relu", "elu"))
    assert network_code(config) == before
    assert code(tiny) != before


def test_a_network_that_was_edited_since_its_training_is_noted(tiny, capfd):
    from common.infer.predict import predict

    tiny.train(epochs=1, iterations_per_epoch=1)
    (tiny.folder / "layer.py").write_text((tiny.folder / "layer.py").read_text() + "\n\nx = 1\n")
    _noted.clear()
    capfd.readouterr()
    predict(tiny.folder, data=tiny.data)
    path = tiny.config().path("model_save_path") / "best.pt"
    assert f"note: {path}: the code in {tiny.folder} that makes" in capfd.readouterr().err
    tiny.train(epochs=2, iterations_per_epoch=1)
    assert "that makes the network was edited since" in capfd.readouterr().err
    # its checkpoint is of the code of now
    _noted.clear()
    predict(tiny.folder, data=tiny.data, overwrite=True, weights="latest")
    assert "was edited" not in capfd.readouterr().err


def test_older_checkpoints_say_nothing(tiny, capfd):
    from common.config.code import note_other_code

    _noted.clear()
    note_other_code(Path("old.pt"), {}, tiny.config())
    note_other_code(Path("now.pt"), {"network_code": code(tiny)}, tiny.config())
    assert capfd.readouterr().err == ""


def test_a_partial_of_a_function_has_the_code_of_the_function(tiny):
    before = code(tiny)
    tiny.write(
        "train_config.py",
        """
        import functools

        from .data import classes, input_array_info, target_array_info
        from .model import build_model as _build

        build_model = functools.partial(_build)
        """,
    )
    assert code(tiny) == before != ""
