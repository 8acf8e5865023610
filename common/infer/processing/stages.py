"""The stages of a class that is processed, on disk until the class is whole.

Functions over volumes are called again in the same order when a call goes on, so the n-th volume or
list that they make is stage number n on disk, with a journal of its blocks. Blocks that are on disk
are not computed again, be it by this process or by workers; a stage that was damaged meanwhile is.
"""

from __future__ import annotations

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
from numcodecs import CRC32, Blosc

from common.data.volumes.box import boxes, slices
from common.data.volumes.level import Grid
from common.errors import Incomplete, in_a_line
from common.files import mark, packed, replacing, unpacked
from common.infer.journal import Journal
from common.infer.machines import sharing, status
from common.infer.machines.crew import Crew, Tally
from common.infer.machines.status import Progress
from common.infer.objects.volume import Block, BlockWork, Item, Volume, blocks, ends
from common.talk import note

# a block with the layer before it touches eight chunks if a chunk is a block: fewer bytes in parts
MOST_PARTS = 4
"""Most chunks of a scratch volume along an edge of a block."""

STAGES = ".stages-"
"""Beginning of the name of the folder of a class's stages; the class follows."""


@dataclass(frozen=True)
class StagesPlace:
    """Where the stages of a class are."""

    folder: Path
    """Of the box."""
    name: str
    """Of the class."""
    grid: Grid
    """Of its voxels."""
    key: str
    """Hash of all that determines the stages; those of another key are removed."""

    @property
    def root(self) -> Path:
        """The folder of the stages."""
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
        place: StagesPlace,
        crew: Crew | None = None,
        *,
        prepare: Callable[[], Any] = dict,
    ):
        """Remove the stages of other keys.

        Args:
            place: of the stages.
            crew: the workers; this process without one.
            prepare: called in a worker before functions are unpickled, which may be of a file of
                the user.
        """
        self.place = place
        self.crew = crew
        self.prepare = prepare
        self.count = 0
        """Stages that were asked for so far."""
        for other in place.root.parent.glob("*"):
            if other != place.root:
                shutil.rmtree(other)
        place.root.mkdir(parents=True, exist_ok=True)

    def __reduce__(self) -> Any:
        """Become None in a worker, where volumes are only read."""
        return type(None), ()

    def fill(self, like: Volume, work: BlockWork, dtype: np.dtype | type) -> Volume:
        """Return the volume of `common.infer.objects.volume.fill`, on disk."""
        folder = self._next(work, np.dtype(dtype).name)
        self._drop_damaged(folder, partial(_read_array, folder / "array"))
        if not Journal(folder).exists():
            _new_array(folder / "array", like, dtype)
        array = zarr.open_array(str(folder / "array"), mode="r+", write_empty_chunks=False)

        def put(_: int, block: Block, values: np.ndarray | None) -> None:
            if values is not None and values.any():
                array[block.core] = values

        self._run(folder, like, work, put)
        return replace(like, array=array)

    def gather(self, like: Volume, work: BlockWork) -> Sequence[Any]:
        """Return the list of `common.infer.objects.volume.gather`; items are read on demand."""
        folder = self._next(work, "list")
        self._drop_damaged(folder, partial(_read_items, folder))

        def store(number: int, _: Block, value: Any) -> None:
            with replacing(folder / f"{number}.pickle") as temporary:
                temporary.write_bytes(packed(value))

        self._run(folder, like, work, store)
        return _Stored(folder, sum(1 for _ in blocks(like)))

    def begins(self) -> bool:
        """Return whether nothing of the next stage is on disk yet."""
        return not list(self.place.root.glob(f"{self.count + 1:03d}-*"))

    def drop_next(self) -> None:
        """Remove the next stage: what it wrote elsewhere is gone."""
        for folder in self.place.root.glob(f"{self.count + 1:03d}-*"):
            shutil.rmtree(folder)

    def _drop_damaged(self, folder: Path, read: Callable[[], None]) -> None:
        """Remove a stage that an earlier call left if it cannot be read, with a note.

        read: reads all of it, and raises where something is not what was written.
        """
        if not Journal(folder).exists():
            return
        try:
            read()
        except Exception as error:  # a different type for each kind of damage
            reason = in_a_line(error)
            note(f"{folder}: damaged ({reason}); its blocks are made again")
            shutil.rmtree(folder)

    def _next(self, work: BlockWork, kind: str) -> Path:
        """Return the folder of the next stage. kind: dtype of a volume, or "list"."""
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
        """Compute the blocks of a stage that are not on disk.

        Args:
            folder: of the stage.
            like: volume whose blocks they are.
            work: what is computed of each block.
            sink: takes the number of a block, the block and its result, and writes it.
        """
        folder.mkdir(exist_ok=True)
        journal = Journal(folder)
        if not journal.exists():
            journal.begin()
        done = journal.read()
        all_blocks = list(blocks(like))
        missing = [number for number in range(len(all_blocks)) if number not in done]
        if not missing:
            return
        tally = Tally(len(all_blocks), len(all_blocks) - len(missing), workers=1)
        doing = f"processing {self.place.name}, stage {folder.name}, on"
        told = Progress(self.place.folder, doing)
        # whether a worker can open a volume by what it is pickled as, and need not be sent it
        arrays = [volume.array for volume in work.reads]
        travel = [isinstance(a, zarr.Array) or hasattr(a, "prediction") for a in arrays]
        shared = self.crew is not None and all(travel)
        run = self._by_workers if shared else self._here
        run(_Stage(work, sink, all_blocks, missing, journal=journal, tally=tally, told=told))

    def _here(self, stage: _Stage) -> None:
        """Compute the missing blocks of a stage in this process."""

        def sink(number: int, block: Block, result: Any) -> None:
            sharing.refuse_taken(self.place.folder)
            stage.sink(number, block, result)

        for number in done_blocks(stage.work, sink, map(stage.item, stage.missing)):
            stage.note(number)
            stage.tally.add()
            stage.told.tell(stage.tally)
        stage.told.close(stage.tally)

    def _by_workers(self, stage: _Stage) -> None:
        """Compute the missing blocks of a stage by workers. Raise Incomplete where some failed."""
        import cloudpickle

        assert self.crew is not None
        # what is known of a block goes with the block
        work = replace(stage.work, reads=(), about=None, told=None)
        content = cloudpickle.dumps((work, stage.sink))

        failures = self.crew.run(
            partial(run_items, self.prepare, content, self.place.folder, mark()),
            stage.missing,
            payload=stage.items,
            done=stage.note,
            tell=stage.told.tell,
            tally=stage.tally,
            stopped=sharing.ends_if_taken(self.place.folder),
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
    """A stage, and the blocks of it that are still to be computed."""

    work: BlockWork
    sink: Callable[[int, Block, Any], None]
    """Writes the result of a block, given its number and the block."""
    blocks: list[Block]
    """All of them."""
    missing: list[int]
    """Numbers of those that are not on disk."""
    journal: Journal
    tally: Tally
    told: Progress

    def item(self, number: int) -> Item:
        """Return a block as it travels to a worker."""
        return self.work.item(number, self.blocks[number])

    def items(self, numbers: Sequence[int]) -> list[Item]:
        """Return several blocks as they travel to a worker."""
        return [self.item(number) for number in numbers]

    def note(self, number: int, _: Any = None) -> None:
        """Note a block as done."""
        self.journal.add(number)
        if self.work.told:
            self.work.told(self.blocks[number])


def done_blocks(
    work: BlockWork, sink: Callable[[int, Block, Any], None], items: Iterable[Item]
) -> Iterator[int]:
    """Yield the numbers of blocks, each when its result is on disk.

    sink: writes the result of a block, given its number and the block.
    """
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
    """Compute some blocks of a stage in a worker; yield their numbers.

    Args:
        prepare: called before `content` is unpickled.
        content: a BlockWork, and the function that writes its results, pickled.
        folder: of the box.
        caller: `common.files.mark` of the caller; once another process holds the folder, nothing is
            written.
        items: the blocks.
    """
    prepare()
    work, sink = pickle.loads(content)

    def sink_if_asked(number: int, block: Block, result: Any) -> None:
        sharing.refuse_left(folder, caller)
        sink(number, block, result)

    for number in done_blocks(work, sink_if_asked, items):
        yield number, None


def _new_array(path: Path, like: Volume, dtype: np.dtype | type) -> None:
    """Make an array of zeros of the shape of `like`, on disk."""
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
        filters=[CRC32()],
        compressor=Blosc(cname="zstd", clevel=1, shuffle=Blosc.SHUFFLE),
        dimension_separator="/",
    )


class _Stored(Sequence):
    """Results of blocks, a file each."""

    def __init__(self, folder: Path, n: int):
        """n: number of blocks."""
        self.folder = folder
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < self.n:
            raise IndexError(number)
        return _unpacked(self.folder / f"{number}.pickle")


def _unpacked(path: Path) -> Any:
    """Return the result of a block. Raise ValueError where it is not what was written."""
    try:
        return unpacked(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error


def _read_items(folder: Path) -> None:
    """Read all results of a list. Raise where one is not what was written, or gone."""
    for number in Journal(folder).look():
        _unpacked(folder / f"{number}.pickle")


def _read_array(path: Path) -> None:
    """Read all chunks of an array. Raise where one is not what was written."""
    array = zarr.open_array(str(path), mode="r")
    for start, stop in boxes(array.shape, array.chunks):
        array[slices(start, stop)]
