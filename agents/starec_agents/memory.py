"""What an agent keeps of its user (paper 4.1.1): a description in words, and the interactions that it learned from."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from starec_env.types import Id


class Event(BaseModel):
    """An interaction that an agent learned from: the item, the feedback, and what the agent had predicted of it.

    `str()` gives it in words: `Heat (1995): ranked 3 of 20 ("tense"), liked`.
    """

    model_config = ConfigDict(frozen=True)

    item_id: Id
    title: str
    """The item's title as prompts have it."""
    liked: bool
    rating: float | None = None
    """What the user rated it; None where that isn't known."""
    rank: int | None = None
    """1-based rank that the agent had given it; None where it had not ranked it."""
    of: int | None = None
    """How many candidates were ranked; None where the agent predicted nothing."""
    reason: str = ""
    """What the agent had said of it (4.1.2)."""

    @property
    def verb(self) -> str:
        """What the user did, in a word."""
        return "liked" if self.liked else "disliked"

    @property
    def prediction(self) -> str:
        """What the agent predicted, in words: `ranked 3 of 20 ("tense")`; "" where it predicted nothing."""
        if self.of is None:
            return ""
        place = "not ranked" if self.rank is None else f"ranked {self.rank} of {self.of}"
        return f'{place} ("{self.reason}")' if self.reason else place

    def __str__(self) -> str:
        return f"{self.title}: {', '.join(filter(None, (self.prediction, self.verb)))}"


class Memory(BaseModel):
    """An agent's memory (paper 4.1.1). Updates return a new one; a class of your own may add fields, and is recorded.

    What the user did before is in `Query.history`, so it isn't held here again: prompts show both as one record.
    """

    model_config = ConfigDict(frozen=True)

    profile: str = ""
    """The current description of the user's preferences."""
    history: tuple[Event | str, ...] = ()
    """An event a turn learned from, oldest first; a graph of your own may add notes in plain text."""

    def updated(self, *, profile: str | None = None, event: Event | str | None = None) -> Self:
        """A new memory, of the same class, with the profile replaced, an event appended, or both."""
        changes: dict[str, Any] = {} if profile is None else {"profile": profile}
        if event is not None:
            changes["history"] = (*self.history, event)
        return self.model_copy(update=changes)
