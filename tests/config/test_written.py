"""Lines of a configuration that seem to set something, and do not."""

from __future__ import annotations

import pytest

from common.config.load import load_process_config
from common.config.settings import TrainConfig
from common.config.written import lost_settings
from common.errors import UserError

GIVEN = "def build_model(classes): ...\nclasses = ['mito']\n"


def lost(tmp_path, text: str) -> list[str]:
    path = tmp_path / "config.py"
    path.write_text(GIVEN + text)
    names = {"__name__": "read"}
    exec(compile(path.read_text(), path, "exec"), names)
    return lost_settings(path, names, TrainConfig)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("learning_rate: 1e-3", "line 3: `learning_rate: 0.001` gives learning_rate a type and no"),
        ("learning_rate: float", "a type and no value; write learning_rate = VALUE"),
        ("epochs = 3\nepochs == 5", "line 4: `epochs == 5` compares and sets nothing; write"),
        (
            "if __name__ == '__main__':\n    epochs = 5",
            "line 4: epochs under `if __name__ == '__main__'` has no effect",
        ),
        ("def optimiser(p, lr, weight_decay): ...", "'optimiser'; did you mean 'optimizer'?"),
        ("def loss(logits, target, pos_weight): ...", "'loss'; did you mean 'criterion'?"),
        ("def augmentation(raw, generator): ...", "'augmentation'; did you mean 'augment'?"),
    ],
)
def test_a_line_that_sets_nothing_is_told(tmp_path, text, told):
    (sentence,) = lost(tmp_path, text)
    assert told in sentence


@pytest.mark.parametrize(
    "text",
    [
        "learning_rate: float = 1e-3",
        "learning_rate: float\nlearning_rate = 1e-3",
        "own: int",
        "if __name__ == '__main__':\n    epochs = 5\n    print(epochs)",
        "def loss(a, b): ...\ncriteria = {'softmax': loss}",
        "def loss(a, b, c): ...\ndef criterion(a, b, c): ...",
        "def _loss(a, b): ...",
        "def criterion(a, b, c): ...",
        "def blocks(n): ...",
    ],
)
def test_a_line_that_is_used_or_no_setting_is_left_alone(tmp_path, text):
    assert lost(tmp_path, text) == []


def test_a_misspelt_function_of_process_is_refused(tmp_path):
    path = tmp_path / "process_config.py"
    path.write_text(
        "classes = ['mito']\n"
        "def process_func(logits): ...\n"
        "def instance_function(mask, probability, name): ...\n"
    )
    with pytest.raises(UserError, match=r"process_config.py: line 3: .*'instance_func'\?"):
        load_process_config(path)
