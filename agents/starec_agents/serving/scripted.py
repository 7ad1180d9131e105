"""A server that asks no model: answers by a script, in the form in which vLLM serves DeepSeek-R1's distillates.

Their chat template opens the thought, so an answer begins within it and holds `</think>` alone. Some answers are
flawed, as a model's are: of a hundred prompts about six are answered with items left out and four are cut off. Who
answers how is decided by the prompt and the request's seed, so that asking again may help.

    python -m starec_agents.serving.scripted HOST PORT NAME
"""

from __future__ import annotations

import sys
from typing import Any
from zlib import crc32

from aiohttp import web

from starec_agents.llm.scripted import scripted_user

THOUGHT = "Their profile and latest titles point to a taste; I compare the genres of the list with it, one by one.\n"
"""What precedes the scripted thought, so that it is as long as a rationale must be."""
MISSING, CUT = 6, 4
"""Of a hundred answers to rank: those that leave out half of the items, and those that are cut off in the thought."""


def answer(request: dict[str, Any]) -> tuple[str, str]:
    """The text and the finish reason of a chat completion's request."""
    messages, seed = request["messages"], int(request.get("seed") or 0)
    draw = crc32(f"{seed}\n{messages[-1]['content']}".encode()) % 100
    text = scripted_user(seed)(messages, {}).removeprefix("<think>\n")
    thought, closed, said = text.partition("</think>")
    if not closed:
        thought, said = "", text
    thought = THOUGHT + thought
    if draw < CUT:
        return thought, "length"
    lines = said.replace("Has moods", "Likes some moods").strip().split("\n")
    if draw < CUT + MISSING:
        lines = lines[: (len(lines) + 1) // 2]
    return f"{thought}</think>\n\n" + "\n".join(lines), "stop"


async def _complete(request: web.Request) -> web.Response:
    asked = await request.json()
    text, reason = answer(asked)
    words = sum(len(message["content"].split()) for message in asked["messages"])
    message = {"role": "assistant", "content": text}
    body = {
        "id": "scripted",
        "object": "chat.completion",
        "created": 0,
        "model": asked["model"],
        "choices": [{"index": 0, "finish_reason": reason, "message": message}],
        "usage": {"prompt_tokens": words, "completion_tokens": len(text.split())},
    }
    return web.json_response(body)


def main(host: str, port: str, name: str) -> None:
    """Serve until the process is ended."""

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"}]})

    app = web.Application(client_max_size=64 << 20)
    app.add_routes([web.post("/v1/chat/completions", _complete), web.get("/v1/models", models)])
    web.run_app(app, host=host, port=int(port), print=None, access_log=None)


if __name__ == "__main__":
    main(*sys.argv[1:])
