"""Settings of an experiment: what there is, read from its Python files, checked.

* what there is: `settings`, their `kinds`, `groups` by what may change, `other_names` of them,
  `as_text` for records; in more detail `spatial` transforms, `augmentations`, `derived` channels,
  `heads`, `input_channels`, `instance_options`, `horizon` of a schedule
* read: `load`, `module` runs a file, `overrides` of the command line, `arguments` of a script,
  `code` says whether a file is the same
* checked: `check`, `calls` of functions, `written` what a file must not say, `idle` settings
  without effect
* of the public toolbox: `public`, `given` networks and optimisers, `value_transforms`
"""
