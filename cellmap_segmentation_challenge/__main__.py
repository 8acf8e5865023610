"""`python -m cellmap_segmentation_challenge`, and `csc` of an installed package."""

import sys

from common import stopping


def main(public_defaults: bool = False) -> None:
    """Run the command line; signals end it without a trace while libraries are imported too.

    public_defaults: what is left out is what the public toolbox takes, as for its command `csc`.
    """
    try:
        with stopping.program():
            from common.shell.cli import main as run

            run(public_defaults)
    except KeyboardInterrupt as stopped:
        sys.exit(stopping.exit_code(stopped))


def csc() -> None:
    """Run the command line as the public toolbox's command."""
    main(public_defaults=True)


if __name__ == "__main__":
    main()
