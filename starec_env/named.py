"""What a user names as MODULE:FUNCTION."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from inspect import signature
from typing import Any

from starec_env.errors import InvalidOption


def load_function(name: str, option: str, takes: Sequence[str] | None = None) -> Any:
    """The function MODULE:FUNCTION; a module may lie in the current folder, as with `python -m`.

    Args:
        name: As given.
        option: Where, for the error.
        takes: What it is called with, one after the other; None for whatever the caller makes of it.

    Raises:
        InvalidOption: There is no such module or function, the module can't be imported, or the function can't be
            called so.
    """
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidOption(f"{option} {name}: {error}; wanted MODULE:FUNCTION") from None
    except Exception as error:  # whatever the module does when it is imported
        raise InvalidOption(
            f"{option} {name}: importing {module} fails with {type(error).__name__}: {error}"
        ) from error
    if takes is not None and not _can_be_called(found, len(takes)):
        given = f"with {', '.join(takes)}" if takes else "without anything"
        raise InvalidOption(f"{option} {name}: wanted a function that can be called {given}")
    return found


def _can_be_called(found: object, n: int) -> bool:
    try:
        signature(found).bind(*range(n))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return True
