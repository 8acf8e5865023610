from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from conftest import datasplit_text, world

from common import runtime, talk
from common.data.volumes.ngff import write_multiscale
from common.model.shapes import Shapes
from common.shell import suggest
from common.shell.suggest import Fingerprint, Suggestion

UNET = {
    "model.py": """
        from common.model.unet import build_unet


        def build_model(classes):
            return build_unet(classes, 8)
        """
}


SHAPES = ("input_array_info", "target_array_info")


def run(tiny, **options) -> tuple[Fingerprint, list[str]]:
    """The fingerprint of an experiment, and the lines that were said."""
    said: list[str] = []
    result = suggest.fingerprint(tiny.folder, data=tiny.data, say=said.append, **options)
    return result, said


def suggested(tiny) -> dict[str, Suggestion]:
    """What is suggested, by the setting."""
    result, _ = run(tiny)
    return {suggestion.setting: suggestion for suggestion in result.suggestions}


def test_the_patch_is_the_largest_that_the_crops_can_fill(experiment):
    """Crops of 24^3 fill a target of 24^3, which the tiny network makes of 28^3.

    A raw volume of 56^3 holds that.
    """
    suggestions = suggested(experiment())
    patch = suggestions["input_array_info.shape"]
    assert (patch.value, patch.now) == ([28] * 3, [20] * 3)
    assert suggestions["target_array_info.shape"].value == [24] * 3
    assert "have 192 nm or more, and the target covers 192 nm; 63%" in patch.why
    assert "as are read, 51% now" in patch.why


def test_the_patch_follows_the_networks_steps_and_shrinks_to_the_crops(experiment):
    """At 4 nm the crops are 48 voxels wide, which the U-Net, in steps of 4, makes of 88.

    The experiment asks for 52 of 92.
    """
    sizes = {
        "input_array_info": {"shape": (92,) * 3, "scale": (4,) * 3},
        "target_array_info": {"shape": (52,) * 3, "scale": (4,) * 3},
    }
    suggestions = suggested(experiment(files=UNET, **sizes))
    assert suggestions["input_array_info.shape"].value == [88] * 3
    assert suggestions["target_array_info.shape"].value == [48] * 3


def test_the_patch_stays_within_the_raw(experiment):
    """A crop as wide as its raw of 56^3 could fill a target of 56^3, which takes raw of 60^3."""
    tiny = experiment()
    shutil.rmtree(tiny.crop("crop1"))
    write_multiscale(tiny.crop("crop1") / "mito", world()["mito"].astype(np.uint8), (8, 8, 8))
    tiny.write("datasplit.csv", datasplit_text({"crop1": ("train", (0, 0, 0), ("mito",))}))
    assert suggested(tiny)["input_array_info.shape"].value == [56] * 3


def test_the_patch_stops_where_the_network_does(experiment):
    model = """
        from torch import nn


        class Limited(nn.Conv3d):
            def forward(self, raw):
                if raw.shape[2] > 24:
                    raise ValueError("too large")
                return super().forward(raw)


        def build_model(classes):
            return Limited(1, len(classes), 5)
        """
    tiny = experiment(files={"model.py": model})
    assert suggested(tiny)["input_array_info.shape"].value == [24] * 3


def test_a_padded_network_keeps_the_patch_and_the_batch_of_its_experiment(experiment, monkeypatch):
    """A larger patch would save no border; a CPU takes as many patches as the experiment says."""
    model = """
        from torch import nn


        def build_model(classes):
            return nn.Conv3d(1, len(classes), 3, padding=1)
        """
    sizes = {name: {"shape": (16,) * 3, "scale": (8,) * 3} for name in SHAPES}
    tiny = experiment(files={"model.py": model}, batch_size=6, **sizes)
    suggestions = suggested(tiny)
    assert suggestions["input_array_info.shape"].value == [16] * 3
    assert "a larger patch would save no border" in suggestions["input_array_info.shape"].why
    assert suggestions["batch_size"].value == 6
    model = tiny.config().build_model(tiny.config().classes)
    shapes = Shapes(model, lambda network, raw: network(raw))
    free = shapes.training_bytes((16,) * 3, 5) / suggest.MEMORY_FRACTION / 1e9
    monkeypatch.setattr(runtime, "free_memory_gb", lambda _: free)
    assert suggested(tiny)["batch_size"].value == 2


def test_patch_and_batch_fit_the_memory_that_is_free(experiment, monkeypatch):
    tiny = experiment()
    model = tiny.config().build_model(tiny.config().classes)
    shapes = Shapes(model, lambda network, raw: network(raw))

    def with_memory(size):
        free = size / suggest.MEMORY_FRACTION / 1e9
        monkeypatch.setattr(runtime, "free_memory_gb", lambda _: free)
        suggestions = suggested(tiny)
        return suggestions["input_array_info.shape"].value, suggestions["batch_size"].value

    assert with_memory(1e9) == ([28] * 3, 2)
    assert with_memory(shapes.training_bytes((24,) * 3, 2) + 1) == ([24] * 3, 2)
    assert with_memory(100)[1] == 1
    assert "does not fit" in suggested(tiny)["batch_size"].why


def test_the_reason_for_a_batch_does_not_speak_against_it(experiment, monkeypatch):
    """A CPU is not told to take more patches at a time, since it would take longer."""
    batch = suggested(experiment(batch_size=1))["batch_size"]
    assert (batch.value, batch.now) == (2, 1)
    assert "more would take a CPU in proportion longer" in batch.why
    assert "not by memory" not in batch.why
    monkeypatch.setitem(suggest.LARGEST_BATCH, "cpu", 32)
    tiny = experiment("other")
    shapes = Shapes(tiny.config().build_model(tiny.config().classes), lambda net, raw: net(raw))
    free = shapes.training_bytes((28,) * 3, 5) / suggest.MEMORY_FRACTION / 1e9
    monkeypatch.setattr(runtime, "free_memory_gb", lambda _: free)
    batch = suggested(tiny)["batch_size"]
    assert (
        batch.value == 4
        and f"; 8 take {talk.size(shapes.training_bytes((28,) * 3, 8))}" in batch.why
    )


def test_raw_that_is_smaller_than_the_patch_is_a_finding_and_a_smaller_patch_is_suggested(
    experiment,
):
    sizes = {
        "input_array_info": {"shape": (60,) * 3, "scale": (8,) * 3},
        "target_array_info": {"shape": (56,) * 3, "scale": (8,) * 3},
    }
    result, said = run(experiment(**sizes))
    sentence = "raw smaller than the input patch of 480 nm, which stops training, in 3 crops"
    assert any(sentence in line for line in said), said
    values = {suggestion.setting: suggestion.value for suggestion in result.suggestions}
    assert values["input_array_info.shape"] == [28] * 3


def test_workers_leave_a_core_to_the_training(experiment, monkeypatch):
    tiny = experiment()
    for cores, expected in ((1, 0), (2, 1), (16, 1)):
        monkeypatch.setattr(
            os, "sched_getaffinity", lambda _, n=cores: set(range(n)), raising=False
        )
        workers = suggested(tiny)["num_workers"]
        assert (workers.value, workers.now) == (expected, 0)


@pytest.mark.parametrize(
    "body, said",
    [
        ("raise FileNotFoundError('weights.pt: fetch the weights')", "fetch the weights"),
        ("return nn.Conv3d(2, len(classes), 3)", "channel"),
    ],
)
def test_a_network_that_cannot_be_tried_is_a_finding(experiment, body, said):
    model = f"from torch import nn\n\n\ndef build_model(classes):\n    {body}\n"
    result, _ = run(experiment(files={"model.py": model}))
    assert [suggestion.setting for suggestion in result.suggestions] == ["num_workers"]
    findings = [text for text in result.facts.findings if "network cannot be tried" in text]
    assert len(findings) == 1
    assert said in findings[0]


# What is said and written


def test_the_report_says_each_suggestion_with_its_reason_and_changes_nothing(experiment):
    tiny = experiment()
    before = {path: path.read_bytes() for path in tiny.folder.iterdir() if path.is_file()}
    result, said = run(tiny)
    assert said[0] == "tiny_experiment: 2 training crops, 1 validation crop"
    for suggestion in result.suggestions:
        (line,) = [line for line in said if line.startswith(f"- {suggestion.setting} = ")]
        assert line.endswith(suggestion.why)
        assert len(suggestion.why) > 20
    assert {path: path.read_bytes() for path in tiny.folder.iterdir() if path.is_file()} == before


def test_the_json_holds_what_is_returned(experiment, tmp_path):
    tiny = experiment()
    result, _ = run(tiny, json_path=tmp_path / "facts.json")
    text = (tmp_path / "facts.json").read_text()
    content = json.loads(text)
    assert content == result.as_json()
    assert list(content) == [
        "experiment",
        "crops",
        "classes",
        "resolutions",
        "intensities",
        "scalings",
        "findings",
        "suggestions",
    ]
    assert str(tmp_path) not in text
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(tiny, json_path=tmp_path / "nowhere" / "facts.json")
