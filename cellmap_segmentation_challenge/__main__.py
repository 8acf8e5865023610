"""`python -m cellmap_segmentation_challenge`: the command line."""

from common.cli import main

if __name__ == "__main__":
    main()
