"""The share of prompt tokens that vLLM takes from its prefix cache, with our order of the prompt and with another.

    python eval/benchmarks/prefix_cache.py [--users 4] [--turns 20] [--block-size 32]

A population of users who have that many turns runs against a real vLLM (`make test-vllm` installs its CPU build): first
as it is, then with the parts of every user message in reverse, so that what is new at each turn comes first and what
only grows comes last; the system message stays in front. Shown are the counters of `/metrics` over each run: queries
and hits are prompt tokens looked up and found. Only whole blocks are found.
"""

import argparse
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from starec_agents import OpenAIChat, UserAgent, run_population
from starec_agents.llm import Completion, Message
from starec_agents.llm.base import Endpoint
from starec_agents.serving.serve import local_server
from starec_env import load_dataset, prepare
from starec_env.replay.stream import Stream

PYTHON = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"


class TurnedRound:
    """Sends the parts of each user message in reverse order."""

    def __init__(self, llm: OpenAIChat) -> None:
        self.llm, self.model = llm, "turned round"

    async def complete(self, messages: Sequence[Message], **sampling: Any) -> Completion:
        """Ask with the parts turned round; see ChatModel."""
        system, user = messages
        turned = "\n\n".join(reversed(user["content"].split("\n\n")))
        return await self.llm.complete([system, {"role": "user", "content": turned}], **sampling)

    async def aclose(self) -> None:
        """Close the model that is asked."""
        await self.llm.aclose()


def counters(endpoint: Endpoint) -> tuple[float, float]:
    with urlopen(endpoint.base_url.removesuffix("/v1") + "/metrics") as answer:
        text = answer.read().decode()
    queries, hits = (
        sum(map(float, re.findall(rf"^vllm:prefix_cache_{name}_total{{.*}} (\S+)$", text, re.MULTILINE)))
        for name in ("queries", "hits")
    )
    return queries, hits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=4)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--block-size", default="32", help="in tokens; vLLM's default is 16 on GPUs and 128 on CPUs")
    parser.add_argument("--vllm-python", default=str(PYTHON))
    args = parser.parse_args()
    dataset = prepare(load_dataset("ml-latest-small"))
    stream = Stream(dataset, turns=args.turns)
    whole = stream.users[(stream.end - stream.begin)[stream.users] == args.turns][: args.users]
    users = [dataset.user(int(user)).id for user in whole]
    extra = ["--block-size", args.block_size]
    with local_server(args.model, engine="vllm", python=args.vllm_python, context=8192, extra=extra) as endpoint:
        for name in ("our order", "turned round"):
            llm = OpenAIChat(endpoint)
            agent = UserAgent.factory(
                llm if name == "our order" else TurnedRound(llm), answer_format="labels", max_tokens=args.max_tokens
            )
            before = counters(endpoint)
            with tempfile.TemporaryDirectory() as out:
                metrics = run_population(dataset, agent, users=users, turns=args.turns, out=out, progress=False).metrics
            queries, hits = (now - then for now, then in zip(counters(endpoint), before, strict=True))
            print(
                f"{name}: {metrics['steps']} turns, {queries:,.0f} prompt tokens, {hits / queries:.1%} of them cached, "
                f"{metrics['wall_s']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
