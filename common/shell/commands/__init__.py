"""The commands, by the headings of `--help`; `common.shell.cli` lists them.

Arguments in, the engine's function called, what it gives written out. What a command needs is
imported when it runs: torch takes seconds, and `--help` must not.
"""
