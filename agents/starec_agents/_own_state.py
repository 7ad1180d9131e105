"""A graph's own state keys as JSON has them, so that a run records them and a resumed one goes on with them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from langgraph.graph.state import CompiledStateGraph
from pydantic import PydanticUserError, TypeAdapter

_log = logging.getLogger(__name__)


class OwnState:
    """Writes and reads the values of a graph's own keys, by the types that its state declares.

    Args:
        graph: The compiled graph.
        shared: Keys that every graph has.

    Attributes:
        keys: The graph's own.
        unrecorded: Those of them whose values JSON can't hold, as far as is known by now.
    """

    def __init__(self, graph: Any, shared: frozenset[str]) -> None:
        given, channels = getattr(graph, "output_channels", ()), getattr(graph, "channels", {})
        self.keys = () if isinstance(given, str) else tuple(key for key in given if key not in shared)
        self.unrecorded: set[str] = set()
        self._types: dict[str, TypeAdapter[Any]] = {}
        for key in self.keys:
            try:
                self._types[key] = TypeAdapter(getattr(channels.get(key), "ValueType", Any))
            except PydanticUserError:  # a class that pydantic knows nothing of
                self.unrecorded.add(key)

    def dump(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values as JSON types; those that can't be such are left out, and logged once."""
        found = {}
        for key, value in values.items():
            if key in self.unrecorded:
                continue
            try:
                found[key] = self._types[key].dump_python(value, mode="json", warnings="error")
                self._types[key].validate_python(found[key])
            except Exception as error:  # whatever a type's own serializer raises
                self.unrecorded.add(key)
                _log.warning("state key %r isn't recorded, and begins anew on resuming: %s", key, error)
        return found

    def load(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """The values that `dump` was given, of keys that the graph still has."""
        return {key: self._types[key].validate_python(value) for key, value in recorded.items() if key in self._types}


def own_state_of(graph: Any, shared: frozenset[str]) -> OwnState:
    """Of a graph, made once for a compiled one."""
    return _made_once(graph, shared) if type(graph) is CompiledStateGraph else OwnState(graph, shared)


_made_once = lru_cache(maxsize=64)(OwnState)
