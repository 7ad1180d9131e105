"""A step as a line of steps.jsonl, in which nothing is written twice.

A text is a JSON string, or a list of strings and pairs [first, count]: that many pieces, from that one on, of the texts
before it, which are those of the user's step before and of this step so far. Pieces are lines, long ones cut before and
after each ": " and line end. A system prompt is {"prompt": KEY} and is written once a file of steps, to prompts.jsonl
beside it. Memory and a graph's own state are what changed of them: an event is what it has beside the step's own item,
feedback and rank. What the candidates and the ranking say already, feedback doesn't repeat.

A line ends with its check: the CRC-32 of what precedes, begun with the check of the user's step before (a user's first
with that of the hash of the run's settings). So a damaged line is found, and so is one that follows another step than
it was made after.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticSerializationError, from_json, to_json

from starec_agents.llm.base import Call
from starec_agents.memory import Event, Memory
from starec_agents.runs.steps import Step
from starec_env.types import Feedback, ParseReport, Ranking

Text = str | list[str | list[int]]
"""A text as it is recorded."""

_ENDS = re.compile(r"(\n|: )")
_LONG = 120
"""Characters of a line from which on it is cut."""
_LEAST = 16
"""Fewest characters that a reference stands for."""
_HEAD = re.compile(rb'\{"user_id":(-?\d+|"(?:[^"\\]|\\.)*"),"turn":(\d+),')
_TAIL = re.compile(rb',"check":"([0-9a-f]{8})"\}\n\Z')
_PROMPT = re.compile(rb'\{"prompt":"([0-9a-f]{16})"\}')
_TEXTS = ("messages", "completion", "reasoning")
_WORDS = ("title", "reason")
"""The texts of an event."""
_PLAIN = {name: field.default for name, field in Call.model_fields.items() if name not in _TEXTS}
"""The other fields of a call, and what they are where nothing is recorded of them."""


@dataclass(frozen=True, slots=True)
class Before:
    """What a user's next line builds on."""

    check: int
    memory: Memory = Memory()
    state: Mapping[str, Any] = field(default_factory=dict)
    """The graph's own."""
    texts: Sequence[str] = ()
    """Of the last step."""


class _Texts:
    """Texts in the order in which a step has them, cut into pieces."""

    def __init__(self, before: Sequence[str]) -> None:
        self.pieces: list[str] = []
        self.texts: list[str] = []
        self._where: dict[str, int] = {}
        for text in before:
            self._add(_pieces(text))

    def _add(self, pieces: Sequence[str]) -> None:
        start = len(self.pieces)
        self.pieces += pieces
        self._where.update(zip(pieces, range(start, start + len(pieces)), strict=True))

    def _keep(self, text: str, pieces: Sequence[str]) -> None:
        if text not in self.texts:
            self.texts.append(text)
            self._add(pieces)

    def put(self, text: str) -> Text:
        """Record a text."""
        text = encodable(text)  # as it will be read: texts that differ before and not after would shift the pieces
        own = _pieces(text)
        found: list[str | list[int]] = []
        place = plain = 0
        where = self._where
        while place < len(own):
            first = where.get(own[place])
            if first is None:
                place += 1
                continue
            n = self._alike(own, place, first)
            if n < 4 and sum(map(len, own[place : place + n])) < _LEAST:
                place += 1
                continue
            if plain < place:
                found.append("".join(own[plain:place]))
            found.append([first, n])
            place = plain = place + n
        self._keep(text, own)
        if not found:
            return text
        return [*found, "".join(own[plain:])] if plain < len(own) else found

    def _alike(self, own: Sequence[str], place: int, first: int) -> int:
        n, most, pieces = 1, min(len(own) - place, len(self.pieces) - first), self.pieces
        while n < most and own[place + n] == pieces[first + n]:
            n += 1
        return n

    def take(self, coded: Text) -> str:
        """Read a recorded text back."""
        parts = [coded] if isinstance(coded, str) else coded
        text = "".join(part if isinstance(part, str) else self._run(*part) for part in parts)
        self._keep(text, _pieces(text))
        return text

    def _run(self, first: int, count: int) -> str:
        return "".join(self.pieces[first : first + count])


def encodable(text: str) -> str:
    """The text with "?" for each half of a surrogate pair, which UTF-8 can't hold."""
    return text.encode(errors="replace").decode()


def _pieces(text: str) -> list[str]:
    lines = text.splitlines(keepends=True)
    if len(text) < _LONG or max(map(len, lines)) < _LONG:
        return lines
    return [piece for line in lines for piece in ((line,) if len(line) < _LONG else _ENDS.split(line)) if piece]


def start_check(settings_hash: str) -> int:
    """What the first lines of all users of a run build on."""
    return zlib.crc32(settings_hash.encode())


def head_of(line: bytes) -> tuple[int | str, int] | None:
    """The user id and the turn that a line begins with; None if it is no step's."""
    head = _HEAD.match(line)
    try:
        return (from_json(head[1]), int(head[2])) if head and len(head[2]) < 10 else None
    except ValueError:
        return None


def check_of(line: bytes, before: int) -> int | None:
    """A line's check, if it is right for a line that follows one of the check `before`."""
    tail = _TAIL.search(line)
    check = int(tail[1], 16) if tail else None
    return check if tail and zlib.crc32(line[: tail.start()], before) == check else None


def prompts_of(line: bytes) -> set[str]:
    """The keys of the system prompts that a line names."""
    return {key.decode() for key in _PROMPT.findall(line)}


def write_line(step: Step, before: Before, prompt: Callable[[str], str]) -> tuple[bytes, Before]:
    """Write a step.

    Args:
        step: The step.
        before: What it builds on.
        prompt: Records a system prompt and returns its key.

    Returns:
        The line, and what the next one builds on.
    """
    texts, itself = _Texts(before.texts), _event_itself(step.feedback, len(step.candidates))
    started = _changes(before.memory, step.memory_before, texts, itself)
    record = {
        "user_id": step.user_id,
        "turn": step.turn,
        "candidates": step.candidates,
        "target": step.target,
        "liked": step.feedback.liked,
        "predicted_liked": step.feedback.predicted_liked,
        **({} if step.feedback.rating is None else {"rating": step.feedback.rating}),
        "reward": step.reward,
        "calls": [_call_record(call, texts, prompt) for call in step.calls],
        "ranking": {**step.ranking.model_dump(exclude_defaults=True), "text": texts.put(step.ranking.text)},
    }
    learned = _changes(step.memory_before, step.memory, texts, itself)
    state = _state_changes(before.state, step.state, texts)
    record |= {name: found for name, found in (("started", started), ("learned", learned), ("state", state)) if found}
    body = _json(record)[:-1]
    check = zlib.crc32(body, before.check)
    return b'%b,"check":"%08x"}\n' % (body, check), Before(check, step.memory, step.state, texts.texts)


def _json(record: Mapping[str, Any]) -> bytes:
    try:
        return to_json(record)
    except (PydanticSerializationError, UnicodeEncodeError):  # half of a surrogate pair, which UTF-8 can't hold
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_plain)
        return text.encode("utf-8", errors="replace")


def _plain(model: BaseModel) -> Any:
    return model.model_dump(mode="json")


def _call_record(call: Call, texts: _Texts, prompt: Callable[[str], str]) -> dict[str, Any]:
    record: dict[str, Any] = {
        name: value for name, default in _PLAIN.items() if (value := getattr(call, name)) is not default
    }
    record["messages"] = [
        {**message, "content": {"prompt": prompt(content)} if message.get("role") == "system" else texts.put(content)}
        for message in call.messages
        for content in [message.get("content", "")]
    ]
    record["completion"] = texts.put(call.completion)
    if call.reasoning is not None:
        record["reasoning"] = texts.put(call.reasoning)
    return record


def _event_itself(feedback: Feedback, n: int) -> dict[str, Any]:
    """The fields of the event that a step is, which its line has already."""
    return {**{name: getattr(feedback, name) for name in ("item_id", "liked", "rating", "rank")}, "of": n}


def _changes(old: Memory, new: Memory, texts: _Texts, itself: Mapping[str, Any]) -> dict[str, Any]:
    """What differs: the profile, the "events" that were added to the history, and fields of a class of one's own."""
    if new is old:
        return {}
    was, is_now = (memory.model_dump(mode="json", exclude={"history"}) for memory in (old, new))
    found: dict[str, Any] = {name: value for name, value in is_now.items() if was.get(name, ...) != value}
    if "profile" in found:
        found["profile"] = texts.put(found["profile"])
    if new.history != old.history:
        kept = len(old.history) if new.history[: len(old.history)] == old.history else 0
        added = [_event_record(event, texts, itself) for event in new.history[kept:]]
        found["events" if kept == len(old.history) else "history"] = added
    if type(new) is not type(old):
        found["class"] = _class_name(type(new))
    return found


def _event_record(event: Event | str, texts: _Texts, itself: Mapping[str, Any]) -> Any:
    if isinstance(event, str):
        return texts.put(event)
    found = {name: value for name, value in event if itself.get(name, ...) != value}
    return {name: texts.put(value) if name in _WORDS else value for name, value in found.items()}


def _event(record: Any, texts: _Texts, itself: Mapping[str, Any]) -> Event | str:
    if not isinstance(record, dict):
        return texts.take(record)
    return Event.model_validate(
        {**itself, **{name: texts.take(value) if name in _WORDS else value for name, value in record.items()}}
    )


def _state_changes(old: Mapping[str, Any], new: Mapping[str, Any], texts: _Texts) -> dict[str, Any]:
    """Keys with another value, each in a list of one so that a text isn't taken for a list; null for one that went."""
    changed = {name: value for name, value in new.items() if name not in old or old[name] != value}
    coded = {name: {"text": texts.put(value)} if isinstance(value, str) else [value] for name, value in changed.items()}
    return {**coded, **dict.fromkeys(old.keys() - new.keys())}


def _state(old: Mapping[str, Any], changes: Mapping[str, Any], texts: _Texts) -> Mapping[str, Any]:
    if not changes:
        return old
    taken = {
        name: texts.take(coded["text"]) if isinstance(coded, dict) else coded[0]
        for name, coded in changes.items()
        if coded is not None
    }
    return {name: value for name, value in {**old, **taken}.items() if changes.get(name, ...) is not None}


def read_line(line: bytes, before: Before, prompts: Mapping[str, str]) -> tuple[Step, Before]:
    """Read a step back; raises ValueError, LookupError or TypeError where it is none."""
    record = from_json(line)
    texts = _Texts(before.texts)
    target, n = record["target"], len(record["candidates"])
    order = record["ranking"]["order"]
    feedback = Feedback(
        item_id=record["candidates"][target],
        rank=order.index(target) + 1 if target in order else None,
        predicted_liked=record["predicted_liked"],
        liked=record["liked"],
        rating=record.get("rating"),
    )
    itself = _event_itself(feedback, n)
    memory_before = _changed(before.memory, record.get("started", {}), texts, itself)
    calls = tuple([_call(call, texts, prompts) for call in record["calls"]])
    ranking = Ranking.model_validate({**record["ranking"], "text": texts.take(record["ranking"]["text"])})
    memory = _changed(memory_before, record.get("learned", {}), texts, itself)
    state = _state(before.state, record.get("state", {}), texts)
    step = Step(
        **{name: record[name] for name in ("user_id", "turn", "candidates", "target", "reward")},
        ranking=ranking,
        feedback=feedback,
        calls=calls,
        memory_before=memory_before,
        memory=memory,
        state=state,
    )
    return step, Before(int(record["check"], 16), memory, state, texts.texts)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What metrics need of a step."""

    rank: int | None
    liked: bool
    report: ParseReport
    """On the ranking."""
    updates: Sequence[ParseReport]
    """On the memory updates."""
    prompt_tokens: int
    completion_tokens: int


def read_outcome(line: bytes) -> Outcome:
    """Read what metrics need of a line; raises as `read_line` does."""
    record = from_json(line)
    ranking = Ranking.model_validate({**record["ranking"], "text": ""})
    used = [call.get("usage", {}) for call in record["calls"]]
    return Outcome(
        ranking.rank_of(record["target"]),
        record["liked"] if "liked" in record else record["feedback"]["liked"],  # as in the first format
        ranking.report,
        [ParseReport.model_validate(call["report"]) for call in record["calls"] if call.get("report")],
        sum(usage.get("prompt_tokens", 0) for usage in used),
        sum(usage.get("completion_tokens", 0) for usage in used),
    )


def _call(record: dict[str, Any], texts: _Texts, prompts: Mapping[str, str]) -> Call:
    record["messages"] = [
        {
            **message,
            "content": _prompt(content["prompt"], prompts) if isinstance(content, dict) else texts.take(content),
        }
        for message in record["messages"]
        for content in [message["content"]]
    ]
    for name in _TEXTS[1:]:
        if name in record:
            record[name] = texts.take(record[name])
    return Call.model_validate(record)


def _prompt(key: str, prompts: Mapping[str, str]) -> str:
    return prompts.get(key) or f"(system prompt {key}, which prompts.jsonl lacks)"


def _changed(old: Memory, changes: dict[str, Any], texts: _Texts, itself: Mapping[str, Any]) -> Memory:
    if not changes:
        return old
    if "profile" in changes:
        changes["profile"] = texts.take(changes["profile"])
    if "events" in changes or "history" in changes:
        before = old.history if "events" in changes else ()
        added = changes.pop("events", None) or changes["history"]
        changes["history"] = [*before, *(_event(each, texts, itself) for each in added)]
    kind = _class_named(changes.pop("class")) if "class" in changes else type(old)
    return kind.model_validate({**dict(old), **changes})


class UnknownMemory(Memory):
    """A memory of a class that isn't imported here, to be read with all its fields, but not gone on with."""

    model_config = ConfigDict(extra="allow")


def _class_name(kind: type[Memory]) -> str:
    # A worker's main module is the run's under another name.
    return f"{kind.__module__.replace('__mp_main__', '__main__')}:{kind.__qualname__}"


def _class_named(name: str) -> type[Memory]:
    """The class of memories of that name, of those that are imported now; else a stand-in with the same fields."""
    return next((kind for kind in _classes(Memory) if _class_name(kind) == name), UnknownMemory)


def _classes(kind: type[Memory]) -> Iterator[type[Memory]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _classes(child)


def prompt_key(text: str) -> str:
    """A system prompt's key."""
    return blake2b(text.encode("utf-8", errors="replace"), digest_size=8).hexdigest()
