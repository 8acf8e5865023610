"""`python -m cellmap_segmentation_challenge`, and `csc` of an installed package."""

import sys

from common import stopping


def main() -> None:
    """Run the command line; signals end it without a trace while libraries are imported too."""
    try:
        with stopping.at_once():
            from common.shell.cli import main as run

            run()
    except KeyboardInterrupt as stopped:
        sys.exit(stopping.exit_code(stopped))


if __name__ == "__main__":
    main()
