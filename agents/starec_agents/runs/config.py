"""What makes a run itself: recorded in run.json, and compared when it is resumed."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from starec_agents.llm.base import Endpoint
from starec_agents.llm.redaction import public
from starec_agents.memory import Memory
from starec_env.errors import RunError
from starec_env.types import Dataset, Id

_MOST_SHOWN = 200


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Frozen):
    """A data set, as prepared."""

    name: str
    domain: str
    n_users: int
    n_items: int
    n_interactions: int
    hash: str

    @classmethod
    def of(cls, dataset: Dataset) -> DataConfig:
        """Describe a data set."""
        names = ("name", "domain", "n_users", "n_items", "n_interactions", "hash")
        return cls(**{name: getattr(dataset, name) for name in names})


class EndpointConfig(_Frozen):
    """What of an endpoint changes its answers; never a key, nor the value of a header."""

    base_url: str
    model: str
    temperature: float
    top_p: float
    max_tokens: int
    extra_body: Mapping[str, Any]
    headers: tuple[str, ...]
    """Their names."""

    @classmethod
    def of(cls, endpoint: Endpoint) -> EndpointConfig:
        """Describe an endpoint."""
        same = endpoint.model_dump(include={"model", "temperature", "top_p", "max_tokens", "extra_body"})
        return cls(base_url=public(endpoint.base_url), headers=tuple(sorted(endpoint.headers)), **same)


class Purpose(_Frozen):
    """Which part of a larger job a run is."""

    method: str | None = None
    """Its name in an evaluation's table."""
    protocol: str | None = None
    """Hash of the evaluation's cases."""
    reading: str | None = None
    repetition: int | None = None
    warmup: int | None = None
    samples: int | None = None
    hard: float | None = None
    """Share of negatives that are hard, in a round of training."""
    hard_kind: str | None = None


class RunConfig(_Frozen):
    """All that changes a run's answers; a resumed run must have the same."""

    starec: str
    langgraph: str
    python: str
    """Without the patch level."""
    dataset: DataConfig
    users: int
    users_from: str
    """"seed" or "ids"."""
    users_hash: str
    turns: int | None
    seed: int
    n_candidates: int
    targets: str
    split: str
    min_history: int
    learn_last: bool
    memories_hash: str | None
    """Of the memories to begin with; None where users start their own."""
    model: str
    graph: str
    agent: Mapping[str, Any]
    """What else the agent says of itself: its `settings`."""
    endpoints: Mapping[str, tuple[EndpointConfig, ...]]
    """Servers and sampling of each chat model, the agent's own as "llm"."""
    purpose: Purpose = Purpose()

    def record(self) -> dict[str, Any]:
        """The JSON of run.json, in which the agent's settings and the purpose are one with the rest."""
        whole = self.model_dump(mode="json", exclude={"agent", "purpose"})
        return {**self.agent, **whole, **self.purpose.model_dump(exclude_none=True)}


def check_same(settings: Mapping[str, Any], run: Mapping[str, Any], out: Path, *, urls: bool = True) -> None:
    """Raise RunError, with names and both values, if run.json says anything else than these settings.

    Args:
        settings: As `RunConfig.record` has them.
        run: run.json.
        out: The run's folder.
        urls: Whether endpoints must have the same base URLs too; they needn't where nothing is left to ask.
    """
    wanted = json.loads(json.dumps(settings))
    if not urls:
        wanted, run = ({**one, "endpoints": _without_urls(one.get("endpoints"))} for one in (wanted, run))
    different = [name for name in {**wanted, **Purpose().model_dump()} if run.get(name) != wanted.get(name)]
    if different:
        values = "; ".join(_difference(name, run.get(name), wanted.get(name)) for name in different)
        raise RunError(
            f"{out} holds another run: its {', '.join(different)} differ ({values}); resume with the same "
            "settings, or choose another folder"
        )


def _without_urls(endpoints: Any) -> Any:
    if not isinstance(endpoints, dict):
        return endpoints
    bare = {name: [{**one, "base_url": ""} for one in several] for name, several in endpoints.items()}
    return {
        name: [one for place, one in enumerate(several) if one not in several[:place]] for name, several in bare.items()
    }


def _difference(name: str, was: Any, now: Any) -> str:
    """Where two values first differ, down to the number or text."""
    if isinstance(was, dict) and isinstance(now, dict):
        key = next(key for key in {**was, **now} if was.get(key) != now.get(key))
        return _difference(f"{name}.{key}", was.get(key), now.get(key))
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        place = next(place for place, (a, b) in enumerate(zip(was, now, strict=True)) if a != b)
        return _difference(f"{name}[{place}]" if len(was) > 1 else name, was[place], now[place])
    return f"{name} was {_short(was)}, is {_short(now)}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def versions() -> dict[str, str]:
    """The versions of what makes the answers."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"starec": version("starec"), "langgraph": version("langgraph"), "python": python}


def ids_hash(ids: Sequence[Id]) -> str:
    """A hash of users' ids in order."""
    return hash_of(list(ids))


def memories_hash(memories: Mapping[Id, Memory] | None) -> str | None:
    """A hash of memories by user, whatever their order."""
    if not memories:
        return None
    return hash_of(sorted([repr(user), memory.model_dump(mode="json")] for user, memory in memories.items()))


def hash_of(value: object) -> str:
    """16 hex digits of what JSON can hold."""
    return blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def endpoints_of(llms: Mapping[str, object]) -> dict[str, tuple[EndpointConfig, ...]]:
    """The endpoints of chat models that have such."""
    found = {}
    for name, llm in llms.items():
        one = getattr(llm, "endpoint", None)
        given = getattr(llm, "endpoints", None) or [one]
        if endpoints := [endpoint for endpoint in given if isinstance(endpoint, Endpoint)]:
            described = {repr(made): made for made in map(EndpointConfig.of, endpoints)}
            found[name] = tuple(described[key] for key in sorted(described))
    return found
