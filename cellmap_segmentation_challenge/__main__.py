"""`python -m cellmap_segmentation_challenge`, and `csc` of an installed package."""

import sys

INTERRUPTED = 130
"""As `common.shell.group` has it, which is among what is imported when Ctrl-C comes."""


def main() -> None:
    """Run the command line; Ctrl-C ends it without a trace while libraries are imported too."""
    try:
        from common.shell.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
