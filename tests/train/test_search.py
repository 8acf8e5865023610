from __future__ import annotations

import ast
import shlex
import signal
import sys

import pytest
import torch
from conftest import Forked, wait_until

from common.config.overrides import read_overrides
from common.errors import UserError
from common.train import run as training
from common.train import validation as validation_module
from common.train.recording.record import read_history, read_record
from common.train.search import choice, integers, log_uniform, space, uniform
from common.train.search import trials as module

optuna = pytest.importorskip("optuna")
SPACE = """
    from common.train.search import choice, log_uniform

    learning_rate = log_uniform(1e-5, 1e-1)
    batch_size = choice(1, 2)
    """


@pytest.fixture
def tiny(experiment):
    """A tiny experiment with a space; a trial takes about half a second."""
    tiny = experiment(epochs=3, iterations_per_epoch=2, figure_samples=0, validation_batch_limit=2)
    tiny.write("search_space.py", SPACE)
    return tiny


def write_space(tiny, *lines: str) -> None:
    helpers = "from common.train.search import choice, integers, log_uniform, uniform"
    tiny.write("search_space.py", "\n".join([helpers, *lines]))


def run(tiny, trials: int, *overrides: str, **options):
    return module.search(tiny.folder, trials, overrides, tiny.data, **options)


def study_of(tiny):
    storage = module.open_storage(tiny.folder / "logs/tiny_experiment/search.db")
    return optuna.load_study(study_name="search", storage=storage)


def states(tiny) -> list[str]:
    return [trial.state.name for trial in study_of(tiny).trials]


def logs(tiny, name: str):
    return tiny.folder / "logs/tiny_experiment" / name


def test_the_command_that_is_said_trains_the_best_beside_a_run_of_the_experiment(tiny, capsys, run):
    """As it is typed, in a folder where the experiment was trained before."""
    tiny.train()
    module.search(tiny.folder, 2, ("weight_decay=0.5", "epochs=1"), tiny.data)
    command = capsys.readouterr().err.strip().splitlines()[-1].removeprefix("next: ")
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "cellmap_segmentation_challenge", "train"]
    code, _, said = run(*words[3:])
    assert code == 0, said
    (folder,) = (tiny.folder / "logs/tiny_experiment").glob("best-trial-*")
    settings = read_record(folder).settings
    assert (settings["weight_decay"], settings["epochs"]) == ("0.5", "1")


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
    overrides = read_overrides(path)
    settings = dict(line.split("=") for line in overrides)
    batch_size = int(best.params["batch_size"])
    assert ast.literal_eval(settings["learning_rate"]) == best.params["learning_rate"]
    assert int(settings["batch_size"]) == batch_size
    assert len(settings) == 2
    again = tiny.train(*overrides, run_name="again", validation_batch_limit=4 // batch_size)
    assert again.best_metric == best.value


@pytest.fixture
def weights(monkeypatch) -> list:
    """The weights that each run starts with, while it lasts."""
    started = []
    prepare = training.prepare

    def keep(*arguments):
        prepared = prepare(*arguments)
        _, state = prepared
        values = state.model.state_dict()
        started.append({name: value.clone() for name, value in values.items()})
        return prepared

    monkeypatch.setattr(training, "prepare", keep)
    return started


@pytest.fixture
def measured(monkeypatch) -> list:
    """Crop and centre of the blocks of each validation, while it lasts."""
    validations = []
    validate = validation_module.validate

    def keep(state, method, validation, stop):
        blocks = []
        batches = validation.batches
        on_device = batches.on_device

        def note(pieces):
            blocks.extend((piece.sample.crop, tuple(piece.sample.centre)) for piece in pieces)
            return on_device(pieces)

        batches.on_device = note
        validations.append(blocks)
        return validate(state, method, validation, stop)

    monkeypatch.setattr(validation_module, "validate", keep)
    return validations


def test_every_trial_starts_from_the_same_weights_and_is_measured_on_the_same_blocks(
    tiny, weights, measured
):
    tiny.add("validation_time_limit = 1e-9\nload_model = 'scratch'")
    run(tiny, 4, "epochs=1")
    assert len({trial.params["batch_size"] for trial in study_of(tiny).trials}) == 2
    assert len(weights) == 4
    for started in weights:
        for name, value in started.items():
            assert torch.equal(value, weights[0][name])
    assert len(measured[0]) == 4
    assert measured == [measured[0]] * 4


def test_a_trial_below_the_median_is_ended_early_and_said_to_be(tiny):
    write_space(tiny, "learning_rate = choice(0.05, 1e-9)")
    run(tiny, 6, "epochs=4", "best_metric=loss", prune_after=1, prune_epochs=1)
    trials = study_of(tiny).trials
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert pruned
    for trial in pruned:
        assert 2 <= trial.last_step < 4
        result = read_record(logs(tiny, trial.user_attrs["run"])).result
        assert result.epoch == trial.last_step
        assert not result.finished
    completed = [trial.value for trial in trials if trial.state.name == "COMPLETE"]
    assert study_of(tiny).best_value == min(completed)


def test_a_search_that_is_called_again_adds_the_trials_that_are_missing(tiny):
    run(tiny, 1, "epochs=1")
    run(tiny, 3, "epochs=1")
    run(tiny, 2, "epochs=1")
    trials = study_of(tiny).trials
    names = [trial.user_attrs["run"] for trial in trials]
    assert names == ["trial-0001", "trial-0002", "trial-0003"]
    assert len({trial.params["learning_rate"] for trial in trials}) == 3


HOLD = """
    import time


    class Hold:
        def __init__(self, folder, run_name, settings):
            self.folder = folder
            self.holds = run_name == "trial-0001"

        def scalars(self, values, step):
            if self.holds and step == 4 and "loss/validation" in values:
                (self.folder / "held").touch()
                while not (self.folder / "go").exists():
                    time.sleep(0.02)

        def image(self, tag, image, step):
            pass

        def text(self, tag, values, step):
            pass

        def finish(self, status, settings, metrics, files):
            pass
    """


@pytest.fixture
def held(tiny, forked):
    """Starts a search in a process that stops in the second epoch of trial-0001.

    There it has logged its validation, and its checkpoint is that of the first epoch. It goes on
    when `go` is made in the folder of the trial's logs.
    """

    def start(trials: int) -> Forked:
        tiny.write("hold.py", HOLD)
        tiny.add("from .hold import Hold\n\ntrackers = (Hold,)")
        call = f"search({str(tiny.folder)!r}, {trials}, (), {str(tiny.data)!r}, prune_after=99)"
        process = forked(program=f"from common.train.search.trials import search; {call}")
        wait_until((logs(tiny, "trial-0001") / "held").exists, process)
        return process

    return start


def test_a_killed_trial_goes_on_from_its_checkpoint_as_the_same_run(tiny, held):
    process = held(1)
    process.send_signal(signal.SIGKILL)
    process.ended()
    assert states(tiny) == ["RUNNING"]

    run(tiny, 1, "trackers=tensorboard")
    before, after = study_of(tiny).trials
    assert (before.state.name, after.state.name) == ("FAIL", "COMPLETE")
    assert before.params == after.params
    assert after.user_attrs["run"] == "trial-0001"
    record = read_record(logs(tiny, "trial-0001"))
    # it was killed after the steps of its second epoch, which are saved
    assert [session.first_iteration for session in record.sessions] == [0, 4]
    history = read_history(logs(tiny, "trial-0001"))
    assert history["epoch"].tolist() == [1, 2, 3]
    assert after.value == history["validation/dice"].max()
    logged = zip(history["epoch"], history["validation/dice"], strict=True)
    assert set(after.intermediate_values.items()) <= set(logged)


def test_two_processes_share_a_study_and_no_trial_is_run_twice(tiny, held):
    other = held(4)
    run(tiny, 4, "trackers=tensorboard", prune_after=99)
    assert states(tiny) == ["RUNNING", "COMPLETE", "COMPLETE", "COMPLETE"]
    (logs(tiny, "trial-0001") / "go").touch()
    code, _, said = other.ended()
    assert code == 0, said
    assert states(tiny) == ["COMPLETE"] * 4
    names = [trial.user_attrs["run"] for trial in study_of(tiny).trials]
    assert names == ["trial-0001", "trial-0002", "trial-0003", "trial-0004"]
    for name in names:
        assert len(read_record(logs(tiny, name)).sessions) == 1


def test_settings_that_diverge_fail_their_trial_and_not_the_search(tiny):
    write_space(tiny, "learning_rate = choice(0.01, 1e30)")
    run(tiny, 4, "epochs=1", "weight_decay=0.9")
    by_rate = {trial.params["learning_rate"]: trial.state.name for trial in study_of(tiny).trials}
    assert by_rate == {"0.01": "COMPLETE", "1e+30": "FAIL"}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("best_metric = choice('dice', 'iou')", "best_metric is part of what trials are measured"),
        ("validation_batch_limit = integers(1, 4)", "validation_batch_limit is part of"),
        ("datasplit_path = choice('a.csv', 'b.csv')", "datasplit_path is part of"),
        (
            "target_array_info = {'scale': choice((8, 8, 8), (16, 16, 16))}",
            "target_array_info is part of",
        ),
        ("classes = choice(('mito',), ('er',))", "classes is part of"),
        ("use_mutual_exclusion = choice(True, False)", "use_mutual_exclusion is part of"),
        ("exclusive_classes = choice((), ('mito', 'er'))", "exclusive_classes is part of"),
        ("softmax = choice((), ('mito', 'er'))", "softmax is part of"),
        ("metric_smoothing = uniform(0.0, 0.9)", "metric_smoothing is part of"),
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
def test_a_space_that_cannot_be_searched_is_refused_in_a_sentence(tiny, line, problem):
    write_space(tiny, line)
    with pytest.raises(UserError, match=problem):
        run(tiny, 1)
    assert not (tiny.folder / "logs").exists()


@pytest.mark.parametrize(
    "line",
    [
        "weight_loss = choice(True, False)",
        "pos_weight_cap = choice(1.0, 2.0)",
        "criterion_kwargs = {'alpha': uniform(0.1, 0.9)}",
    ],
)
def test_what_changes_the_loss_is_refused_where_the_loss_is_the_measure(tiny, line):
    tiny.add("from common.train.losses import focal_loss as criterion")
    write_space(tiny, line)
    tried = space.read_space(tiny.folder)
    space.check_space(tried, tiny.config(), tiny.folder, data=tiny.data)
    by_loss = tiny.config("best_metric=loss")
    with pytest.raises(UserError, match="measured with"):
        space.check_space(tried, by_loss, tiny.folder, data=tiny.data)


def test_a_search_cannot_be_gone_on_with_under_other_settings(tiny):
    run(tiny, 1, "epochs=1")
    with pytest.raises(UserError, match="max_grad_norm was"):
        run(tiny, 2, "epochs=1", "max_grad_norm=1")
    write_space(tiny, "learning_rate = choice(0.1, 0.2)")
    with pytest.raises(UserError, match="space learning_rate was Range"):
        run(tiny, 2, "epochs=1")


def test_a_study_that_is_damaged_or_lost_does_not_begin_anew_over_its_trials(tiny):
    write_space(tiny, "learning_rate = log_uniform(1e-3, 1e-2)")
    run(tiny, 1)
    study = tiny.folder / "logs/tiny_experiment/search.db"
    content = study.read_bytes()
    for damaged in (content[: len(content) // 2], b"no database" * 1000):
        study.write_bytes(damaged)
        with pytest.raises(UserError, match=r"search\.db: the study cannot be read \(.*model_name"):
            run(tiny, 1)
        assert study.read_bytes() == damaged
    study.write_bytes(b"")
    with pytest.raises(UserError, match=r"search\.db: gone or empty, and trial-0001 of its trials"):
        run(tiny, 1)
    study.write_bytes(content)
    run(tiny, 1)
    assert states(tiny) == ["COMPLETE"]


def test_a_searched_setting_is_not_given_by_hand_too(tiny):
    with pytest.raises(UserError, match="given by --set too"):
        run(tiny, 1, "learning-rate=1")


def test_without_validation_or_a_space_there_is_no_search(tiny):
    lines = (tiny.folder / "datasplit.csv").read_text().splitlines(keepends=True)
    tiny.write("datasplit.csv", "".join(line for line in lines if "validate" not in line))
    with pytest.raises(UserError, match="no validation crop"):
        run(tiny, 1)
    (tiny.folder / "search_space.py").unlink()
    with pytest.raises(FileNotFoundError, match="learning_rate = log_uniform"):
        run(tiny, 1)


def test_without_optuna_one_sentence_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="pip install optuna"):
        run(tiny, 1)


def test_parts_of_dicts_are_searched_by_their_names(tiny):
    inner = "'inner': {'kind': integers(0, 1)}"
    write_space(tiny, f"model_kwargs = {{'width': integers(2, 4), {inner}}}")
    assert space.read_space(tiny.folder) == {
        "model_kwargs.width": integers(2, 4),
        "model_kwargs.inner.kind": integers(0, 1),
    }


def test_a_file_of_overrides_is_lines_of_name_and_value(tmp_path):
    path = tmp_path / "settings.txt"
    path.write_text("# best of 3\n\nlearning_rate=0.1\n  batch_size = 2\n")
    assert read_overrides(path) == ("learning_rate=0.1", "batch_size = 2")
    path.write_text("learning_rate 0.1\n")
    with pytest.raises(UserError, match="line 1: 'learning_rate"):
        read_overrides(path)
    with pytest.raises(FileNotFoundError, match="no such file of overrides"):
        read_overrides(tmp_path / "none")


def test_helpers_give_what_optuna_is_asked_for():
    kinds = optuna.distributions
    wanted = kinds.FloatDistribution(1.0, 10.0, log=True)
    assert module.distribution(log_uniform(1, 10)) == wanted
    assert module.distribution(uniform(0, 1)) == kinds.FloatDistribution(0.0, 1.0)
    assert module.distribution(integers(1, 3)) == kinds.IntDistribution(1, 3)
    wanted = kinds.CategoricalDistribution(["1", "a", "(2, 3)"])
    assert module.distribution(choice(1, "a", (2, 3))) == wanted
