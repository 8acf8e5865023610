"""What doctor finds, and what it says mends it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from common import runtime
from common.files import REPOSITORY
from common.shell import doctor
from common.shell.doctor import GOOD, NOTE, WRONG, Finding


def about(findings, what: str) -> list[Finding]:
    """The findings about one thing."""
    return [finding for finding in findings if finding.what == what]


def test_a_machine_that_can_train_an_experiment_is_well_and_stays_as_it_is(experiment, tmp_path):
    tiny = experiment()
    before = sorted(tmp_path.rglob("*"))
    findings = doctor.doctor(tiny.folder, tiny.data)
    assert doctor.is_well(findings), doctor.report(findings)
    assert sorted(tmp_path.rglob("*")) == before
    assert about(findings, "data")[0].text == f"3 annotated crops of 1 dataset in {tiny.data}"
    assert about(findings, "datasplit")[0].text.startswith("3 crops of ")
    assert "cpu in fp32" in about(findings, "device")[0].text
    tiny.train()  # and it does train


def test_a_missing_data_root_says_how_to_name_one(monkeypatch, tmp_path):
    monkeypatch.setenv("CELLMAP_DATA", str(tmp_path / "none"))
    (finding,) = about(doctor.doctor(), "data")
    assert finding.state == WRONG
    assert str(tmp_path / "none") in finding.text
    assert "CELLMAP_DATA=FOLDER" in finding.mend


@pytest.mark.parametrize("inside", ["tiny", "tiny/tiny.zarr", "tiny/tiny.zarr/recon-1", ".."])
def test_a_data_root_that_is_off_by_a_folder_is_told_the_right_one(experiment, inside):
    tiny = experiment()
    findings = doctor.doctor(tiny.folder, (tiny.data / inside).resolve())
    mends = [about(findings, what)[0].mend for what in ("data", "datasplit")]
    assert all(mend.endswith(f"--data {tiny.data}") for mend in mends), mends
    assert not any("fetch" in mend for mend in mends)


def test_what_a_datasplit_names_and_is_not_there_is_named(experiment):
    tiny = experiment()
    shutil.rmtree(tiny.crop("crop3"))
    findings = doctor.doctor(tiny.folder, tiny.data)
    (finding,) = about(findings, "datasplit")
    assert finding.state == WRONG and "crop3" in finding.text
    remake = f"--data {tiny.data} --classes mito,er,nuc --scale 8,8,8 --overwrite"
    assert finding.mend.endswith(f"make-datasplit {tiny.folder}/datasplit.csv {remake}")
    assert about(findings, "data")[0].text.startswith("2 annotated crops")


def test_of_much_that_is_not_there_the_first_is_named_and_the_rest_counted(experiment):
    tiny = experiment()
    for name in ("mito", "er"):
        shutil.rmtree(tiny.crop("crop1") / name)
    for crop in ("crop2", "crop3"):
        shutil.rmtree(tiny.crop(crop))
    shutil.rmtree(tiny.raw)
    (finding,) = about(doctor.doctor(tiny.folder, tiny.data), "datasplit")
    assert f"no mito, er in {tiny.crop('crop1')} | " in finding.text
    assert finding.text.endswith(" | and 1 more")


def test_crops_that_training_refuses_stop_it(experiment):
    tiny = experiment(input_array_info={"shape": (96,) * 3, "scale": (8,) * 3})
    findings = doctor.doctor(tiny.folder, tiny.data)
    (finding,) = about(findings, "crops")
    assert "448 nm of raw, smaller than the input patch of 768 nm" in finding.text
    assert not doctor.is_well(findings)


def test_a_tracker_that_is_not_installed_stops_training(experiment, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    tiny = experiment(trackers=("mlflow",))
    (finding,) = about(doctor.doctor(tiny.folder, tiny.data), "trackers")
    assert finding.state == WRONG and "pip install mlflow" in finding.text


def test_classes_that_no_training_crop_annotates_are_said(experiment):
    tiny = experiment()
    assert not about(doctor.doctor(tiny.folder, tiny.data), "classes")
    path = tiny.config().path("datasplit_path")
    rows = path.read_text().splitlines()
    name = tiny.config().classes[-1]
    rows = [row.replace(f",{name}", "") if row.startswith('"train') else row for row in rows]
    path.write_text("\n".join(rows))
    (finding,) = about(doctor.doctor(tiny.folder, tiny.data), "classes")
    assert finding.state == NOTE
    assert finding.text == f"annotated in no training crop: {name}"


def test_how_raw_is_normalised_is_said(experiment):
    tiny = experiment(raw_normalization="zscore")
    (finding,) = about(doctor.doctor(tiny.folder, tiny.data), "raw")
    assert finding.state == GOOD
    assert "'zscore': measured once in each of 1 volume, when" in finding.text


@pytest.mark.parametrize("file", ["crop1/er/s0/.zarray", "crop3/mito/.zattrs"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{")])
def test_volumes_that_cannot_be_read_are_named_and_are_not_all_there(experiment, file, damage):
    tiny = experiment()
    damage(tiny.crop().parent / file)
    (finding,) = about(doctor.doctor(tiny.folder, tiny.data), "datasplit")
    assert finding.state == WRONG
    assert finding.text.startswith(f"1 volume of {tiny.folder}/datasplit.csv cannot be read: ")
    assert str((tiny.crop().parent / file).parent) in finding.text


def test_data_that_may_not_be_read_are_a_finding(experiment, monkeypatch):
    tiny = experiment()

    def refused(root):
        raise PermissionError(13, "Permission denied", str(root))

    monkeypatch.setattr(doctor.layout, "crop_folders", refused)
    (finding,) = about(doctor.doctor(tiny.folder, tiny.data), "data")
    assert (finding.state, finding.text, finding.mend) == (
        WRONG,
        f"{tiny.data}: cannot be read (Permission denied)",
        "see that you may read it",
    )


def test_crops_without_raw_are_said(experiment):
    tiny = experiment()
    shutil.rmtree(tiny.raw.parent)
    texts = [finding.text for finding in about(doctor.doctor(None, tiny.data), "data")]
    assert "no raw (recon-1/em) for tiny" in texts


def test_settings_that_cannot_be_read_are_a_finding_and_the_rest_is_still_looked_at(experiment):
    tiny = experiment(text="learning_rte = 1")
    findings = doctor.doctor(tiny.folder, tiny.data)
    assert "did you mean 'learning_rate'" in about(findings, "settings")[0].text
    assert not doctor.is_well(findings) and about(findings, "device") and about(findings, "data")


def test_a_process_config_that_will_be_refused_is_said_before_training(experiment):
    tiny = experiment()
    tiny.write("process_config.py", "classes = ['granule']\nprocess_func = abs")
    findings = doctor.doctor(tiny.folder, tiny.data)
    (finding,) = about(findings, "process")
    assert "process_config.py: unknown class 'granule'; " in finding.text
    assert doctor.is_well(findings)


@pytest.mark.parametrize(
    ("package", "installed", "state", "sentence"),
    [
        ("zarr", "3.1.0", WRONG, "zarr<3,>=2.18 is asked for, and 3.1.0 is installed"),
        ("leibnetz", "", WRONG, "leibnetz>=2025.11 is asked for, and it is not installed"),
        ("pytest", "", NOTE, "it is not installed (for tests only)"),
    ],
)
def test_packages_are_held_against_the_requirements(
    monkeypatch, package, installed, state, sentence
):
    versions = doctor.version

    def version(name):
        return installed if name == package else versions(name)

    monkeypatch.setattr(doctor, "version", version)
    wrong = [finding for finding in about(doctor.packages(), "packages") if finding.state != GOOD]
    assert [finding.state for finding in wrong] == [state]
    assert sentence in wrong[0].text and "pip install -r" in wrong[0].mend


def test_without_a_checkout_a_missing_package_is_installed_by_itself(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "REPOSITORY", tmp_path)
    monkeypatch.setattr(doctor, "version", lambda name: "" if name == "zarr" else "99")
    wrong = [finding for finding in doctor.packages() if "zarr" in finding.text]
    assert "pip install 'zarr>=2.18,<3'" in wrong[0].mend


def test_too_little_shared_memory_stops_workers_and_only_them(experiment, monkeypatch):
    # what a container has by default
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=64e6))
    config = experiment().config(num_workers=0)
    [without_workers] = about(doctor.machine(config), "shared memory")
    [with_workers] = about(doctor.machine(replace(config, num_workers=1)), "shared memory")
    assert without_workers.state == GOOD
    assert with_workers.state == WRONG and "--shm-size" in with_workers.mend


@pytest.mark.parametrize(("free_gb", "state"), [(0.5, WRONG), (10, NOTE), (50, GOOD), (500, GOOD)])
def test_the_cache_needs_room(experiment, monkeypatch, free_gb, state):
    """50 GB are less than the 100 of cache_gb, and enough for the crops that there are."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free_gb * 1e9))
    (finding,) = about(doctor.disks(experiment().config()), "cache")
    assert finding.state == state


def test_crops_that_will_not_fit_on_the_disk_of_the_cache_stop_training(experiment, monkeypatch):
    from common.data.samples import loaders

    tiny = experiment()
    config = tiny.config()
    data = loaders.open_data(config)
    written = sum(crop.bytes for crop in (*data.train, *data.validation))
    monkeypatch.setattr(doctor, "LITTLE_DISK_GB", 0.0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=written - 1))
    elsewhere = tiny.config(cache_path="another")
    findings = [
        about(doctor.disks(of_run, doctor.opened(of_run).gb_to_decode), "cache")[0]
        for of_run in (config, elsewhere)
    ]
    of_decoded, of_undecoded = findings
    assert of_decoded.state == GOOD
    assert of_undecoded.state == WRONG and "take 0.0 GB more when decoded" in of_undecoded.text


def test_a_folder_that_cannot_be_written_to_stops_training(experiment, monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert {finding.state for finding in doctor.disks(experiment().config())} == {WRONG}


@pytest.mark.parametrize(("package", "wrong"), [("torch", "torch"), ("zarr", "data")])
def test_without_a_package_the_rest_is_still_looked_at(package, wrong):
    code = f"import sys; sys.modules['{package}'] = None; from common.shell import doctor as d; "
    code += "print(d.report(d.doctor(data='none')))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert f"WRONG {wrong} " in done.stdout
    assert "nothing here stops training" not in done.stdout


def test_data_that_need_a_package_which_is_not_there_are_said_not_to_be_looked_at(
    experiment, monkeypatch
):
    tiny = experiment()
    monkeypatch.setitem(sys.modules, "common.data.splits.catalogue", None)
    (finding,) = doctor.data_found(tiny.config(), tiny.data)
    assert finding.state == NOTE and finding.text.startswith("not looked at: import of common.data")


def test_a_gpu_that_torch_does_not_use_is_said(monkeypatch):
    monkeypatch.setattr(doctor, "nvidia", lambda: "580.1, NVIDIA H100, 81559 MiB")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (finding,) = about(doctor.devices(None), "torch")
    assert finding.state == NOTE and "trains on the CPU" in finding.text


def test_a_device_that_cannot_convolve_stops_training(monkeypatch):
    def broken(*_):
        raise RuntimeError("CUDA error: no kernel image is available\nmore")

    monkeypatch.setattr(doctor, "convolve", broken)
    (finding,) = about(doctor.devices(None), "device")
    assert finding == Finding("device", WRONG, "CUDA error: no kernel image is available")


def test_a_device_that_is_not_there_stops_training(experiment, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (finding,) = about(doctor.devices(experiment(device="mps").config()), "device")
    assert finding.state == WRONG and "device = 'mps'" in finding.text


def test_versions_known_to_be_slow_are_said(monkeypatch):
    monkeypatch.setattr(runtime, "warnings_about", lambda _: ["torch 2.9.0 is slow"])
    assert about(doctor.devices(None), "torch")[0].text == "torch 2.9.0 is slow"


def test_a_report_ends_with_what_stops_training():
    findings = [Finding("data", WRONG, "no folder", "fetch it"), Finding("python", GOOD, "3.12")]
    assert doctor.report(findings).splitlines() == [
        "WRONG data    no folder",
        "              -> fetch it",
        "ok    python  3.12",
        "training stops at: data",
    ]
    assert doctor.report(findings[1:]).endswith("nothing here stops training")
