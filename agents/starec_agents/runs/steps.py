"""What is recorded of a run: steps, and the trajectories that they make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from starec_agents.llm.base import Call
from starec_agents.memory import Memory
from starec_env.types import Feedback, Id, Ranking


class Step(BaseModel):
    """One finished turn of one user, with ids as in the data set's own files."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    user_id: Id
    turn: int
    """0-based number of the turn in the user's whole stream."""
    candidates: tuple[Id, ...]
    """Item ids in the order shown."""
    target: int
    """0-based candidate position of the true item."""
    ranking: Ranking
    feedback: Feedback
    reward: float
    calls: tuple[Call, ...] = ()
    memory_before: Memory = Memory()
    memory: Memory = Memory()
    """The memory after learning from the feedback."""
    state: Mapping[str, Any] = Field(default_factory=dict)
    """The graph's own state keys after that, as JSON has them."""


class Trajectory(BaseModel):
    """One user's steps in order, with what made them."""

    model_config = ConfigDict(frozen=True)

    user_id: Id
    steps: tuple[Step, ...]
    model: str
    graph: str
    seed: int
