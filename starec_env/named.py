"""What a user names as MODULE:FUNCTION."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from starec_env.errors import InvalidOption


def load_function(name: str, option: str) -> Any:
    """The function MODULE:FUNCTION; a module may lie in the current folder, as with `python -m`.

    Args:
        name: As given.
        option: Where, for the error.

    Raises:
        InvalidOption: There is no such module or function.
    """
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidOption(f"{option} {name}: {error}; wanted MODULE:FUNCTION") from None
