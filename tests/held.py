"""Small models that can't write an answer format of their own are held to it by the server, with a grammar (GBNF).

What a real server then sends is a valid answer as a larger model would write it: thought, list of titles with reasons,
labels, description. The order and the words are the model's.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

from starec_agents.llm import Completion, Message, OpenAIChat
from starec_agents.llm.base import Endpoint
from starec_agents.tasks import labels

_LISTED = re.compile(r"^Candidate [^\n]*:\n(.+?)\n\n", re.MULTILINE | re.DOTALL)
_THOUGHT = r'"<think>\n" [A-Z] [a-z ]{8,20} ".\n</think>\n" '
_RULES = "words ::= [A-Z] [a-z] [a-z ]{6,20}\n"


def ranking_grammar(entries: Sequence[Sequence[str]], separator: str, before: str = "") -> str:
    """A grammar of any order of the entries, each once; entries[i][place] is entry i as it is written there."""
    n = len(entries)
    rules = [f"root ::= {before}left{2**n - 1}", _RULES]
    for left in range(1, 2**n):
        rest = [i for i in range(n) if left >> i & 1]
        place = n - len(rest)
        after = {i: f'"{separator}" left{left - 2**i}' if len(rest) > 1 else "" for i in rest}
        rules.append(f"left{left} ::= " + " | ".join(f"{entries[i][place]} {after[i]}" for i in rest))
    return "\n".join(rules)


def grammar_of(messages: Sequence[Message], answer_format: Literal["paper", "labels"]) -> str:
    """The grammar of valid answers to a prompt: a ranking, or a new profile."""
    paper = answer_format == "paper"
    listed = _LISTED.search(messages[-1]["content"])
    if not listed:
        profile = '"<description>" words "</description>"' if paper else '"Updated User description: " words'
        return f"root ::= {_THOUGHT if paper else ''}{profile}\n{_RULES}"
    lines = listed[1].split("\n")
    if not paper:
        return ranking_grammar([[f'"{label}"'] * len(lines) for label in labels(len(lines))], " ")
    titles = [line.split(". ", 1)[1].split(" | ")[0].replace('"', r"\"") for line in lines]
    entries = [[f'"{place}. {title} - " words' for place in range(1, len(lines) + 1)] for title in titles]
    return ranking_grammar(entries, r"\n", _THOUGHT)


class Held:
    """A chat model on a real server that is held to an answer format by a grammar of each prompt's own.

    Args:
        endpoint: The server.
        answer_format: What is to be written.
        engine: How the server is told: "vllm" or "llamacpp".
    """

    def __init__(self, endpoint: Endpoint, answer_format: Literal["paper", "labels"], engine: str) -> None:
        self.endpoint, self.answer_format, self.engine = endpoint, answer_format, engine
        self.model = endpoint.model

    async def complete(self, messages: Sequence[Message], **sampling: Any) -> Completion:
        """Ask with the grammar; see ChatModel."""
        held = {"grammar": grammar_of(messages, self.answer_format)}
        extra = self.endpoint.extra_body | ({"structured_outputs": held} if self.engine == "vllm" else held)
        async with OpenAIChat(self.endpoint.model_copy(update={"extra_body": extra})) as llm:
            return await llm.complete(messages, **sampling)
