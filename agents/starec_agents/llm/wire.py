"""What OpenAI-compatible servers send: what is asked for is read strictly, and nothing else makes an answer bad."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import from_json

from starec_agents.llm.base import MAX_COUNT, Completion, Usage, bounded, count, logprobs_of, longest_text
from starec_agents.llm.faults import Refused
from starec_agents.llm.redaction import Secrets, short
from starec_env.errors import EndpointError

_MOST_SHOWN = 65_536
_LONGEST_PATH = 4096


def read_completion(
    body: bytes, content_type: str, secrets: Secrets, *, max_tokens: object = None, latency: float = 0.0
) -> Completion:
    """Read a chat completion, or the events of a streamed one.

    Content may be text or a list of parts, thoughts may be in `reasoning` or `reasoning_content`; token counts, ids
    and log-probabilities that can't be are left out.

    Args:
        body: Of a response of status 2xx.
        content_type: Its header.
        secrets: Are hidden in what is returned and raised.
        max_tokens: As asked for: longer answers are cut.
        latency: Seconds, to be noted in the completion.

    Raises:
        EndpointError: kind "bad_answer": the body isn't a chat completion, has no choice, or says nothing.
        Refused: The body holds an error.
    """
    streamed = "event-stream" in content_type or body[:5] == b"data:"
    try:
        answer = _joined(body) if streamed else from_json(body)
    except ValueError as error:
        raise _bad(f"something else than JSON ({content_type or 'no content type'}: {error})", body, secrets) from None
    choice = _choice(answer, body, secrets)
    message = choice["message"]
    text, thoughts = _parts(message.get("content"))
    thoughts = thoughts or _thoughts(message.get("reasoning")) or _thoughts(message.get("reasoning_content"))
    if text is None:
        text = message["refusal"] if isinstance(message.get("refusal"), str) else None
    ended = choice.get("finish_reason") in (None, "stop")
    if text is None and not thoughts and (message.get("content") is not None or ended):
        raise _bad("an answer with neither text nor reasoning", body, secrets)
    used = _mapping(answer.get("usage"))
    return Completion(
        **bounded(
            secrets.hide_in_answer(text or ""),
            secrets.hide_in_answer(thoughts) if thoughts else None,
            choice.get("finish_reason"),
            longest_text(max_tokens),
        ),
        usage=Usage(
            prompt_tokens=count(used.get("prompt_tokens")),
            completion_tokens=count(used.get("completion_tokens")),
            cached_tokens=count(_mapping(used.get("prompt_tokens_details")).get("cached_tokens")),
        ),
        latency=latency,
        model=_name(answer.get("model"), secrets),
        token_ids=_ids(choice.get("token_ids")),
        prompt_token_ids=_ids(answer.get("prompt_token_ids")) or _ids(choice.get("prompt_token_ids")),
        logprobs=logprobs_of(choice.get("logprobs")),
    )


def read_models(body: bytes, secrets: Secrets) -> dict[str, str]:
    """Read a list of models: by name the path or hub id it was loaded from, "" where the server doesn't say.

    Raises EndpointError of kind "bad_answer" if it is no such list.
    """
    try:
        listed = from_json(body)["data"]
        return {_name(model["id"], secrets): _root(model.get("root")) for model in listed}
    except (ValueError, TypeError, LookupError, AttributeError):
        raise _bad("something else than a list of models", body, secrets) from None


def read_refusal(status: int, body: bytes, headers: Mapping[str, str]) -> Refused:
    """Read an error of status 300 or more."""
    try:
        content = from_json(body)
    except ValueError:
        content = None
    about = _mapping(content)
    error = about.get("error") or about.get("message") or about.get("detail")
    if not error:
        return Refused(status, body[:_MOST_SHOWN].decode(errors="replace"), headers=headers)
    return Refused(status, *_reason(error), headers=headers)


def _reason(error: object) -> tuple[str, str]:
    about = _mapping(error)
    message = about.get("message") or about.get("detail") or error
    return str(message), f"{about.get('code')} {about.get('type')}"


def _choice(answer: Any, body: bytes, secrets: Secrets) -> dict[str, Any]:
    """The first choice, its message a mapping; raises the error that the answer holds instead."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    error = choice.get("error") or (isinstance(answer, dict) and answer.get("error"))
    if error or choice.get("finish_reason") == "error":
        raise _error_inside(error or "finish_reason is 'error'", body, secrets)
    if not isinstance(choice.get("message"), dict):
        raise _bad("an answer without a choice that has a message", body, secrets)
    return choice


def _error_inside(error: object, body: bytes, secrets: Secrets) -> Exception:
    """An error in a body of status 200, with the status that its code names if it names one."""
    said, codes = _reason(error)
    about = _mapping(error)
    for code in (about.get("code"), about.get("status"), about.get("status_code")):
        if str(code).isdecimal() and 300 <= int(str(code)[:4]) <= 599:
            return Refused(int(str(code)), said, codes)
    words = f"{said} {codes}".lower().replace("_", " ")
    if "rate limit" in words or "too many requests" in words:
        return Refused(429, said, codes)
    if isinstance(error, dict) or error == "finish_reason is 'error'":
        return Refused(502, said, codes)
    return _bad("an error instead of an answer (does base_url lack its /v1?)", body, secrets)


def _joined(body: bytes) -> dict[str, Any]:
    """A whole answer from server-sent events; raises ValueError if they are none, or end before the answer does."""
    answer: dict[str, Any] = {}
    message: dict[str, Any] = {}
    choice: dict[str, Any] = {"message": message, "finish_reason": None}
    done = False
    for line in body.splitlines():
        if not line.startswith(b"data:"):
            continue
        if (data := line[5:].strip()) == b"[DONE]":
            done = True
            break
        event = _mapping(from_json(data))
        answer |= {name: value for name, value in event.items() if name != "choices" and value is not None}
        parts = event.get("choices")
        for part in parts if isinstance(parts, list) else ():
            _join(choice, _mapping(part))
    if not done and choice["finish_reason"] is None and "error" not in answer:
        raise ValueError("the stream ended before the answer did")
    return {**answer, "choices": [choice]}


def _join(choice: dict[str, Any], part: dict[str, Any]) -> None:
    if part.get("index") not in (0, None):
        return
    message = choice["message"]
    delta = _mapping(part.get("delta") or part.get("message"))
    text, thoughts = _parts(delta.get("content"))
    pieces = {
        "content": text,
        "reasoning": thoughts or _thoughts(delta.get("reasoning")) or _thoughts(delta.get("reasoning_content")),
    }
    for name, piece in pieces.items():
        if piece:
            message.setdefault(name, []).append(piece)
    for name in ("finish_reason", "error"):
        choice[name] = part.get(name) or choice.get(name)
    tokens = _mapping(part.get("logprobs")).get("content")
    if isinstance(tokens, list):
        choice.setdefault("logprobs", {"content": []})["content"].extend(tokens)
    if isinstance(part.get("token_ids"), list):
        choice.setdefault("token_ids", []).extend(part["token_ids"])


def _parts(content: object) -> tuple[str | None, str]:
    """The text of a message's content, and the thoughts in it; None if there is no text."""
    if isinstance(content, str):
        return content, ""
    if not isinstance(content, list):
        return None, ""
    texts = [text for part in content if (text := _text(part)) is not None]
    thoughts = [thought for part in content if (thought := _thoughts(_mapping(part).get("thinking")))]
    thoughts += [_thoughts(part) for part in content if _mapping(part).get("type") == "reasoning"]
    return ("".join(texts) if texts else None), "\n".join(thoughts)


def _text(part: object) -> str | None:
    if isinstance(part, str):
        return part
    about = _mapping(part)
    text = about.get("text") if about.get("type", "text") in ("text", "output_text") else None
    return text if isinstance(text, str) else None


def _thoughts(reasoning: object) -> str:
    """Reasoning in whatever shape: text, parts, or an object that holds either."""
    return "".join(_strings(reasoning, 4))


def _strings(value: object, depth: int) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and depth:
        for part in value:
            yield from _strings(part, depth - 1)
    elif isinstance(value, dict) and depth:
        for name in ("text", "content", "thinking", "reasoning", "summary"):
            yield from _strings(value.get(name), depth - 1)


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _ids(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list) or not value:
        return None
    return tuple(value) if all(type(number) is int and 0 <= number <= MAX_COUNT for number in value) else None


def _name(value: object, secrets: Secrets) -> str:
    if not isinstance(value, str):
        return ""
    return secrets.hide(value) if len(value) <= 100 and value.isprintable() else short(secrets.hide(value), 100)


def _root(value: object) -> str:
    return value if isinstance(value, str) and len(value) <= _LONGEST_PATH and value.isprintable() else ""


def _bad(what: str, body: bytes, secrets: Secrets) -> EndpointError:
    text = body[:_MOST_SHOWN].decode(errors="replace")
    return EndpointError(f"gave {what}: {short(secrets.hide(text))!r}", "bad_answer")
