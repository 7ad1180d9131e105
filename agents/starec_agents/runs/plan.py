"""What a run would ask, before it asks: users, turns, calls and tokens; with a probe also hours and cost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from starec_agents._executor import unheard
from starec_agents.llm import ChatModel, ScriptedChat, scripted_user
from starec_agents.llm.base import Call
from starec_agents.runs.records import Turns
from starec_agents.runs.rollout import Agent
from starec_env.data.options import refuse
from starec_env.errors import RunError, StarecError
from starec_env.replay.stream import judge

Factory = Callable[[ChatModel], Callable[[], Agent]]
"""Makes what makes agents, of a chat model."""

_SAMPLED_USERS = 20
_CHARACTERS = 4.0  # a token

_PRICE = click.FloatRange(min=0)
_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--dry-run", {"is_flag": True, "help": "Check all, print calls and tokens, and stop before the first user."}),
    ("--probe", {"type": click.IntRange(min=1), "metavar": "N", "help": "With --dry-run: ask N rankings, for hours."}),
    ("--price-in", {"type": _PRICE, "help": "With --probe: of a million prompt tokens, for the cost."}),
    ("--price-out", {"type": _PRICE, "help": "With --probe: of a million tokens of answers."}),
)
PLAN_OPTIONS = tuple(flag.removeprefix("--").replace("-", "_") for flag, _ in _OPTIONS)
"""Their names as a command's parameters."""


def plan_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a click command --dry-run and what goes with it."""
    for flag, settings in reversed(_OPTIONS):
        command = click.option(flag, **settings)(command)
    return command


def refuse_without_plan(options: Mapping[str, Any]) -> None:
    """Raise InvalidOption where a probe or a price is given that nothing asks for."""
    if not options["dry_run"]:
        refuse(PLAN_OPTIONS[1:], "without --dry-run")
    elif not options["probe"]:
        refuse(PLAN_OPTIONS[2:], "without --probe")


def check_writable(out: Path) -> None:
    """Raise RunError if a folder can't be made or written; makes nothing."""
    there = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise RunError(f"{out} can't be written ({there} is no folder that this user may write): choose another")


@dataclass(frozen=True)
class Plan:
    """What some users' turns ask for; calls and characters are those of a sample of users, scaled to all turns."""

    users: int
    turns: int
    calls: float
    characters: float
    sampled: int
    """Turns that were played by script."""
    early: int
    """Of those, turns that ended early, since the agent could not read a scripted answer."""


async def plan_turns(factory: Factory, stream: Turns, users: Sequence[int], turns: int, learn_last: bool) -> Plan:
    """Play a sample of users by script, the agent's own prompts and all, and count what is asked.

    Args:
        factory: Of the agents.
        stream: The users' turns.
        users: Their 0-based indices.
        turns: All their turns.
        learn_last: Whether agents learn from their last turn.
    """
    answer, lengths = scripted_user(), []

    def reply(messages: Sequence[Any], sampling: Any) -> str:
        lengths.append(sum(len(message["content"]) for message in messages))
        return answer(messages, sampling)

    agent, sampled, early = factory(ScriptedChat(reply)), 0, 0
    for user in users[:: -(-len(users) // _SAMPLED_USERS)]:
        one, theirs = agent(), stream.turns(user)
        for turn in theirs:
            sampled += 1
            try:
                with unheard():
                    ranking = await one.arank(turn.query)
                    if learn_last or turn is not theirs[-1]:
                        await one.alearn(judge(turn, ranking)[0])
            except StarecError:
                raise
            except Exception:
                early += 1
    share = turns / sampled
    return Plan(len(users), turns, len(lengths) * share, sum(lengths) * share, sampled, early)


async def probe(agent: Callable[[], Agent], stream: Turns, users: Sequence[int], n: int, at_once: int) -> list[Call]:
    """Ask real rankings: the first turn of each of `n` users; returns the calls made."""
    limit = asyncio.Semaphore(at_once)

    async def one(user: int) -> list[Call]:
        made = agent()
        async with limit:
            await made.arank(stream.turns(user)[0].query)
        return made.calls

    return [call for calls in await asyncio.gather(*map(one, users[:n])) for call in calls]


def plan_text(name: str, plans: Sequence[Plan], calls: Sequence[Call], options: Mapping[str, Any]) -> str:
    """A plan in words, one line a fact.

    Args:
        name: What is planned.
        plans: Its parts, of the same users.
        calls: A probe's.
        options: The command's: concurrency, max_tokens, and the prices.
    """
    asked, turns = sum(plan.calls for plan in plans), sum(plan.turns for plan in plans)
    characters, users = sum(plan.characters for plan in plans), plans[0].users
    sampled, early = sum(plan.sampled for plan in plans), sum(plan.early for plan in plans)
    lines = [
        f"{name}: {users:,} users, {turns:,} turns, about {asked:,.0f} calls ({asked / turns:.2f} a turn)",
        f"prompt tokens: about {_rounded(characters / _CHARACTERS)}, an estimate (characters / 4 of the prompts of "
        f"{sampled:,} turns, answered by script); answers: at most {options['max_tokens']:,} each",
    ]
    if early:
        lines.append(f"{early:,} of those turns ended early: the agent can't read scripted answers, so expect more")
    return "\n".join([*lines, *_measured(calls, asked, characters, min(options["concurrency"], users), options)])


def _rounded(number: float) -> str:
    return f"{float(f'{number:.3g}'):,.0f}"


def _measured(
    calls: Sequence[Call], asked: float, characters: float, at_once: int, options: Mapping[str, Any]
) -> list[str]:
    if not calls:
        return []
    latency = sum(call.latency for call in calls) / len(calls)
    read, written = (sum(getattr(call.usage, f"{kind}_tokens") for call in calls) for kind in ("prompt", "completion"))
    shown = sum(len(message["content"]) for call in calls for message in call.messages)
    counted = "" if read and written else " (estimated: the server counts no tokens)"
    read, written = read or shown / _CHARACTERS, written or sum(len(call.completion) for call in calls) / _CHARACTERS
    tokens_in, tokens_out = characters * read / shown, asked * written / len(calls)
    hours = asked * latency / at_once / 3600
    lines = [
        f"probe: {len(calls)} ranking calls took {latency:.2f} s each, with {read / len(calls):,.0f} prompt tokens and "
        f"answers of {written / len(calls):,.0f}{counted}: about {hours:.2g} hours at {at_once} in "
        f"flight, {_rounded(tokens_in)} prompt tokens and {_rounded(tokens_out)} of answers, were all calls like these"
    ]
    if options["price_in"] is not None or options["price_out"] is not None:
        cost = (tokens_in * (options["price_in"] or 0) + tokens_out * (options["price_out"] or 0)) / 1e6
        lines.append(f"cost: about {cost:,.2f} at the prices given")
    return lines
