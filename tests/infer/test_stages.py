"""Processing in stages: what is on disk is not made again, and the end is what one call gives."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import zarr
from scipy import ndimage
from test_cluster import command, forked_workers, held, tiny, works  # noqa: F401  # fixtures

from common.errors import FileError
from common.infer import instances, predict, process
from common.infer.objects import volume as volume_module
from common.infer.processing import masks, one_class, stages
from tests.volumes import voxels_of

RECIPE = """
    import os
    import signal
    from pathlib import Path

    from common.infer.instances import (
        connected_components, fill_holes, remove_small, watershed
    )

    classes = ("mito", "er")
    instance_classes = ("mito",)
    input_array_info = {"shape": (10, 10, 10), "scale": (8, 8, 8)}
    batch_size = 2


    def process_func(logits):
        if logits.max() > 3 and is_the_first():
            os.kill(os.getpid(), signal.SIGKILL)
        return logits > 0


    def is_the_first():
        kill = Path(__file__).parent / "kill"
        # of the processes that ask, one alone can remove it; not the caller, which tries a little
        try:
            if kill.read_text() == str(os.getpid()):
                return False
            kill.unlink()
        except FileNotFoundError:
            return False
        return True


    def instance_func(mask, probability, name):
        whole = fill_holes(remove_small(mask, 5 * 8**3))
        ids = watershed(whole, probability, neck=0.99)
        return remove_small(fill_holes(ids), 8 * 8**3)
    """


@pytest.fixture
def predicted(tiny):  # noqa: F811
    """An experiment that is predicted, with a recipe that goes through all functions."""
    tiny.write("process_config.py", RECIPE)
    (folder,) = predict.predict(
        tiny.folder, data=tiny.data, block=8, dtype="float32", content="logits"
    )
    for name in ("mito", "er"):
        noise = np.random.default_rng(len(name)).normal(size=(24, 24, 24))
        blobs = ndimage.gaussian_filter(noise, 1.5)
        zarr.open(str(folder / name / "s0"), mode="r+")[...] = blobs / blobs.std()
    return tiny


def processed(tiny, **options):  # noqa: F811
    (folder,) = process.process(tiny.folder, data=tiny.data, overwrite=True, **options)
    return folder


def finished(folder) -> dict[str, np.ndarray]:
    assert not list(folder.glob(".st*"))
    return {name: voxels_of(folder / name) for name in ("mito", "er")}


def test_stages_on_disk_give_what_memory_gives(predicted, monkeypatch):
    wanted = finished(processed(predicted))
    assert wanted["mito"].max() > 3 and wanted["er"].any()
    monkeypatch.setattr(volume_module, "IN_MEMORY", 0)
    for name, values in finished(processed(predicted)).items():
        np.testing.assert_array_equal(values, wanted[name])
        assert values.dtype == wanted[name].dtype


def test_a_call_that_ends_in_any_stage_goes_on_with_the_blocks_that_are_left(
    predicted, monkeypatch
):
    folder = processed(predicted)
    wanted = finished(folder)
    shutil.rmtree(folder)
    monkeypatch.setattr(volume_module, "IN_MEMORY", 0)
    done = []
    original = stages._Stage.note

    def note(self, number, _=None):
        original(self, number)
        done.append((self.told.doing, number))
        if number == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(stages._Stage, "note", note)
    ends = 0
    while True:
        try:
            (folder,) = process.process(predicted.folder, data=predicted.data)
            break
        except KeyboardInterrupt:
            ends += 1
    assert ends > 10
    # each block of each stage once: what was done was not done again
    assert len(done) == len(set(done))
    for name, values in finished(folder).items():
        np.testing.assert_array_equal(values, wanted[name])


@pytest.mark.parametrize("kind", ["array", "list"])
@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_stage_that_was_damaged_is_named_and_made_again(
    predicted, monkeypatch, capsys, kind, damage
):
    folder = processed(predicted)
    wanted = finished(folder)
    shutil.rmtree(folder)
    monkeypatch.setattr(volume_module, "IN_MEMORY", 0)
    with monkeypatch.context() as patch:
        patch.setattr(instances, "copy", interrupted)
        with pytest.raises(KeyboardInterrupt):
            process.process(predicted.folder, data=predicted.data)
    root = folder / ".stages-mito"
    pattern = "*.pickle" if kind == "list" else "array/*/*/*"
    file = sorted(root.glob(f"*/*/{pattern}"))[0]
    stage = file.relative_to(root).parts[1]
    content = file.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]
    file.write_bytes(flipped if damage == "flipped" else content[:middle])
    process.process(predicted.folder, data=predicted.data)
    assert f"{stage}: damaged (" in capsys.readouterr().err
    for name, values in finished(folder).items():
        np.testing.assert_array_equal(values, wanted[name])


def interrupted(*_) -> None:
    raise KeyboardInterrupt


HELD = """
    import time
    from pathlib import Path

    classes = ("mito", "er")
    input_array_info = {"shape": (10, 10, 10), "scale": (8, 8, 8)}
    FOLDER = Path(__file__).parent


    def process_func(logits):
        if (FOLDER / "hold").exists():
            (FOLDER / "held").touch()
            until = time.monotonic() + 120
            while (FOLDER / "hold").exists() and time.monotonic() < until:
                time.sleep(0.02)
        return logits > 0
    """


def test_process_ends_in_its_time_limit_and_goes_on(predicted, run):
    predicted.write("process_config.py", HELD)
    wanted = finished(processed(predicted))
    (predicted.folder / "hold").touch()
    words = ("process", predicted.folder, "--data", predicted.data)
    code, _, err = run(*words, "--overwrite", "--time-limit", "1s")
    assert (code, "stopped by the time limit; the same command goes on" in err) == (75, True)
    assert (predicted.folder / "held").exists()
    (predicted.folder / "hold").unlink()
    code, out, err = run(*words)
    assert code == 0, err
    for name, values in finished(Path(out.strip())).items():
        np.testing.assert_array_equal(values, wanted[name])


@pytest.mark.slow
def test_a_caller_of_workers_that_is_killed_is_gone_on_with(predicted, forked):
    predicted.write("process_config.py", HELD)
    folder = processed(predicted)
    wanted = finished(folder)
    shutil.rmtree(folder)
    words = command("process", predicted, "--workers", "1")
    with held(predicted, forked, words) as caller:
        caller.send_signal(signal.SIGKILL)
        caller.ended()
        (predicted.folder / "hold").unlink()
    assert works(command("process", predicted, "--workers", "1")) == folder
    for name, values in finished(folder).items():
        np.testing.assert_array_equal(values, wanted[name])


def test_what_a_killed_call_left_of_a_whole_volume_is_swept(predicted):
    folder = processed(predicted)
    (folder / ".stages-mito/key").mkdir(parents=True)
    (folder / ".status.json").write_text("{}")
    process.process(predicted.folder, data=predicted.data)
    finished(folder)


@pytest.mark.slow
def test_two_workers_of_which_one_is_killed_merge_objects_over_their_blocks(predicted):
    wanted = finished(processed(predicted))
    (predicted.folder / "kill").write_text(str(os.getpid()))
    folder = works(command("process", predicted, "--overwrite", "--workers", "2"))
    assert not (predicted.folder / "kill").exists()
    for name, values in finished(folder).items():
        np.testing.assert_array_equal(values, wanted[name])


def test_a_worker_of_another_version_makes_nothing(tmp_path):
    source = masks.MaskSource(
        tmp_path, code="c", engine="another", name="mito", threshold=0.5, predicted=tmp_path
    )
    with pytest.raises(FileError, match=r"other code in .*numpy, scipy.* than its caller"):
        masks.recipe_of(source)


def test_stages_of_an_earlier_version_are_not_gone_on_with(predicted, monkeypatch):
    monkeypatch.setattr(volume_module, "IN_MEMORY", 0)
    with monkeypatch.context() as patch:
        patch.setattr(one_class, "engine_hash", lambda: "before")
        patch.setattr(stages.Stages, "gather", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            processed(predicted)
    [left] = predicted.folder.rglob(".stages-mito/*")
    kept = []
    run = stages.Stages._run

    def watched(self, folder, *rest):
        kept.append(self.place.root.name == left.name or left.exists())
        run(self, folder, *rest)

    monkeypatch.setattr(stages.Stages, "_run", watched)
    finished(processed(predicted))
    assert kept and not any(kept)
