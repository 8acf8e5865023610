"""What a run does where files fail, and about steps that have to be skipped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from common.data.samples.batches import Batch
from common.data.samples.workers import WorkerLost
from common.errors import FileError, NotFinite
from common.stopping import ShouldStop
from common.talk import count, note, some
from common.train import skipped
from common.train.checkpointing.checkpoint import path_of
from common.train.processes import ranks
from common.train.setup import Setup
from common.train.state import State, StepResult


@contextmanager
def saved_if_files_fail(setup: Setup, state: State, stopped: ShouldStop) -> Iterator[None]:
    """Save the state, which is whole between two steps, before a FileError goes on.

    It is of workers that are lost, or of logs that find no room. Where the run is being stopped
    nothing is raised for workers: schedulers send signals to them, too.
    """
    try:
        yield
    except FileError as error:
        # lost workers are told by all processes, see ranks.raised_by_all; logs are one process's,
        # and what is saved is of all
        if ranks.size() > 1 and not isinstance(error, WorkerLost):
            raise
        if isinstance(error, WorkerLost) and stopped():
            return
        try:
            setup.save(state)
        except FileError:
            raise error from None  # of the same disk
        raise type(error)(
            f"{error}. Saved after iteration {state.iteration} in {path_of(setup.config)}; "
            "the same command goes on from there"
        ) from error


def keep_skipped(setup: Setup, state: State, group: list[Batch], result: StepResult) -> None:
    """Write down a step that was skipped, and say so once in an epoch.

    Raises NotFinite, with the state saved, where there were too many in a row.
    """
    config = setup.config
    step = skipped.described(state.iteration, group, result.numbers)
    if ranks.is_main():
        skipped.add(config.path("logs_save_path"), config.random_seed, step)
    samples = [f"{sample.crop} (sample {sample.number})" for sample in step.samples]
    what = f"iteration {step.iteration}: {step.problem}, on {some(samples)}"
    if state.skipped_in_epoch == 1:
        note(f"{what}; the step is skipped. To look at it:\n  {setup.replay}")
    # an epoch without any step is none, however few steps it has
    if state.skipped_in_a_row < min(config.skipped_steps_limit, config.iterations_per_epoch):
        return
    in_a_row = count(state.skipped_in_a_row, "step")
    state.skipped_in_a_row = 0  # whoever mends the data goes on
    setup.save(state)
    raise NotFinite(
        f"{what}; {in_a_row} in a row not finite, and skipped. "
        f"{path_of(config)} has the weights from before them. "
        f"Where it begins, in which samples and which layer, says\n  {setup.replay}\n"
        f"{what_to_change(setup)}"
    )


def what_to_change(setup: Setup) -> str:
    """Return what keeps numbers finite where it is not the data, as a sentence."""
    half = ""
    if setup.method.forward.precision.name == "fp16":
        half = ", precision = 'bf16' or 'fp32' (numbers above 65504 overflow in fp16)"
    return (
        "If it is the data, mend them and go on with the same command; else start another run_name "
        f"with a lower learning_rate, or a max_grad_norm{half}"
    )
