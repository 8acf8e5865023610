"""How weights are changed.

`optim` builds and steps the optimiser and its scheduler; `schedule` tries the learning rate before
a run and changes it under way; `average` follows the weights.
"""
