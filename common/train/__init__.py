"""One training run, and several.

* a run: `run` from its first line to its last, `setup` what it is built from, `state` what changes,
  `steps`, `validation`, `judging` whether an epoch is the best, `mishaps`
* its loss: `losses` and the sums that they are made of (`palette_sums`), `categorical`,
  `frequency`, `heads` several together, `criterion` that of another library, `own_loss` the
  setting, `priors` how often a channel is positive
* its steps: `optim`, `schedule` the learning rate, `average` of the weights, `skipped` steps
* several processes: `ranks` how they talk, `together` how they take a step
* what it keeps: `checkpoint`, `resume`, `weights_file` and `inert` files of other programs,
  `one_process` that it has its folders alone
* what it shows: `logs`, `record` run.json and history.csv, `tracking` TensorBoard and others,
  `metrics`, `panels`, `whole_slice`, `previews`
* beside it: `check` a dry run, `replay` of skipped steps
* several: `seeds`, `each_class`, `search` and its `space`
"""
