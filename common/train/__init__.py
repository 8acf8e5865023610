"""One training run, and several.

* a run: `run` from its first line to its last, `setup` what it is built from, `state` what
  changes, `steps` of an epoch, `validation` after them and its `metrics`, `judging` whether an
  epoch is the best, `progress` what is printed and logged
* what goes wrong: `skipped` steps, `mishaps` of files and of too many such steps
* what it is made of, a folder each: `losses`, `optimising`, `processes` that train it together,
  `checkpointing`, `recording`
* several runs: `several` seeds or classes, `search` for settings
* beside it: `check` a dry run, `replay` of skipped steps
"""
