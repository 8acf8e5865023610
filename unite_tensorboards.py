"""Gather the runs of all experiments in one TensorBoard; see common/runs/unite.py."""

import sys

if __name__ == "__main__":
    try:
        from common.runs.unite import main

        main()
    except KeyboardInterrupt:  # also while libraries are imported
        sys.exit(130)
