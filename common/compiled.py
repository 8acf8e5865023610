"""How numba compiles the loops that are ours: without the interpreter's lock, and kept on disk.

The first call of a function compiles it, which takes seconds; the next process finds the code. A
module of compiled functions is imported where they are called: numba takes a third of a second.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numba
from numba.core.compiler import CompilerBase, DefaultPassBuilder

from common.files import cache_folder

if not os.access(Path(__file__).parent, os.W_OK):
    # numba keeps compiled code in __pycache__ beside the function's file, where it can
    numba.config.CACHE_DIR = numba.config.CACHE_DIR or str(cache_folder() / "numba")  # type: ignore[attr-defined]


class ArraysDoNotOverlap(CompilerBase):
    """numba's compiler, told that no argument of a function shares memory with another.

    Without it a value that is written might change one that is read later, and no loop that gathers
    is made of vector instructions: they then take three times as long.
    """

    def define_pipelines(self) -> list[Any]:
        """The usual passes, told so."""
        self.state.flags.noalias = True
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]


# no fastmath, which rounds otherwise
compiled = numba.njit(
    cache=True, nogil=True, error_model="numpy", pipeline_class=ArraysDoNotOverlap
)
"""Decorator of a function of arrays; no two of them may share memory."""

part_of_compiled = numba.njit(error_model="numpy")
"""Decorator of a function that compiled ones call."""
