"""`python -m cellmap_segmentation_challenge`: the command line."""

from common.shell.cli import main

if __name__ == "__main__":
    main()
