"""`python -m cellmap_segmentation_challenge`, and `csc` of an installed package."""

import sys
from importlib.machinery import PathFinder
from pathlib import Path


def main(public_defaults: bool = False) -> None:
    """Run the command line; a signal ends it without a traceback, also during imports.

    public_defaults: options left out have the public toolbox's defaults, as with its `csc`.
    """
    try:
        _run(public_defaults)
    except Exception as error:
        taken = _experiments_taken_for_packages()
        if not taken:
            raise
        print(f"error: {_rename(taken)} ({type(error).__name__}: {error})", file=sys.stderr)
        sys.exit(2)


def _run(public_defaults: bool) -> None:
    from common import stopping

    try:
        with stopping.program():
            from common.shell.cli import main as run

            run(public_defaults)
    except KeyboardInterrupt as stopped:
        sys.exit(stopping.exit_code(stopped))


def _experiments_taken_for_packages() -> list[Path]:
    """Return experiments in the working folder that were imported in place of packages.

    `python -m` looks into the working folder first: with a folder `zarr` nothing reads zarr.
    """
    here = Path.cwd()
    elsewhere = [place for place in sys.path if Path(place).resolve() != here]
    taken = []
    for file in here.glob("*/train_config.py"):
        name = file.parent.name
        imported = getattr(sys.modules.get(name), "__file__", None)
        if imported != str(file.with_name("__init__.py")):
            continue
        if name in sys.stdlib_module_names or PathFinder.find_spec(name, elsewhere):
            taken.append(file.parent)
    return taken


def _rename(experiments: list[Path]) -> str:
    """Return a sentence about how to rename them."""
    commands = " && ".join(f"mv {folder.name} my_{folder.name}" for folder in experiments)
    names = ", ".join(f"'{folder.name}'" for folder in experiments)
    return (
        f"{experiments[0].parent}: the experiment {names} has the name of a Python package, and "
        f"hides that from commands that are typed there; rename it: {commands}"
    )


def csc() -> None:
    """Run the command line as the public toolbox's command."""
    main(public_defaults=True)


if __name__ == "__main__":
    main()
