"""Several processes that train one run.

`ranks` knows how many there are and how they talk, `alive` whether all of them are there,
`together` how they take a step; `one_process` sees that a run is trained once at a time, in folders
of its own.
"""
