"""Measure what scale costs: blocks on worker processes, and training on many crops.

    python bench/scale.py blocks [--blocks 10000]
    python bench/scale.py training [--crops FILE] [--shrink 3] [--workers 2]

Milliseconds a block with a task that does nothing, on 1, 2 and 4 workers of this machine, and what
2 workers do against 1 where a block takes its time (it sleeps: the cores of this machine have no
part in it). What is measured of training says `bench/simulated.py`; with
`--crops common/data/splits/challenge_crops.csv --shrink 8 --workers 1 --seconds 10` it is all of
the challenge in four minutes and 5 GB.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.infer.journal import Journal
from common.infer.machines import cluster
from common.infer.machines.crew import Crew, Tally
from common.infer.machines.engine import Engine
from common.stopping import never


def wait(seconds: float, numbers: Sequence[int]) -> Iterator[tuple[int, None]]:
    """Yield blocks that take `seconds` each, in a worker."""
    for number in numbers:
        if seconds:
            time.sleep(seconds)
        yield number, None


def seconds_of(
    crew: Crew, blocks: int, block_seconds: float, note: Callable[[int, None], None]
) -> float:
    """Return the seconds that a number of blocks takes."""
    start = time.monotonic()
    failures = crew.run(
        partial(wait, block_seconds),
        range(blocks),
        done=note,
        tell=lambda _: None,
        tally=Tally(blocks, 0),
        stopped=never,
    )
    assert not failures
    return time.monotonic() - start


def measure_blocks(blocks: int, block_seconds: float) -> dict[str, float]:
    """Return milliseconds a block by number of workers, and throughput of 2 workers over 1."""
    figures = {}
    rates = {}
    for workers in (1, 2, 4):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            journal = Journal(root)
            journal.begin()

            def note(number: int, _: None, journal: Journal = journal) -> None:
                journal.add(number)

            with cluster.opened(Engine(workers=workers), root, "bench") as crew:
                assert crew is not None
                seconds_of(crew, 10 * workers, 0.0, note)  # workers import on their first task
                seconds = seconds_of(crew, blocks, 0.0, note)
                figures[f"ms_per_block_{workers}"] = round(1000 * seconds / blocks, 3)
                if workers < 4:
                    n = round(20 / block_seconds)
                    rates[workers] = n / seconds_of(crew, n, block_seconds, note)
    figures["throughput_2_over_1"] = round(rates[2] / rates[1], 3)
    return figures


@click.group()
def cli() -> None:
    """Measure what scale costs."""


@cli.command("blocks")
@click.option("--blocks", default=10_000, show_default=True, help="Of the task that does nothing.")
@click.option("--each", default=0.05, show_default=True, help="Seconds of a block that takes time.")
def blocks_command(blocks: int, each: float) -> None:
    """Scheduling cost of a block, and throughput."""
    click.echo(json.dumps(measure_blocks(blocks, each), indent=1))


@cli.command("training")
@click.option("--crops", type=click.Path(exists=True, path_type=Path), help="Table of crops.")
@click.option("--shrink", default=3.0, show_default=True, help="Of the edges of crops.")
@click.option("--number", type=int, help="Of crops, the first; all unless given.")
@click.option("--workers", default=2, show_default=True, help="Of the loader.")
@click.option("--seconds", default=20.0, show_default=True, help="In which batches are counted.")
def training_command(crops: Path | None, shrink: float, number: int | None, **more: Any) -> None:
    """Start-up, memory and samples/s on a simulated challenge."""
    from bench import simulated

    chosen = simulated.crops_of(crops, shrink) if crops else simulated.drawn_crops(shrink)
    click.echo(simulated.table(chosen[:number], **more))


if __name__ == "__main__":
    cli()
