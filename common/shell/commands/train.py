"""Commands that train: one run, a search, a job of a batch system, a bad step again."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import click

from common import stopping
from common.errors import UserError
from common.shell import options
from common.shell.group import Command
from common.shell.next_step import say_next

if TYPE_CHECKING:
    from common.shell.jobs import Job, Resources
    from common.train.run import Result

command = partial(click.command, cls=Command, heading="Train")


@command()
@options.config_path
@options.time_limit
@options.overrides
@click.option(
    "--overrides",
    "override_file",
    metavar="FILE",
    help="NAME=VALUE lines, such as best_settings.txt of a search.",
)
@options.data()
@click.option(
    "--seeds",
    metavar="LIST",
    help="Train one run for each seed, one after the other: 1,2,3 or 1-3.",
)
@click.option(
    "--each-class",
    is_flag=True,
    help="Train one network for each class, the other classes being its counter-examples.",
)
@click.option(
    "--selective",
    is_flag=True,
    help="Train only on crops that have a positive voxel of a class that is learnt.",
)
@click.option(
    "--submit",
    metavar="TEMPLATE",
    help="With --seeds: run this command for each instead, {command} and {seed} filled in, "
    "such as 'bsub -gpu num=1 {command}'.",
)
@click.option(
    "--check",
    is_flag=True,
    help="Dry run: read everything, take a few steps, report shapes, memory and time, "
    "keep nothing.",
)
@click.option(
    "--gpus",
    metavar="all|LIST",
    help="Train one run on several GPUs of this machine, by torchrun: all, or numbers such as 0,1.",
)
@click.option(
    "--processes",
    type=options.WORKERS,
    help="The same on the CPU, by so many processes.",
)
def train(
    config_path: str,
    *,
    overrides: tuple[str, ...],
    override_file: str | None,
    gpus: str | None,
    processes: int | None,
    **given: Any,
) -> None:
    """Train an experiment, or go on where it stopped."""
    options.refuse_missing(config_path, overrides)
    from common.config.overrides import with_file
    from common.shell import launch
    from common.train.processes import ranks

    call = _TrainCall(config_path, **given)
    call.check_together()
    if launch.is_asked(gpus=gpus, processes=processes):
        if call.check or call.submit:
            raise UserError("--check and --submit are one process's; leave --gpus, --processes out")
        sys.exit(launch.launch(processes))
    with ranks.joined():
        if (call.check or call.submit) and ranks.are_joined():
            raise UserError("--check and --submit are one process's; start them without torchrun")
        settings = (*with_file(overrides, override_file), *call.settings())
        if call.check:
            call.dry_run(settings)
            return
        if call.submit:
            call.hand_in(settings, call.submit)
            return
        with stopping.time_limit(call.time_limit):
            results = call.train(settings)
        is_speaker = ranks.is_main()
    result = results[-1]
    if not result.finished:
        # as a shell, or a scheduler, expects it of a run that was interrupted
        sys.exit(stopping.NOT_FINISHED if result.requeue else stopping.INTERRUPTED)
    if is_speaker:
        call.say_what_follows(results)


@dataclass(frozen=True)
class _TrainCall:
    """One call of `train`: of which experiment, and which runs of it."""

    config_path: str
    time_limit: float
    """Seconds; 0 is no limit."""
    data: str | None
    seeds: str | None
    each_class: bool
    selective: bool
    submit: str | None
    check: bool

    def settings(self) -> tuple[str, ...]:
        """The settings that options stand for, as NAME=VALUE."""
        return ("selective=True",) if self.selective else ()

    def check_together(self) -> None:
        """Raises UserError for options that do not go together."""
        if self.each_class and (self.check or self.submit or self.seeds):
            raise UserError(
                "--each-class trains one network after the other, with one seed; leave --check, "
                "--submit and --seeds out"
            )
        if self.check and (self.seeds or self.submit or self.time_limit):
            raise UserError(
                "--check takes a few steps of one run, here; leave --seeds, --submit and "
                "--time-limit out"
            )

    def dry_run(self, settings: tuple[str, ...]) -> None:
        """Take a few steps, and say what came of them."""
        import common.train.check
        from common.score.whole_crops import of_run

        report = common.train.check.check(self.config_path, settings, self.data, score=of_run)
        click.echo(report)
        say_next("train", check=False)

    def hand_in(self, settings: tuple[str, ...], template: str) -> None:
        """Call the command of a queue for each seed."""
        import common.train.several.seeds as several

        if not self.seeds:
            raise UserError("--submit is for several runs; write --seeds 1,2,3 too")
        several.submit(
            self.config_path,
            several.parse_seeds(self.seeds),
            template,
            overrides=settings,
            data=self.data,
            time_limit=self.time_limit,
        )

    def train(self, settings: tuple[str, ...]) -> list[Result]:
        """Train one run, or one for each seed or class; return their results."""
        import common.train.run
        import common.train.several.seeds as several
        from common.score.whole_crops import of_run
        from common.train.several.each_class import train_each_class

        if self.each_class:
            return train_each_class(self.config_path, settings, self.data, score=of_run)
        if not self.seeds:
            return [common.train.run.train(self.config_path, settings, self.data, score=of_run)]
        chosen = several.parse_seeds(self.seeds)
        return several.train_seeds(self.config_path, chosen, settings, self.data, score=of_run)

    def say_what_follows(self, results: Sequence[Result]) -> None:
        """Say the next command: networks of single classes complete each other's labels."""
        import common.train.several.seeds as several

        if self.each_class:
            say_next("joint", words=["init"])
            return
        best = []
        if self.seeds:
            seed = several.best_seed(several.parse_seeds(self.seeds), results)
            best = [f"random_seed={seed}"]
        say_next("predict", best)


@command(context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND...")
@click.option(
    "--cluster", type=click.Choice(["lsf", "slurm"]), required=True, help="The batch system."
)
@click.option("--seeds", metavar="LIST", help="A job for each seed of `train`: 1,2,3 or 1-3.")
@click.option(
    "--walltime",
    type=options.Duration(),
    default=0.0,
    metavar="DURATION",
    help="Of a job, 12h or 1d; the command saves before it is over. The queue's unless given.",
)
@click.option("--gpus", type=click.IntRange(0), default=1, show_default=True, help="Of each node.")
@click.option("--cores", type=click.IntRange(1), default=8, show_default=True, help="Of each node.")
@click.option("--memory", default="", metavar="SIZE", help="Of each node, such as 60GB.")
@click.option(
    "--nodes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="That train one run together.",
)
@click.option("--queue", default="", help="In SLURM the partition.")
@click.option("--account", default="", help="Who pays; in LSF the project.")
@click.option(
    "--setup",
    multiple=True,
    metavar="LINE",
    help="A line of shell before the command, such as 'module load cuda'. Repeatable.",
)
@click.option(
    "--directive",
    "directives",
    multiple=True,
    metavar="TEXT",
    help="What else the batch system is told, such as '--constraint=a100'. Repeatable.",
)
@click.option("--dry-run", is_flag=True, help="Print the scripts, hand in nothing.")
@click.pass_context
def submit(
    context: click.Context, words: tuple[str, ...], seeds: str | None, dry_run: bool, **given: Any
) -> None:
    """Hand a command to a batch system as a job that goes on in the next one until it is done.

    COMMAND is CONFIG_PATH, which is trained, or a command with what it takes, such as
    `predict CONFIG_PATH --crops test`. Options that are not listed here are the command's; behind
    `--` all are.
    """
    from common.shell import jobs

    resources = jobs.Resources(**given)
    resources.check()
    wanted = _jobs(context, words, seeds, resources)
    if dry_run:
        for job in wanted:
            click.echo(jobs.script(job, resources))
        return
    jobs.submit(wanted, resources, say=click.echo)


def _jobs(
    context: click.Context, words: Sequence[str], seeds: str | None, resources: Resources
) -> list[Job]:
    """The jobs of what `submit` was given: one, or one for each seed.

    The command is read as if it were typed, so that what is wrong with it is said now.
    """
    import common.train.several.seeds as several
    from common.shell import jobs

    assert context.parent is not None
    commands = cast(click.Group, context.parent.command).commands
    name, *rest = words
    name = name.replace("_", "-")
    if name not in commands:
        name = "train"
        rest = list(words)
    wanted = commands[name]
    if wanted is context.command:
        raise UserError("submit submit: a job cannot hand in jobs here; leave one out")
    typed = wanted.make_context(name, list(rest), parent=context).params
    takes = {param.name for param in wanted.params}
    if "time_limit" in takes and resources.walltime and not typed.get("time_limit"):
        rest += ["--time-limit", jobs.commands_time_limit(resources)]
    if name == "train" and resources.gpus > 1 and not typed["gpus"]:
        rest += ["--gpus", "all"]
    if not seeds:
        return [jobs.job_of(name, rest, typed)]
    if name != "train":
        raise UserError(f"--seeds {seeds}: {name} has none; leave --seeds out")
    numbers = several.parse_seeds(seeds)
    settings = jobs.settings_of(typed)
    several.refuse_one_run(typed["config_path"], numbers, settings, typed["data"])
    return [jobs.job_of(name, rest, typed, seed=number) for number in numbers]


@command()
@options.config_path
@click.option(
    "--trials",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="In all, those of earlier calls and other processes included.",
)
@click.option(
    "--prune-after",
    type=click.IntRange(0),
    default=4,
    show_default=True,
    help="Trials that are never pruned.",
)
@click.option(
    "--prune-epochs",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Epochs of a trial before it can be pruned.",
)
@options.time_limit
@options.overrides
@options.data()
def search(config_path: str, time_limit: float, **given: Any) -> None:
    """Search the space of settings that an experiment's search_space.py declares.

    Each trial is an ordinary run.
    """
    options.refuse_missing(config_path, given["overrides"])
    from common.score.whole_crops import of_run
    from common.train.processes import ranks
    from common.train.search import trials

    if ranks.are_started():
        raise UserError(
            "search trains each trial by one process; start it without torchrun, several times for "
            "several GPUs (CUDA_VISIBLE_DEVICES=0, 1, ...): the calls share one study"
        )
    with stopping.time_limit(time_limit):
        best = trials.search(config_path, **options.given(given), score=of_run)
    if best is None:
        sys.exit(stopping.INTERRUPTED)


@command()
@click.argument("action", metavar="init", type=click.Choice(["init"]))
@options.config_path
@click.option(
    "--members",
    metavar="CONFIG",
    default="",
    help="The experiment whose networks of single classes complete the labels; the same one unless "
    "given.",
)
@click.option(
    "--threshold",
    type=float,
    default=0.33,
    show_default=True,
    help="Probability above which a network decides what nobody annotated.",
)
@click.option(
    "--selective", is_flag=True, help="Leave out crops without a positive voxel of any class."
)
@click.option("--overwrite", "-O", is_flag=True, help="Complete crops anew that are there already.")
@options.time_limit
@options.overrides
@options.data()
def joint(action: str, config_path: str, *, time_limit: float, **given: Any) -> None:
    """Let networks of single classes (train --each-class) complete each other's training labels.

    Writes labels and a datasplit that a joint network is trained on. Goes on where an earlier call
    stopped.
    """
    options.refuse_missing(config_path, given["overrides"])
    from common.infer.completing import joint as module

    with stopping.time_limit(time_limit):
        click.echo(module.init(config_path, **options.given(given)))


@command()
@options.config_path
@click.argument("file", required=False)
@click.option(
    "--iteration",
    type=click.IntRange(1),
    help="The step to replay; the last ones of FILE unless given.",
)
@click.option(
    "--checkpoint", "weights", metavar="FILE", help="The weights; the run's latest unless given."
)
@click.option("--png", metavar="FILE", help="Write a picture of the samples.")
@options.overrides
@options.data()
def replay(config_path: str, file: str | None, **given: Any) -> None:
    """Compute steps that training skipped again: which samples, which layer, in fp32 too.

    FILE is the skipped.json of a run, by default that of the experiment's. Nothing is changed.
    """
    options.refuse_missing(config_path, given["overrides"])
    from common.train import replay as module

    module.replay(config_path, file, **options.given(given), say=click.echo)
