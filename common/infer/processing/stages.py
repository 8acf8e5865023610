"""The stages of a class that is processed, on disk until the class is whole.

Functions over volumes are called again in the same order when a call goes on, so the n-th volume or
list that they make is the one that is on disk as number n, with a ledger of its blocks. What is
there is not made again, be it by this process or by workers.
"""

from __future__ import annotations

import itertools
import pickle
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import Blosc

from common.data.volumes.ngff import Grid
from common.errors import Incomplete
from common.files import mark, replacing
from common.infer.ledger import Journal
from common.infer.machines import sharing, status
from common.infer.machines.crew import Crew, Tally, never
from common.infer.machines.status import Progress
from common.infer.objects.volume import Block, BlockWork, Item, Volume, blocks, ends

# a block with the layer before it touches eight chunks if a chunk is a block: fewer bytes in parts
MOST_PARTS = 4
"""Chunks of a scratch volume along an edge of a block at most."""

STAGES = ".stages-"
"""What the names of their folders begin with; the class follows."""


@dataclass(frozen=True)
class Place:
    """Where the class is processed."""

    folder: Path
    """Of the box."""
    name: str
    """Of the class."""
    grid: Grid
    key: str
    """Hash of all that determines the stages: those of another key are removed."""

    @property
    def root(self) -> Path:
        """Folder of the stages."""
        return self.folder / f"{STAGES}{self.name}" / self.key

    def clear(self) -> None:
        """Remove all stages."""
        clear_stages(self.folder, self.name)


def clear_stages(folder: Path, name: str) -> None:
    """Remove what there is of the stages of a class in the folder of a box."""
    shutil.rmtree(folder / f"{STAGES}{name}", ignore_errors=True)


class Stages:
    """Makes volumes and lists block by block, once; see `common.infer.objects.volume.Stages`."""

    def __init__(
        self,
        place: Place,
        crew: Crew | None = None,
        *,
        prepare: Callable[[], Any] = dict,
    ):
        self.place = place
        self.crew = crew
        self.prepare = prepare
        """Called in a worker before functions are unpickled: they may be of a user's file."""
        self.count = 0
        for other in place.root.parent.glob("*"):
            if other != place.root:
                shutil.rmtree(other)
        place.root.mkdir(parents=True, exist_ok=True)

    def __reduce__(self) -> Any:
        """In a worker there is none: volumes are read there."""
        return type(None), ()

    def fill(self, like: Volume, work: BlockWork, dtype: np.dtype | type) -> Volume:
        """As `common.infer.objects.volume.fill`, on disk."""
        folder = self._next(work, np.dtype(dtype).name)
        if not Journal(folder).exists():
            _new_array(folder / "array", like, dtype)
        array = zarr.open_array(str(folder / "array"), mode="r+", write_empty_chunks=False)

        def put(_: int, block: Block, values: np.ndarray | None) -> None:
            if values is not None and values.any():
                array[block.core] = values

        self._run(folder, like, work, put)
        return replace(like, array=array)

    def gather(self, like: Volume, work: BlockWork) -> Sequence[Any]:
        """As `common.infer.objects.volume.gather`; read from disk where it is asked for."""
        folder = self._next(work, "list")

        def store(number: int, _: Block, value: Any) -> None:
            with replacing(folder / f"{number}.pickle") as temporary:
                temporary.write_bytes(pickle.dumps(value))

        self._run(folder, like, work, store)
        return _Stored(folder, sum(1 for _ in blocks(like)))

    def begins(self) -> bool:
        """Whether nothing of the next stage is there yet."""
        return not list(self.place.root.glob(f"{self.count + 1:03d}-*"))

    def drop_next(self) -> None:
        """Remove what is there of the next stage: what it wrote elsewhere is gone."""
        for folder in self.place.root.glob(f"{self.count + 1:03d}-*"):
            shutil.rmtree(folder)

    def _next(self, work: BlockWork, kind: str) -> Path:
        """Folder of the next stage."""
        function: Any = work.function
        name = getattr(getattr(function, "func", function), "__name__", "function")
        words = re.sub(r"\W", "", name)
        folder = self.place.root / f"{self.count + 1:03d}-{words}-{kind}"
        if not folder.is_dir():
            # functions that are called in another order than before make other stages
            self.drop_next()
        self.count += 1
        return folder

    def _run(self, folder: Path, like: Volume, work: BlockWork, sink: Callable) -> None:
        """Do the blocks of a stage that are left."""
        folder.mkdir(exist_ok=True)
        journal = Journal(folder)
        if not journal.exists():
            journal.begin()
        done = journal.read()
        all_blocks = list(blocks(like))
        left = [number for number in range(len(all_blocks)) if number not in done]
        if not left:
            return
        tally = Tally(len(all_blocks), len(all_blocks) - len(left), workers=1)
        doing = f"processing {self.place.name}, stage {folder.name}, on"
        told = Progress(self.place.folder, doing)
        # whether a worker can open a volume by what it is pickled as, and need not be sent it
        arrays = [volume.array for volume in work.reads]
        travel = [isinstance(a, zarr.Array) or hasattr(a, "prediction") for a in arrays]
        shared = self.crew is not None and all(travel)
        run = self._by_workers if shared else self._here
        run(_Stage(work, sink, all_blocks, left, journal=journal, tally=tally, told=told))

    def _here(self, stage: _Stage) -> None:
        for number in done_blocks(stage.work, stage.sink, map(stage.item, stage.left)):
            stage.note(number)
            stage.tally.add()
            stage.told.tell(stage.tally)
        stage.told.close(stage.tally)

    def _by_workers(self, stage: _Stage) -> None:
        import cloudpickle

        assert self.crew is not None
        # what is known of a block goes with the block
        work = replace(stage.work, reads=(), about=None, told=None)
        content = cloudpickle.dumps((work, stage.sink))
        failures = self.crew.run(
            partial(run_items, self.prepare, content, self.place.folder, mark()),
            stage.left,
            payload=stage.items,
            done=stage.note,
            tell=stage.told.tell,
            tally=stage.tally,
            stopped=never,
        )
        failed = []
        for failure in failures:
            start, stop = ends(stage.blocks[failure.number].core)
            failed.append(status.describe(failure, self.place.grid, start, stop))
        stage.told.close(stage.tally, failed)
        if failed:
            where = self.place.folder / self.place.name
            raise Incomplete(status.failed(where, failed, len(stage.blocks)))


@dataclass
class _Stage:
    """What is left of a stage."""

    work: BlockWork
    sink: Callable[[int, Block, Any], None]
    blocks: list[Block]
    left: list[int]
    journal: Journal
    tally: Tally
    told: Progress

    def item(self, number: int) -> Item:
        return self.work.item(number, self.blocks[number])

    def items(self, numbers: Sequence[int]) -> list[Item]:
        return [self.item(number) for number in numbers]

    def note(self, number: int, _: Any = None) -> None:
        self.journal.add(number)
        if self.work.told:
            self.work.told(self.blocks[number])


def done_blocks(
    work: BlockWork, sink: Callable[[int, Block, Any], None], items: Iterable[Item]
) -> Iterator[int]:
    """The numbers of blocks, each when what came of it is on disk."""
    for item, result in work.results(items):
        sink(item.number, item.block, result)
        yield item.number


def run_items(  # noqa: PLR0917  # a partial of it
    prepare: Callable[[], Any],
    content: bytes,
    folder: Path,
    caller: str,
    items: Sequence[Item],
) -> Iterator[tuple[int, None]]:
    """Do some blocks of a stage, in a worker.

    Args:
        prepare: called before `content` is unpickled.
        content: a BlockWork, and what takes its results.
        folder: of the box.
        caller: its `common.files.mark`; once another process has the folder, nothing is written.
        items: the blocks.
    """
    prepare()
    work, sink = pickle.loads(content)
    still_asked = itertools.takewhile(lambda _: sharing.is_still(folder, caller), items)
    for number in done_blocks(work, sink, still_asked):
        yield number, None


def _new_array(path: Path, like: Volume, dtype: np.dtype | type) -> None:
    # whole parts of a block, so that no two blocks share a chunk
    chunks = []
    for length in map(int, like.block):
        parts = max(n for n in range(1, MOST_PARTS + 1) if length % n == 0)
        chunks.append(length // parts)
    zarr.open_array(
        str(path),
        mode="w",
        shape=like.shape,
        dtype=dtype,
        chunks=chunks,
        fill_value=0,
        compressor=Blosc(cname="zstd", clevel=1, shuffle=Blosc.SHUFFLE),
        dimension_separator="/",
    )


class _Stored(Sequence):
    """What was gathered, a file a block."""

    def __init__(self, folder: Path, n: int):
        self.folder = folder
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < self.n:
            raise IndexError(number)
        return pickle.loads((self.folder / f"{number}.pickle").read_bytes())
