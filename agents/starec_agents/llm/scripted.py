"""Chat models that follow a script: for tests, dry runs and measuring everything but the model."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from random import Random
from typing import Any

from starec_agents.llm.base import Completion, Message, Usage

_SHOWN = re.compile(r"^[^\n]* shown:\n(.+?)\n\n", re.MULTILINE | re.DOTALL)
_RATINGS = re.compile(r"one of ([\d., ]+);")
_CANDIDATES = re.compile(r"^Candidate [^\n]*:\n(.+?)\n\n", re.MULTILINE | re.DOTALL)

Reply = str | Sequence[str] | Callable[[Sequence[Message], Mapping[str, Any]], "str | Completion"]
"""What a ScriptedChat says: always the same, one text after another, or a function of (messages, sampling)."""


class ScriptedChat:
    """A chat model that says what a script gives it: for tests, dry runs and measuring everything but the model.

    Args:
        reply: A text; a sequence of texts, said in the order of the calls and then from the start again; or a function
            of (messages, sampling) that returns a text or a Completion, or raises EndpointError to act a fault. Only
            a text or a pure function gives the same answers at any concurrency and after a resume.
        latency: Seconds to sleep before each answer.

    Usage is counted in words, prompt and answer apart. `requests` counts the calls.
    """

    def __init__(self, reply: Reply, *, latency: float = 0.0) -> None:
        self.reply, self.latency, self.requests = reply, latency, 0

    async def complete(self, messages: Sequence[Message], **sampling: Any) -> Completion:
        """Answer as scripted; see ChatModel."""
        number, self.requests = self.requests, self.requests + 1
        if self.latency:
            await asyncio.sleep(self.latency)
        said: str | Completion
        if callable(self.reply):
            said = self.reply(messages, sampling)
        else:
            said = self.reply if isinstance(self.reply, str) else self.reply[number % len(self.reply)]
        if isinstance(said, Completion):
            return said
        words = sum(len(message["content"].split()) for message in messages)
        usage = Usage(prompt_tokens=words, completion_tokens=len(said.split()))
        return Completion(text=said, finish_reason="stop", usage=usage, latency=self.latency, model="scripted")


def scripted_user(seed: int = 0) -> Callable[[Sequence[Message], Mapping[str, Any]], str]:
    """A reply for ScriptedChat: valid rankings in every format, answers to slates and short profiles.

    They are decided by seed and prompt alone. To four slates of five it takes something, and after one of eight it
    leaves.
    """
    return partial(_reply, seed)


def _reply(seed: int, messages: Sequence[Message], sampling: Mapping[str, Any]) -> str:
    prompt = messages[-1]["content"]
    digest = blake2b(f"{seed}\n{prompt}".encode(), digest_size=8).hexdigest()
    if ratings := _RATINGS.findall(messages[0]["content"]):
        return _respond(Random(digest), _SHOWN.findall(prompt)[-1].split("\n"), ratings[0].split(", "), prompt)
    listed = _CANDIDATES.findall(prompt)
    if not listed:
        profile = f"Has moods, of late mood {digest}."
        marked = "<description>" in messages[0]["content"]
        said = f"<description>{profile}</description>" if marked else f"Updated User description: {profile}"
        return f"<think>\nLet me compare.\n</think>\n{said}"
    lines = listed[-1].split("\n")
    Random(digest).shuffle(lines)
    compact = "labels" in messages[0]["content"]
    if "schema" in sampling:
        return json.dumps({_label(line): len(lines) - place for place, line in enumerate(lines)})
    if compact:
        return " ".join(map(_label, lines))
    titles = [line.split(". ", 1)[1].split(" | ")[0] for line in lines]
    ranked = "\n".join(f"{place}. {title} - suits mood {digest}" for place, title in enumerate(titles, 1))
    return f"<think>\nMood {digest}.\n</think>\n{ranked}"


def _respond(rng: Random, lines: Sequence[str], ratings: Sequence[str], prompt: str) -> str:
    names = [_label(line) for line in lines]
    seen = names[: rng.randint(1, len(names))]
    take = rng.choice(seen) if rng.random() < 0.8 or "has taken this" in prompt else None
    answer = {
        "seen": seen,
        "take": take,
        "stars": float(rng.choice(ratings)) if take else None,
        "leave": rng.random() < 0.125,
        "say": "" if take else "Nothing for me.",
    }
    return json.dumps(answer)


def _label(line: str) -> str:
    return line.split(". ", 1)[0]
