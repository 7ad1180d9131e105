"""Servers and models that refuse a part of a usual request: what is then left out of it, or put otherwise.

A refusal that names the part costs one request; the change is remembered for that server, logged once, and recorded in
each answer's `stepped_down`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Body = dict[str, Any]

STATUSES = (400, 422, 500, 501)
"""With which servers refuse a part of a request; llama.cpp's template errors are of status 500."""
_REFUSES = re.compile(
    r"unsupported|not (?:currently |yet )?(?:be )?(?:support|allow|permit|accept|enabl|available)"
    r"|n't (?:support|allow|permit|accept)|unknown|unrecogni[sz]ed|unexpected|only the default|cannot both"
    r"|no longer|deprecated|must alternate|invalid (?:parameter|argument|field)",
    re.IGNORECASE,
)
_TOO_LONG = re.compile(
    r"context (?:length|window|size)|too (?:large|long|many|big|high)|must be (?:less|at most|between)"
)


def _without(name: str) -> Callable[[Body], Body]:
    return lambda body: {key: value for key, value in body.items() if key != name}


def _renamed(body: Body) -> Body:
    if "max_tokens" not in body:
        return body
    return {**_without("max_tokens")(body), "max_completion_tokens": body["max_tokens"]}


def _merged(body: Body) -> Body:
    first, *rest = body["messages"]
    if first["role"] != "system" or not rest or rest[0]["role"] != "user":
        return body
    text = f"{first['content']}\n\n{rest[0]['content']}"
    return {**body, "messages": [{**rest[0], "content": text}, *rest[1:]]}


def _json_object(body: Body) -> Body:
    known = body.get("response_format", {}).get("type") == "json_schema"
    return {**body, "response_format": {"type": "json_object"}} if known else body


def _streamed(body: Body) -> Body:
    return body if body.get("stream") else {**body, "stream": True, "stream_options": {"include_usage": True}}


_FORMAT = r"response_format|json_schema|json_object|json mode|structured|guided|grammar|schema|\bjson\b"
CHANGES: Mapping[str, tuple[str, Callable[[Body], Body]]] = {
    "max_completion_tokens for max_tokens": (r"\bmax_tokens\b", _renamed),
    "no stream_options": (r"\bstream_options\b", _without("stream_options")),
    "no return_token_ids": (r"\breturn_token_ids\b", _without("return_token_ids")),
    "no top_p": (r"\btop_?p\b", _without("top_p")),
    "no temperature": (r"\btemperature\b", _without("temperature")),
    "no seed": (r"\bseed\b", _without("seed")),
    "system message in the user message": (
        r"system.{0,20}\b(?:role|message|prompt|instruction)|role.{0,30}system|must alternate|developer instruction",
        _merged,
    ),
    "json_object for json_schema": (_FORMAT, _json_object),
    "no response_format": (_FORMAT, _without("response_format")),
    "streamed": (
        r"only.{0,30}\bstream|\bstream.{0,30}(?:require|only|must|enable|true)|(?:must|require|need|set|use|enable).{0,30}\bstream",
        _streamed,
    ),
}
"""What is recorded -> what a refusal that calls for it speaks of, and the change to the request."""
_PLAIN = {"json_object for json_schema", "no response_format", "streamed"}
"""Those for which it is enough that the refusal speaks of it, as it names no other reason to."""


def next_change(body: Body, said: str) -> str | None:
    """The name of the change that a refusal calls for, None if it is about something else."""
    if _TOO_LONG.search(said):
        return None
    refuses = _REFUSES.search(said)
    for name, (about, change) in CHANGES.items():
        if (refuses or name in _PLAIN) and re.search(about, said, re.IGNORECASE) and change(body) != body:
            return name
    return None


def changed(body: Body, names: Iterable[str]) -> Body:
    """A request with the changes made, in their order."""
    for name in names:
        body = CHANGES[name][1](body)
    return body
