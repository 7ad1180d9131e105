import base64
import json
import ssl
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starec_agents.llm.base import Completion, Usage
from starec_agents.llm.faults import Refused, advised_wait, duration, retry_after, understand
from starec_agents.llm.redaction import Secrets, public, read_address
from starec_agents.llm.refusals import CHANGES, changed, next_change
from starec_agents.llm.wire import read_completion, read_models, read_refusal
from starec_env.errors import EndpointError, InvalidOption

NOON = "Wed, 01 Jan 2025 12:00:00 GMT"


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7.0),
        ("0.25", 0.25),
        ("-3", 0.0),
        ("1e12", 1e12),
        ("inf", float("inf")),
        ("nan", None),
        ("", None),
        ("soon", None),
        ("Wed, 01 Jan 2025 12:00:30 GMT", 30.0),
        ("Wed, 01 Jan 2025 11:00:00 GMT", 0.0),
        ("Wed, 99 Jan 2025 11:00:00 GMT", None),
    ],
)
def test_retry_after_is_read_against_the_servers_own_clock(said: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": said, "date": NOON}) == seconds


def test_retry_after_takes_this_machines_clock_where_the_server_shows_none() -> None:
    assert retry_after({"retry-after": NOON}) == 0.0
    assert (retry_after({"retry-after": "Wed, 01 Jan 2200 12:00:00 GMT"}) or 0.0) > 1e9


def test_no_retry_after_is_none() -> None:
    assert retry_after({}) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("20ms", 0.02), ("1s", 1.0), ("6m0s", 360.0), ("1h2m3.5s", 3723.5), ("12", 12.0), ("", None), ("soon", None)],
)
def test_durations_of_rate_limits_are_read(text: str, seconds: float | None) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"x-ms-retry-after-ms": "250"}, 0.25),
        ({"retry-after": "9", "x-ratelimit-reset-tokens": "1s"}, 9.0),
        ({"x-ratelimit-reset-tokens": "7.5s"}, 7.5),
        ({"x-ratelimit-reset-requests": "1s", "x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        (
            {
                "x-ratelimit-reset-requests": "8m",
                "x-ratelimit-remaining-requests": "12",
                "x-ratelimit-reset-tokens": "2s",
                "x-ratelimit-remaining-tokens": "0",
            },
            2.0,
        ),
        ({"x-ratelimit-reset-tokens": "soon"}, None),
    ],
)
def test_what_a_server_advises_is_read_from_any_of_its_headers(headers: dict[str, str], seconds: float | None) -> None:
    assert advised_wait(headers) == seconds


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("Rate limit reached on tokens per min. Please try again in 1m2.5s. Visit", 62.5),
        ("Please retry after 20 seconds.", 20.0),
        ("Retry in 250ms", 0.25),
        ("try again in a while", None),
        ("try again in 5 days", None),
    ],
)
def test_what_a_server_advises_is_read_from_its_words_where_no_header_says(said: str, seconds: float | None) -> None:
    assert advised_wait({}, said) == seconds
    assert advised_wait({"retry-after": "3"}, said) == 3.0


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        ("https://me:secret@host/v1?api-key=secret", "https://host/v1"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1"),
        ("http://host:99999/v1", "<not a URL>"),
        ("http://host/S3CRETPASS/v1#S3CRETPASS", "http://host/***/v1"),
        ("http://host/openai/deployments/m?api-version=1", "http://host/openai/deployments/m"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert public(url) == shown


@pytest.mark.parametrize(
    ("base_url", "asked"),
    [
        ("http://h:8000/v1", "http://h:8000/v1/chat/completions"),
        (" http://h:8000/v1// ", "http://h:8000/v1/chat/completions"),
        ("HTTP://h/v1/chat/completions/", "http://h/v1/chat/completions"),
        ("http://h/openai/deployments/m?api-version=1", "http://h/openai/deployments/m/chat/completions?api-version=1"),
        ("https://me:pa55word@h/v1?key=abcdefgh", "https://h/v1/chat/completions?key=abcdefgh"),
    ],
)
def test_a_base_url_may_have_a_query_a_login_blanks_and_the_whole_path(base_url: str, asked: str) -> None:
    assert read_address(base_url).url("/chat/completions") == asked


@pytest.mark.parametrize(
    "base_url", ["u:S3CRET@h:80/v1", "http://u:S3CRET@h:99999/v1", "ftp://u:S3CRET@h/v1", "http://u:S3CRET@[::1/v1"]
)
def test_a_mistyped_url_is_refused_without_its_password(base_url: str) -> None:
    with pytest.raises(InvalidOption, match="isn't a URL") as caught:
        read_address(base_url)
    assert "S3CRET" not in str(caught.value)


NONE = Secrets([])


def body(content: Any = "3 1 2", *, finish: Any = "stop", choice: Any = None, **more: Any) -> bytes:
    message = {"role": "assistant", "content": content, **more.pop("message", {})}
    return json.dumps({"choices": [{"message": message, "finish_reason": finish, **(choice or {})}], **more}).encode()


def read(raw: bytes, kind: str = "application/json", **options: Any) -> Completion:
    return read_completion(raw, kind, options.pop("secrets", NONE), **options)


THINKING = [
    {"type": "thinking", "thinking": [{"type": "text", "text": "Let me see."}]},
    {"type": "text", "text": "3 1"},
]


@pytest.mark.parametrize(
    ("content", "message", "text", "reasoning"),
    [
        ("3 1", {}, "3 1", None),
        (THINKING, {}, "3 1", "Let me see."),
        ([{"type": "text", "text": "3 "}, {"type": "text", "text": "1"}], {}, "3 1", None),
        (["3 ", "1"], {}, "3 1", None),
        ([{"type": "reasoning", "text": "Hm."}, {"type": "output_text", "text": "3 1"}], {}, "3 1", "Hm."),
        ("3 1", {"reasoning": "Hm."}, "3 1", "Hm."),
        ("3 1", {"reasoning_content": "Hm."}, "3 1", "Hm."),
        ("3 1", {"reasoning": {"content": "Hm."}}, "3 1", "Hm."),
        ("3 1", {"reasoning": {"effort": 7}, "tool_calls": 3}, "3 1", None),
        (None, {"reasoning_content": "All of it."}, "", "All of it."),
        (None, {"refusal": "I can't."}, "I can't.", None),
    ],
)
def test_text_and_thoughts_are_found_in_whatever_shape(
    content: Any, message: Any, text: str, reasoning: str | None
) -> None:
    answer = read(body(content, message=message))
    assert (answer.text, answer.reasoning) == (text, reasoning)


def test_an_answer_says_whether_it_was_cut_off_and_whether_it_is_all_thought() -> None:
    plain, thought = read(body()), read(body("", message={"reasoning": "Hm."}))
    assert not (plain.cut_off or plain.only_thought)
    assert thought.only_thought
    assert all(read(body(finish=reason)).cut_off for reason in ("length", "max_tokens", "MAX_TOKENS"))


@pytest.mark.parametrize("content", [7, None, [], {"text": "3"}])
def test_an_answer_that_says_nothing_is_bad(content: Any) -> None:
    with pytest.raises(EndpointError, match="neither text nor reasoning"):
        read(body(content))


@pytest.mark.parametrize(
    "odd",
    [
        {"usage": {"prompt_tokens": 2**63, "completion_tokens": -5, "prompt_tokens_details": 3}},
        {"usage": {"prompt_tokens": "many", "completion_tokens": 1e300}},
        {"usage": [1]},
        {"choice": {"logprobs": [1, 2]}},
        {"choice": {"logprobs": {"content": [{"token": "a", "logprob": None}]}}},
        {"choice": {"logprobs": {"content": [{"token": "a", "logprob": float("nan")}]}}},
        {"choice": {"logprobs": {"content": [{"token": "a", "logprob": float("-inf")}]}}},
        {"choice": {"logprobs": {"content": [{"token": "a", "logprob": 10**400}]}}},
        {"choice": {"token_ids": [10**30], "index": "0"}},
        {"choice": {"token_ids": "abc"}, "prompt_token_ids": [1.5], "model": 7},
    ],
)
def test_what_was_not_asked_for_never_makes_an_answer_bad_and_what_cannot_be_is_left_out(odd: Any) -> None:
    answer = read(body(**odd))
    assert answer.text == "3 1 2"
    assert (answer.usage, answer.logprobs, answer.token_ids, answer.prompt_token_ids) == (Usage(), None, None, None)
    assert Completion.model_validate_json(answer.model_dump_json()) == answer


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from("type text thinking content logprob code message error".split()), inner)
    ),
    max_leaves=8,
)
FIELDS = "message finish_reason logprobs token_ids error delta".split()
ANSWERS = st.fixed_dictionaries(
    {"choices": JSON | st.lists(st.dictionaries(st.sampled_from(FIELDS), JSON), max_size=2)},
    optional={name: JSON for name in ("usage", "model", "error", "prompt_token_ids")},
)


@settings(max_examples=300, deadline=None)
@given(ANSWERS | JSON, st.booleans())
def test_whatever_json_comes_is_an_answer_that_can_be_recorded_or_a_plain_error(value: Any, streamed: bool) -> None:
    raw = json.dumps(value).encode()
    try:
        answer = read(b"data: " + raw + b"\n\ndata: [DONE]" if streamed else raw)
    except (EndpointError, Refused):
        return
    assert Completion.model_validate_json(answer.model_dump_json()) == answer


def test_an_answer_is_as_long_as_its_tokens_allow_and_is_marked_where_it_is_cut() -> None:
    long = read(body("x" * 10_000, message={"reasoning": "y" * 10_000}), max_tokens=10)
    assert (len(long.text), len(long.reasoning or ""), long.finish_reason) == (4256, 4256, "length")
    assert not read(body("x" * 10_000), max_tokens=1000).cut_off
    assert len(read(body("x" * 2_000_000)).text) == 1_000_000


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ({"error": {"message": "slow down", "code": 429}}, 429),
        ({"error": {"message": "broke", "code": "503"}, "choices": []}, 503),
        ({"error": {"message": "Rate limit exceeded", "type": "rate_limit_error"}}, 429),
        ({"error": {"message": "upstream failed"}}, 502),
        ({"choices": [{"error": {"code": 502}, "finish_reason": "error", "message": {"content": ""}}]}, 502),
        ({"choices": [{"finish_reason": "error", "message": {"content": ""}}]}, 502),
        ({"choices": [{"error": {"code": 401, "message": "no"}}]}, 401),
    ],
)
def test_an_error_inside_a_good_status_has_its_own(told: Any, status: int) -> None:
    with pytest.raises(Refused) as caught:
        read(json.dumps(told).encode())
    assert caught.value.status == status


def test_a_page_that_is_no_api_asks_about_its_path() -> None:
    with pytest.raises(EndpointError, match="does base_url lack its /v1"):
        read(b'{"error": "Unexpected endpoint or method. (POST /chat/completions)"}')


def events(*parts: Any, done: bool = True) -> bytes:
    lines = [f"data: {json.dumps(part)}\r\n\r\n" for part in parts]
    return (": ping\n\n" + "".join(lines) + ("data: [DONE]\n\n" if done else "")).encode()


def piece(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"model": "fake", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def test_a_streamed_answer_is_joined() -> None:
    used = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
    parts = [piece(role="assistant"), piece(reasoning_content="Hm"), piece(reasoning_content="."), piece(content="3 ")]
    logprobs = {"content": [{"logprob": -0.5}]}
    last = {"choices": [{"index": 0, "delta": {"content": "1"}, "finish_reason": "stop", "logprobs": logprobs}]}
    answer = read(events(*parts, last, used), "text/event-stream; charset=utf-8")
    assert (answer.text, answer.reasoning, answer.finish_reason, answer.model) == ("3 1", "Hm.", "stop", "fake")
    assert (answer.usage.prompt_tokens, answer.logprobs) == (7, (-0.5,))


def test_a_stream_that_breaks_off_or_tells_an_error_is_no_answer() -> None:
    with pytest.raises(EndpointError, match="ended before the answer did"):
        read(events(piece(content="3 "), done=False), "text/event-stream")
    with pytest.raises(Refused) as caught:
        read(events(piece(content="3 "), {"error": {"code": 503, "message": "gone"}}), "text/event-stream")
    assert caught.value.status == 503


KEY = "sk-very-secret-0123456789"


@pytest.mark.parametrize("padding", range(150, 230, 7))
def test_secrets_are_hidden_before_a_text_is_cut(padding: int) -> None:
    secrets = Secrets([KEY])
    for shown in (KEY, base64.b64encode(f"Bearer {KEY}".encode()).decode()):
        with pytest.raises(EndpointError) as caught:
            read(f"{'p' * padding} {shown}".encode(), secrets=secrets)
        assert "sk-" not in str(caught.value) and shown[:6] not in str(caught.value)
    assert KEY not in read(body(f"You sent {KEY}.", message={"reasoning": KEY}), secrets=secrets).model_dump_json()


def test_a_short_key_is_a_word_in_an_answer_and_a_secret_in_an_error() -> None:
    secrets = Secrets(["none"])
    assert secrets.hide_in_answer("And Then There Were none") == "And Then There Were none"
    assert secrets.hide("Bearer none") == "Bearer ***"


def test_names_of_models_cannot_write_to_the_terminal() -> None:
    listed = json.dumps({"data": [{"id": "\x1b]0;owned\x07" + "z" * 500}]}).encode()
    (name,) = read_models(listed, NONE)
    assert name.isprintable() and len(name) <= 200
    assert read(body(model="\x1b[2Jx")).model.isprintable()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"error": {"message": "no"}}', "no"),
        (b'{"error": "no"}', "no"),
        (b'{"detail": "no"}', "no"),
        (b'{"message": "no", "code": 4}', "no"),
        (b"<h1>no</h1>", "<h1>no</h1>"),
        (b"[]", "[]"),
    ],
)
def test_the_reason_of_an_error_is_found(raw: bytes, said: str) -> None:
    assert read_refusal(400, raw, {}).said == said


ASKED: dict[str, Any] = {
    "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
    "temperature": 0.0,
    "top_p": 1.0,
    "max_tokens": 9,
    "seed": 1,
    "return_token_ids": True,
    "response_format": {"type": "json_schema", "json_schema": {}},
}
OBJECT = "json_object for json_schema"


@pytest.mark.parametrize(
    ("said", "change"),
    [
        (
            "Unsupported parameter: 'max_tokens' is not supported with this model.",
            "max_completion_tokens for max_tokens",
        ),
        ("Unsupported value: 'temperature' does not support 0.0. Only the default (1) is supported.", "no temperature"),
        ("`temperature` and `top_p` cannot both be specified for this model.", "no top_p"),
        ("seed: Extra inputs are not permitted", "no seed"),
        ("Unrecognized request argument supplied: return_token_ids", "no return_token_ids"),
        ("System role not supported", "system message in the user message"),
        ("Conversation roles must alternate user/assistant/user/...", "system message in the user message"),
        ("Invalid value for 'response_format': json_schema is unavailable", OBJECT),
        ("This model only supports streaming responses", "streamed"),
        ("stream must be true", "streamed"),
        ("This model's maximum context length is 2048 tokens; max_tokens is not supported above 9", None),
        ("'max_tokens' or 'max_completion_tokens' is too large: 9000", None),
        ("temperature must be between 0 and 2", None),
        ("upstream failed", None),
        ("stream closed", None),
    ],
)
def test_a_refusal_that_names_a_part_of_the_request_calls_for_its_change(said: str, change: str | None) -> None:
    assert next_change(ASKED, said) == change


def test_each_change_changes_a_request_once() -> None:
    for name in CHANGES:
        asked = changed(ASKED, ["streamed"]) if name == "no stream_options" else ASKED
        once = changed(asked, [name])
        assert once != asked and changed(once, [name]) == once
    assert changed(ASKED, ["system message in the user message"])["messages"] == [
        {"role": "user", "content": "Be kind.\n\nHi"}
    ]
    assert changed(ASKED, ["max_completion_tokens for max_tokens"])["max_completion_tokens"] == 9
    assert changed(ASKED, [OBJECT])["response_format"] == {"type": "json_object"}
    assert next_change(changed(ASKED, [OBJECT]), "json_object is not supported") == "no response_format"


def test_a_certificate_that_is_not_trusted_is_a_fault_of_the_connection_and_not_of_the_request() -> None:
    refused = ssl.SSLCertVerificationError(1, "certificate verify failed: self-signed certificate")
    key = SimpleNamespace(host="127.0.0.1", port=443, ssl=True, is_ssl=True)
    server = SimpleNamespace(where="https://127.0.0.1/v1", route="", key=None, secrets=Secrets([]), endpoint=None)
    error = aiohttp.ClientConnectorCertificateError(key, refused)  # type: ignore[arg-type]
    found = understand(error, server)  # type: ignore[arg-type]
    assert found.error.kind == "connection" and "TLS failed" in str(found.error)
