from __future__ import annotations

import ast
import os
import subprocess
import sys
import time

import pytest
import torch

from common.config.load import read_overrides
from common.files import REPOSITORY
from common.train import search as module
from common.train.record import read_history, read_record
from common.train.search import choice, integers, log_uniform, uniform

optuna = pytest.importorskip("optuna")
SPACE = """
    from common.train.search import choice, log_uniform

    learning_rate = log_uniform(1e-5, 1e-1)
    batch_size = choice(1, 2)
    """


@pytest.fixture
def tiny(experiment):
    """A tiny experiment with a space; a trial takes about half a second."""
    made = experiment(epochs=3, iterations_per_epoch=2, figure_samples=0, validation_batch_limit=2)
    made.write("search_space.py", SPACE)
    return made


def run(tiny, trials: int, *overrides: str, **options):
    return module.search(tiny.folder, trials, overrides, tiny.data, **options)


def study_of(tiny):
    return optuna.load_study(
        study_name="search", storage=f"sqlite:///{tiny.folder}/logs/tiny_experiment/search.db"
    )


def states(tiny) -> list[str]:
    return [trial.state.name for trial in study_of(tiny).trials]


def logs(tiny, name: str):
    return tiny.folder / "logs/tiny_experiment" / name


def test_trials_are_ordinary_runs_and_the_best_becomes_a_file_that_training_takes(tiny):
    path = run(tiny, 3)
    trials = study_of(tiny).trials
    for number, trial in enumerate(trials, 1):
        record = read_record(logs(tiny, f"trial-{number:04d}"))
        history = read_history(logs(tiny, f"trial-{number:04d}"))
        assert record.run_name == f"trial-{number:04d}"
        assert record.result.finished
        assert float(record.settings["learning_rate"]) == trial.params["learning_rate"]
        assert trial.value == history["validation/dice"].max()
        assert list(logs(tiny, f"trial-{number:04d}").glob("events*"))
    best = max(trials, key=lambda trial: trial.value)
    assert best.value > 0
    settings = dict(line.split("=") for line in read_overrides(path))
    assert {name: ast.literal_eval(text) for name, text in settings.items()} == {
        **best.params,
        "batch_size": int(best.params["batch_size"]),
    }
    again = tiny.train(
        *read_overrides(path),
        run_name="again",
        validation_batch_limit=4 // int(settings["batch_size"]),
    )
    assert again.best_metric == best.value


def test_every_trial_starts_from_the_same_weights_and_is_measured_on_the_same_blocks(
    tiny, monkeypatch
):
    from common.train import run as run_module
    from common.train import steps

    begun, measured = [], []
    prepare, validate = run_module.prepare, steps.validate

    def prepared(config):
        made = prepare(config)
        begun.append({name: value.clone() for name, value in made[2].model.state_dict().items()})
        return made

    def validated(state, method, batches, *others):
        seen, on_device = [], batches.on_device
        batches.on_device = lambda pieces: (
            [seen.append((p.sample.crop, tuple(p.sample.centre))) for p in pieces]
            and on_device(pieces)
        )
        measured.append(seen)
        return validate(state, method, batches, *others)

    monkeypatch.setattr(run_module, "prepare", prepared)
    monkeypatch.setattr(steps, "validate", validated)
    tiny.add("validation_time_limit = 1e-9\nload_model = 'scratch'")
    run(tiny, 4, "epochs=1")
    assert len({trial.params["batch_size"] for trial in study_of(tiny).trials}) == 2
    assert all(torch.equal(one[name], begun[0][name]) for one in begun for name in one)
    assert (
        len(begun) == 4 and len(measured[0]) == 4 and all(seen == measured[0] for seen in measured)
    )


def test_a_trial_below_the_median_is_ended_early_and_said_to_be(tiny):
    tiny.write(
        "search_space.py",
        "from common.train.search import choice\nlearning_rate = choice(0.05, 1e-9)",
    )
    run(tiny, 6, "epochs=4", "best_metric=loss", prune_after=1, prune_epochs=1)
    trials = study_of(tiny).trials
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert pruned and all(2 <= trial.last_step < 4 for trial in pruned)
    for trial in pruned:
        result = read_record(logs(tiny, trial.user_attrs["run"])).result
        assert result.epoch == trial.last_step
        assert not result.finished
    assert study_of(tiny).best_value == min(
        trial.value for trial in trials if trial.state.name == "COMPLETE"
    )


def test_a_search_that_is_called_again_adds_the_trials_that_are_missing(tiny):
    run(tiny, 1, "epochs=1")
    run(tiny, 3, "epochs=1")
    run(tiny, 2, "epochs=1")
    trials = study_of(tiny).trials
    assert [trial.user_attrs["run"] for trial in trials] == [
        "trial-0001",
        "trial-0002",
        "trial-0003",
    ]
    assert len({trial.params["learning_rate"] for trial in trials}) == 3


def start(tiny, trials: int, *overrides: str) -> subprocess.Popen:
    code = f"import sys; from common.train.search import search; search({str(tiny.folder)!r}, {trials}, {overrides!r}, {str(tiny.data)!r}, prune_after=99)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def wait_for(path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_a_killed_trial_goes_on_from_its_checkpoint_as_the_same_run(tiny):
    latest = tiny.folder / "checkpoints/tiny_experiment/trial-0001/latest.pt"
    search = start(tiny, 1, "epochs=40")
    wait_for(latest)
    search.kill()
    search.communicate()
    assert states(tiny) == ["RUNNING"]
    reached = torch.load(latest, weights_only=True)["epoch"]

    run(tiny, 1, "epochs=40")
    before, after = study_of(tiny).trials
    assert (before.state.name, after.state.name) == ("FAIL", "COMPLETE")
    assert before.params == after.params and after.user_attrs["run"] == "trial-0001"
    record = read_record(logs(tiny, "trial-0001"))
    assert 0 < reached < 40
    assert [session.first_iteration for session in record.sessions] == [0, 2 * reached]
    history = read_history(logs(tiny, "trial-0001"))
    assert history["epoch"].tolist() == list(range(1, 41))
    assert after.value == history["validation/dice"].max()
    logged = zip(history["epoch"], history["validation/dice"], strict=True)
    assert set(after.intermediate_values.items()) <= set(logged)


def test_two_processes_share_a_study_and_no_trial_is_run_twice(tiny):
    other = start(tiny, 4, "epochs=6")
    wait_for(logs(tiny, "trial-0001"))
    run(tiny, 4, "epochs=6", prune_after=99)
    said = other.communicate(timeout=90)[1]
    assert other.returncode == 0, said
    trials = study_of(tiny).trials
    assert states(tiny) == ["COMPLETE"] * 4
    assert sorted(trial.user_attrs["run"] for trial in trials) == [
        f"trial-{n:04d}" for n in (1, 2, 3, 4)
    ]
    for trial in trials:
        assert len(read_record(logs(tiny, trial.user_attrs["run"])).sessions) == 1
    assert trials[1].datetime_start < trials[0].datetime_complete


def test_settings_that_diverge_fail_their_trial_and_not_the_search(tiny):
    tiny.write(
        "search_space.py",
        "from common.train.search import choice\nlearning_rate = choice(0.01, 1e30)",
    )
    run(tiny, 4, "epochs=1", "weight_decay=0.9")
    by_rate = {trial.params["learning_rate"]: trial.state.name for trial in study_of(tiny).trials}
    assert by_rate == {"0.01": "COMPLETE", "1e+30": "FAIL"}


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        (
            "best_metric = choice('dice', 'iou')",
            "best_metric is part of what trials are measured with",
        ),
        ("validation_batch_limit = integers(1, 4)", "validation_batch_limit is part of"),
        ("datasplit_path = choice('a.csv', 'b.csv')", "datasplit_path is part of"),
        (
            "target_array_info = {'scale': choice((8, 8, 8), (16, 16, 16))}",
            "target_array_info is part of",
        ),
        ("classes = choice(('mito',), ('er',))", "classes is part of"),
        ("use_mutual_exclusion = choice(True, False)", "use_mutual_exclusion is part of"),
        ("epochs = integers(1, 5)", "epochs is the same for all trials"),
        ("precision = choice('bf16', 'fp32')", "precision is the same for all trials"),
        ("learning_rte = uniform(0, 1)", "did you mean 'learning_rate'"),
        ("learning_rate = uniform(-1, 1)", "learning_rate = -1.0 cannot be"),
        ("batch_size = choice(1, 3)", "no multiple of it; choose divisors of 4"),
        ("batch_size = integers(1, 2)", "write batch_size = choice"),
        ("a = 1", "nothing to search for"),
        ("learning_rate = uniform(1, 0)", "write the lower end first"),
        ("learning_rate = log_uniform(0, 1)", "above 0"),
        ("batch_size = choice(1)", "write two or more"),
        ("optimizer = choice(print, len)", "cannot be written as text"),
    ],
)
def test_a_space_that_cannot_be_searched_is_refused_in_a_sentence(tiny, space, sentence):
    tiny.write(
        "search_space.py",
        f"from common.train.search import choice, integers, log_uniform, uniform\n{space}",
    )
    with pytest.raises(ValueError, match=sentence):
        run(tiny, 1)
    assert not (tiny.folder / "logs").exists()


@pytest.mark.parametrize("setting", ["weight_loss", "pos_weight_cap"])
def test_what_changes_the_loss_is_refused_where_the_loss_is_the_measure(tiny, setting):
    tiny.write(
        "search_space.py",
        f"from common.train.search import choice\n{setting} = choice({'True, False' if setting == 'weight_loss' else '1.0, 2.0'})",
    )
    space = module.read_space(tiny.folder)
    module.check_space(space, tiny.folder, tiny.config(), (), tiny.data)
    with pytest.raises(ValueError, match="measured with"):
        module.check_space(space, tiny.folder, tiny.config("best_metric=loss"), (), tiny.data)


def test_a_search_cannot_be_gone_on_with_under_other_settings(tiny):
    run(tiny, 1, "epochs=1")
    with pytest.raises(ValueError, match="max_grad_norm was 0.0 and is 1.0"):
        run(tiny, 2, "epochs=1", "max_grad_norm=1")
    tiny.write(
        "search_space.py",
        "from common.train.search import choice\nlearning_rate = choice(0.1, 0.2)",
    )
    with pytest.raises(ValueError, match="space learning_rate was Range"):
        run(tiny, 2, "epochs=1")


def test_a_searched_setting_is_not_given_by_hand_too(tiny):
    with pytest.raises(
        ValueError, match="learning_rate is searched for, and is given by --set too"
    ):
        run(tiny, 1, "learning-rate=1")


def test_without_validation_or_a_space_there_is_no_search(tiny):
    lines = (tiny.folder / "datasplit.csv").read_text().splitlines(keepends=True)
    tiny.write("datasplit.csv", "".join(line for line in lines if "validate" not in line))
    with pytest.raises(ValueError, match="no validation crop"):
        run(tiny, 1)
    (tiny.folder / "search_space.py").unlink()
    with pytest.raises(FileNotFoundError, match="learning_rate = log_uniform"):
        run(tiny, 1)


def test_without_optuna_one_sentence_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ValueError, match="pip install optuna"):
        run(tiny, 1)


def test_parts_of_dicts_are_searched_by_their_names(tiny):
    tiny.write(
        "search_space.py",
        "from common.train.search import integers\nmodel_kwargs = {'width': integers(2, 4), 'inner': {'kind': integers(0, 1)}}",
    )
    assert module.read_space(tiny.folder) == {
        "model_kwargs.width": integers(2, 4),
        "model_kwargs.inner.kind": integers(0, 1),
    }


def test_a_file_of_overrides_is_lines_of_name_and_value(tmp_path):
    path = tmp_path / "settings.txt"
    path.write_text("# best of 3\n\nlearning_rate=0.1\n  batch_size = 2\n")
    assert read_overrides(path) == ("learning_rate=0.1", "batch_size = 2")
    path.write_text("learning_rate 0.1\n")
    with pytest.raises(ValueError, match="line 1: 'learning_rate 0.1' has no '='"):
        read_overrides(path)
    with pytest.raises(FileNotFoundError, match="no such file of overrides"):
        read_overrides(tmp_path / "none")


def test_helpers_give_what_optuna_is_asked_for():
    distributions = optuna.distributions
    assert module._distribution(log_uniform(1, 10)) == distributions.FloatDistribution(
        1.0, 10.0, log=True
    )
    assert module._distribution(uniform(0, 1)) == distributions.FloatDistribution(0.0, 1.0)
    assert module._distribution(integers(1, 3)) == distributions.IntDistribution(1, 3)
    assert module._distribution(choice(1, "a", (2, 3))) == distributions.CategoricalDistribution(
        ["1", "a", "(2, 3)"]
    )
