"""Look at raw, truth, predictions and processed volumes: pictures of crops, or neuroglancer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import classes as class_table
from common.config.load import data_root, load_config
from common.data import regions, results
from common.data.regions import Region
from common.data.sources.place import is_address, on_disk
from common.errors import UserError
from common.show import figures, of_results, viewer
from common.show.layers import KINDS, Layers, layers_under, roots_of
from common.show.montage import montage


def visualize(  # noqa: PLR0913  the options of the command
    config_path: str | Path | None,
    crops: str = "validate",
    *,
    volume: str | Path = "",
    roi: str = "",
    classes: Sequence[str] = (),
    kinds: Sequence[str] = KINDS,
    png: str | Path = "",
    port: int = 0,
    bind: str = viewer.LOOPBACK,
    manifest_path: str = "",
    overrides: Sequence[str] = (),
    data: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> list[Path]:
    """Write a picture of each crop, or show the crops in neuroglancer until Enter is pressed.

    What is not there yet is left out and said.

    Args:
        config_path: an experiment's folder or its train_config.py; or results by themselves, see
            `common.data.results.find`. None shows the annotated crops of the data root, and what is
            in predictions/ and processed/ there.
        crops: see `common.data.regions.choose`, as volume, roi and manifest_path.
        volume: a volume of one's own instead of crops.
        roi: a box of it.
        classes: those of the experiment unless given.
        kinds: some of KINDS.
        png: a .png file, or a folder for one a crop; neuroglancer is opened without.
        port: of neuroglancer; 0 is any free one.
        bind: the address that neuroglancer is served at.
        manifest_path: table of the test crops.
        overrides: "name=value" strings.
        data: the data root.
        say: takes each line of what is said.

    Returns:
        The pictures.

    Raises:
        FileNotFoundError: for a path that is not there.
        UserError: for anything else that the user can mend.
    """
    if config_path is not None and _is_of_results(config_path):
        _refuse_options(volume=volume, roi=roi, overrides=overrides, manifest_path=manifest_path)
        found = of_results.boxes_of(str(config_path), classes)
        return _show(
            [box for box, _ in found],
            [layers for _, layers in found],
            png=png,
            port=port,
            bind=bind,
            say=say,
        )
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise UserError(f"--kinds {', '.join(unknown)}; write some of {', '.join(KINDS)}")
    if config_path is None and (overrides or manifest_path):
        raise UserError("--set and --manifest are for an experiment; write its path")
    if config_path is None:
        root = data_root(data)
        boxes = [regions.of_volume(volume, roi)] if volume else regions.on_disk(root, crops)
        roots = {"predictions": root / "predictions", "processed": root / "processed"}
        own: Sequence[str] = ()
        known: Sequence[str] = ()
    else:
        config = load_config(config_path, overrides, data)
        boxes = regions.choose(config, crops, volume, roi, manifest_path=manifest_path, say=say)
        roots = roots_of(config)
        own = config.classes
        known = [*config.channels, *config.extra_classes]
    _refuse_unknown_classes(classes, known, boxes)
    shown = []
    layers_of = []
    for box in boxes:
        wanted = classes or own or box.classes
        layers = layers_under(roots, box, wanted, kinds, say=say)
        if any(layers.values()):
            shown.append(box)
            layers_of.append(layers)
    if not shown:
        where = f"--volume {volume}" if volume else f"--crops {crops}"
        raise UserError(
            f"{where}: nothing of {', '.join(kinds)} is there; "
            "predict and process first, or write --kinds raw"
        )
    return _show(shown, layers_of, png=png, port=port, bind=bind, say=say)


def _show(
    boxes: Sequence[Region],
    layers_of: Sequence[Layers],
    *,
    png: str | Path,
    port: int,
    bind: str,
    say: Callable[[str], None],
) -> list[Path]:
    """Write a picture of each box; without png show them in neuroglancer."""
    if not png:
        viewer.show(boxes, layers_of, port=port, bind=bind, say=say)
        return []
    paths = _picture_paths(Path(png), boxes)
    for path, box, layers in zip(paths, boxes, layers_of, strict=True):
        figures.write_png(path, montage(box, layers))
    return paths


def _is_of_results(path: str | Path) -> bool:
    """Whether a path is a volume or a folder of them, and not an experiment."""
    if is_address(str(path)):
        return True
    place = on_disk(Path(path))
    if place.is_file():
        return place.suffix != ".py"
    return place.is_dir() and not any(place.glob("*.py")) and results.are_in(place)


def _refuse_options(**options: Any) -> None:
    """UserError for options of experiments."""
    given = [f"--{name}" for name, value in options.items() if value]
    if given:
        names = {"--overrides": "--set", "--manifest_path": "--manifest"}
        texts = ", ".join(names.get(name, name) for name in given)
        raise UserError(f"{texts}: for an experiment, and these are results; leave it out")


def _refuse_unknown_classes(
    classes: Sequence[str], known: Sequence[str], boxes: Sequence[Region]
) -> None:
    """UserError for names that neither the challenge, the experiment nor a crop knows."""
    known = list(known)
    for box in boxes:
        known += box.classes
    problems = class_table.unknown_names(classes, known)
    if problems:
        raise UserError("\n".join(f"--classes: {problem}" for problem in problems))


def _picture_paths(png: Path, boxes: Sequence[Region]) -> list[Path]:
    """A file for each box: `png` itself, or one in the folder `png`."""
    if png.suffix.lower() != ".png":
        return [png / f"{box.dataset}_{box.name}.png" for box in boxes]
    if len(boxes) > 1:
        raise UserError(f"--png {png}: one file for {len(boxes)} crops; write a folder")
    return [png]
