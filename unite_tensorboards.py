"""Gather the runs of all experiments in one TensorBoard; see common/runs/unite.py."""

from common.runs.unite import main

if __name__ == "__main__":
    main()
