"""Gather the runs of all experiments in one TensorBoard: the command unite."""

import sys

if __name__ == "__main__":
    try:
        from common.shell.cli import cli
        from common.talk import program

        cli(["unite", *sys.argv[1:]], prog_name=program())
    except KeyboardInterrupt:  # also while libraries are imported
        sys.exit(130)
