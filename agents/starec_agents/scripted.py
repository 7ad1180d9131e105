"""A scripted model that answers our prompts well-formed, by chance but always alike: for tests and benchmarks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from random import Random
from typing import Any

from starec_agents.llm import Message

_CANDIDATES = re.compile(r"^Candidate [^\n]*:\n(.+?)\n\n", re.MULTILINE | re.DOTALL)


def scripted_user(seed: int = 0) -> Callable[[Sequence[Message], Mapping[str, Any]], str]:
    """A reply for ScriptedChat: valid rankings in every format and short profiles, decided by seed and prompt alone."""
    return partial(_reply, seed)


def _reply(seed: int, messages: Sequence[Message], sampling: Mapping[str, Any]) -> str:
    prompt = messages[-1]["content"]
    digest = blake2b(f"{seed}\n{prompt}".encode(), digest_size=8).hexdigest()
    listed = _CANDIDATES.findall(prompt)
    if not listed:
        return f"<think>\nLet me compare.\n</think>\nUpdated User description: Has moods, of late mood {digest}."
    lines = listed[-1].split("\n")
    Random(digest).shuffle(lines)
    compact = "labels" in messages[0]["content"]
    if "schema" in sampling:
        return json.dumps({_label(line): len(lines) - place for place, line in enumerate(lines)})
    if compact:
        return " ".join(map(_label, lines))
    titles = [line.split(" | ")[0] for line in lines]
    ranked = "\n".join(f"{place}. {title} - suits mood {digest}" for place, title in enumerate(titles, 1))
    return f"<think>\nMood {digest}.\n</think>\n{ranked}"


def _label(line: str) -> str:
    return line.split(". ", 1)[0]
