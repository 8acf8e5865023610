"""Show raw, truth, predictions and processed volumes: as pictures, or in neuroglancer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import classes as class_table
from common.config.arguments import as_names, as_words
from common.config.load import data_root, load_config
from common.data.splits import regions
from common.data.splits.regions import Region
from common.data.volumes import results
from common.data.volumes.sources.place import is_address, on_disk
from common.errors import UserError, refuse
from common.show import figures, of_results, viewer
from common.show.layers import KINDS, Layers, layers_under, roots_of
from common.show.montage import montage
from common.talk import Say


@dataclass(frozen=True)
class Choice:
    """What to show of an experiment, or of a data root; the options of the command."""

    crops: str = "validate"
    """See `common.data.splits.regions.choose`."""
    volume: str | Path = ""
    """A volume of one's own instead of crops."""
    roi: str = ""
    """A box of it."""
    classes: Sequence[str] = ()
    """Classes to show; those of the experiment unless given."""
    kinds: Sequence[str] = KINDS
    """Some of KINDS."""
    manifest_path: str = ""
    """Table of the test crops."""
    overrides: Sequence[str] = ()
    """Settings of the experiment, "name=value"."""
    data: str | Path | None = None
    """The data root."""

    @property
    def of_experiments(self) -> dict[str, Any]:
        """The options that are for experiments only, by flag."""
        return {
            "--crops": "" if self.crops in ("validate", "*") else self.crops,
            "--kinds": () if tuple(self.kinds) == KINDS else self.kinds,
            "--volume": self.volume,
            "--roi": self.roi,
            "--set": self.overrides,
            "--manifest": self.manifest_path,
        }

    @property
    def boxes(self) -> str:
        """The option that chose the boxes, for messages."""
        return f"--volume {self.volume}" if self.volume else f"--crops {self.crops}"


def visualize(
    config_path: str | Path | None,
    crops: str = "validate",
    *,
    png: str | Path = "",
    port: int = 0,
    bind: str = viewer.LOOPBACK,
    say: Say = print,
    **choice: Any,
) -> list[Path]:
    """Write a picture of each crop, or show the crops in neuroglancer until Enter is pressed.

    Missing volumes are said. Returns the paths of the pictures.

    Args:
        config_path: an experiment's folder or its train_config.py; or results without one, see
            `common.data.volumes.results.find`. None shows the annotated crops of the data root,
            with predictions/ and processed/ in it.
        crops: see `Choice`.
        png: a .png file, or a folder for one a crop; neuroglancer is opened without.
        port: of neuroglancer; 0 is any free one.
        bind: the address that neuroglancer is served at.
        say: takes each line of what is said.
        choice: further fields of `Choice`.

    Raises FileNotFoundError for a missing path, UserError for what else the user can mend.
    """
    for name in choice.keys() & {"classes", "kinds"}:
        choice[name] = as_names(choice[name])
    shown = _shown(config_path, Choice(as_words(crops), **choice), say)
    boxes = [box for box, _ in shown]
    if not png:
        viewer.show(boxes, [layers for _, layers in shown], port=port, bind=bind, say=say)
        return []
    folder = Path(png)
    is_file = folder.suffix.lower() == ".png"
    if is_file and len(boxes) > 1:
        raise UserError(f"--png {png}: one file for {len(boxes)} crops; write a folder")
    paths = [folder if is_file else folder / f"{b.dataset}_{b.name}.png" for b in boxes]
    for path, (box, layers) in zip(paths, shown, strict=True):
        figures.write_png(path, montage(box, layers))
    return paths


# What is shown


def _shown(config_path: str | Path | None, choice: Choice, say: Say) -> list[tuple[Region, Layers]]:
    """Return the boxes of which something exists, with the layers of each."""
    if config_path is not None and _is_of_results(config_path):
        given = [name for name, value in choice.of_experiments.items() if value]
        if given:
            names = ", ".join(given)
            raise UserError(f"{names}: for an experiment, and these are results; leave it out")
        return of_results.boxes_of(str(config_path), choice.classes)
    unknown = [kind for kind in choice.kinds if kind not in KINDS]
    if unknown:
        raise UserError(f"--kinds {', '.join(unknown)}; write some of {', '.join(KINDS)}")
    if config_path is None:
        origin = _in_data_root(choice)
    else:
        origin = _in_experiment(config_path, choice, say)
    known = list(origin.others)
    for box in origin.boxes:
        known += box.classes
    refuse(class_table.unknown_names(choice.classes, known, class_table.IN_NO_CROP), "--classes")
    shown = []
    for box in origin.boxes:
        classes = choice.classes or origin.classes or box.classes
        layers = layers_under(origin.roots, box, classes, choice.kinds, say=say)
        if any(layers.values()):
            shown.append((box, layers))
    if not shown:
        raise UserError(
            f"{choice.boxes}: nothing of {', '.join(choice.kinds)} is there; "
            "predict and process first, or write --kinds raw"
        )
    return shown


@dataclass(frozen=True)
class _Origin:
    """The boxes of an experiment or data root, and where their volumes are."""

    boxes: Sequence[Region]
    roots: Mapping[str, Path]
    """Folders of predictions and processed volumes."""
    classes: Sequence[str] = ()
    """Classes to show unless others are asked for; if empty, those that a box annotates."""
    others: Sequence[str] = ()
    """Further names that may be asked for."""


def _in_data_root(choice: Choice) -> _Origin:
    if choice.overrides or choice.manifest_path:
        raise UserError("--set and --manifest are for an experiment; write its path")
    root = data_root(choice.data)
    if choice.roi and not choice.volume:
        raise UserError(f"--roi {choice.roi}: a box of what? write --volume too")
    if choice.volume:
        boxes = [regions.of_volume(choice.volume, choice.roi)]
    else:
        boxes = regions.on_disk(root, choice.crops)
    roots = {"predictions": root / "predictions", "processed": root / "processed"}
    return _Origin(boxes, roots)


def _in_experiment(config_path: str | Path, choice: Choice, say: Say) -> _Origin:
    config = load_config(config_path, choice.overrides, choice.data)
    boxes = regions.choose(
        config,
        choice.crops,
        choice.volume,
        choice.roi,
        manifest_path=choice.manifest_path,
        say=say,
    )
    others = [*config.channels, *config.extra_classes]
    return _Origin(boxes, roots_of(config), config.classes, others)


def _is_of_results(path: str | Path) -> bool:
    """Whether a path is a volume or a folder of them, and not an experiment."""
    if is_address(str(path)):
        return True
    place = on_disk(Path(path))
    if place.is_file():
        return place.suffix != ".py"
    return place.is_dir() and not any(place.glob("*.py")) and results.are_in(place)
