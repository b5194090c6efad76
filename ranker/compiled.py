"""The loops that numpy has no single call for, compiled by numba: `@compiled` in place of a loop in Python.

Such a function takes arrays and plain numbers, and is compiled once for each combination of their types. What was
compiled is kept beside the source, or in the user's cache folder, so that only the first call ever pays for it
(`ranker.pipeline.warm`). A compiled function calls only those of its own file, for what is kept is made anew when that
file changes, not when another does. No fast-math: the same input gives the same bits.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """The function as machine code, which holds no lock of the interpreter while it runs."""
    try:
        found = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no folder may be written to: compiled anew in each process
        found = numba.njit(nogil=True, error_model="numpy")(function)
    return cast(Function, found)
