"""What an answer earns (4.2.2): a ranking by its target's place, a memory update by the ranking that follows it.

Each function has TRL's signature for rewards and gives None for rows of the other task, which TRL leaves out of that
row's reward. Advantages are normalised within each prompt's group, so the two tasks may share a batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import wraps
from math import isfinite
from statistics import fmean
from typing import Any

from starec_agents.llm import ChatModel, Completion, Message
from starec_agents.tasks import profile_format, ranking_format, split_thought
from starec_env.errors import InvalidOption, TrainingError, check_choice
from starec_env.metrics import ndcg
from starec_env.named import load_function
from starec_env.replay.rewards import position_reward
from starec_env.replay.stream import Reward
from starec_training.dataset import Snapshot, read_snapshot
from starec_training.rendering import Template

RankPrompts = Callable[[Sequence[Sequence[Message]]], Sequence[str]]
"""Answers ranking prompts by the current policy: prompts in, whole answers out, in order; "" for one cut off."""

Conversation = Sequence[Message]

RewardFunction = Callable[..., list[float | None]]
"""TRL's reward function for conversations; None stands for "not my task"."""


def ndcg_reward(rank: int | None) -> float:
    """NDCG itself as the reward, 0 to 1: without the plateaus of the position reward, so fewer groups tie."""
    return float(ndcg(rank, k=10**9))


REWARDS: dict[str, Reward] = {"position": position_reward, "ndcg": ndcg_reward}
"""Rewards of a rank by name; the paper's is "position"."""

NO_REWARD = "none"
"""In place of such a name: own functions alone pay."""


@dataclass(frozen=True)
class Ending:
    """How a completion that has ended is told from one that was cut off, which is no answer and earns nothing by it.

    Without either, a completion counts as cut off only if it leaves a thought open, or if its format asks for a
    thought, it closes none, and its last line ranks nothing.
    """

    ends: frozenset[int] = frozenset()
    """Token ids that end a completion; none: they aren't known, or TRL passes no token ids."""
    opened: bool = False
    """Whether the chat template opens a thought, so that an answer without a closing tag is all thought."""

    @classmethod
    def of(cls, tokenizer: Any, ends: Iterable[int]) -> Ending:
        """How completions end by a tokenizer's chat template and the ending tokens."""
        return cls(frozenset(ends), Template.of(tokenizer).opened)

    def cut_off(self, text: str, ids: Sequence[int] | None, state: Snapshot) -> bool:
        """Whether a completion isn't whole."""
        if self.ends and ids is not None and (not len(ids) or int(ids[-1]) not in self.ends):
            return True
        answer, unfinished = split_thought(text)
        if unfinished or len(answer) < len(text):
            return unfinished
        if self.opened:
            return True
        thinks = state.task == "rank" and ranking_format(state.answer_format).thinks
        last = text.rstrip().splitlines()[-1:]
        return thinks and bool(last) and not state.shown.parse(last[0], state.answer_format).order


_UNKNOWN = Ending()


def ranking_reward(reward: Reward = position_reward) -> RewardFunction:
    """The reward of rankings: what the place of the target earns; a target that isn't ranked has no place.

    Args:
        reward: Of the target's 1-based rank, None if it isn't ranked or the completion was cut off.
    """

    def ranking(
        *, completions: Sequence[Conversation], snapshot: Sequence[str], ending: Ending = _UNKNOWN, **trl: Any
    ) -> list[float | None]:
        given: list[float | None] = [None] * len(completions)
        ranks, valid = [], []
        for place, (completion, text) in enumerate(zip(completions, snapshot, strict=True)):
            if (state := read_snapshot(text)).task == "rank":
                said = completion[-1]["content"]
                cut_off = ending.cut_off(said, _ids(trl, place), state)
                answer = state.shown.parse(said, state.answer_format, cut_off)
                rank = answer.rank_of(state.shown.target)
                given[place] = _finite(reward(rank), state)
                ranks.append(rank)
                valid.append(float(answer.valid))
        _log(trl, {"rank/ndcg@10": ndcg(ranks, 10).tolist(), "rank/valid": valid})
        return given

    return ranking


def memory_reward(rank: RankPrompts, reward: Reward = position_reward) -> RewardFunction:
    """The reward of memory updates: what the follow-up rankings with the new profile earn, averaged (4.2.2).

    All updates of a group are followed by the same rankings, and differ in the profile alone; equal prompts are ranked
    once. An answer that holds no profile, as one that was cut off, earns what an unranked target does; the paper
    doesn't say.

    Args:
        rank: The current policy: `starec_training.generation.ranker`, or `served` with the server that holds it.
        reward: Of the follow-up's rank.
    """

    def memory(
        *, completions: Sequence[Conversation], snapshot: Sequence[str], ending: Ending = _UNKNOWN, **trl: Any
    ) -> list[float | None]:
        given: list[float | None] = [None] * len(completions)
        asked: list[tuple[int, Snapshot, int]] = []
        prompts: list[list[Message]] = []
        usable, lengths = [], []
        for place, (completion, text) in enumerate(zip(completions, snapshot, strict=True)):
            if (state := read_snapshot(text)).task != "reflect":
                continue
            said = completion[-1]["content"]
            cut_off = ending.cut_off(said, _ids(trl, place), state)
            profile = profile_format(state.answer_format).parse(said, cut_off).text
            usable.append(float(profile is not None))
            if profile is None:
                given[place] = _finite(reward(None), state)
                continue
            lengths.append(float(len(profile)))
            for number, prompt in enumerate(state.follow_up_prompts(profile)):
                asked.append((place, state, number))
                prompts.append(prompt)
        ranks = _follow_up_ranks(rank, asked, prompts)
        for place in {place for place, _, _ in asked}:
            mine = [number for number, (owner, _, _) in enumerate(asked) if owner == place]
            given[place] = fmean(_finite(reward(ranks[number]), asked[number][1]) for number in mine)
        _log(trl, {"memory/ndcg@10": ndcg(ranks, 10).tolist(), "memory/usable": usable, "memory/characters": lengths})
        return given

    return memory


def knowing(ending: Ending, function: RewardFunction) -> RewardFunction:
    """One of the two functions above with how completions end, which TRL doesn't say."""

    @wraps(function)
    def called(**given: Any) -> list[float | None]:
        return function(ending=ending, **given)

    return called


def reward_functions(named: Iterable[str | RewardFunction]) -> list[RewardFunction]:
    """Functions with TRL's signature for rewards, by MODULE:FUNCTION where they are named.

    They get prompts, completions, completion_ids, and the rows' columns: `task`, and `snapshot`, the JSON text that
    `read_snapshot` reads.

    Raises:
        InvalidOption: There is no such function.
    """
    return [_imported(each) if isinstance(each, str) else each for each in named]


def check_rewards(reward: str, functions: Sequence[object], weights: Sequence[float] | None) -> None:
    """Raise InvalidOption or UnknownName unless all is there to pay both tasks."""
    check_choice("reward", reward, [*REWARDS, NO_REWARD])
    number = len(functions) + (0 if reward == NO_REWARD else 2)
    if not number:
        raise InvalidOption(f"reward={NO_REWARD!r} leaves nothing to train on: give reward_funcs")
    if weights is not None and len(weights) != number:
        ours = "" if reward == NO_REWARD else "ranking, memory, "
        raise InvalidOption(
            f"reward_weights has {len(weights)} weights for {number} functions: wanted one each, in the order "
            f"{ours}{', '.join(map(name_of, functions))}".rstrip(", ")
        )


def name_of(function: object) -> str:
    """What tells a reward function from others: MODULE:FUNCTION where it can be had."""
    return function if isinstance(function, str) else f"{function.__module__}:{getattr(function, '__name__', '?')}"


def _imported(name: str) -> RewardFunction:
    module, _, function = name.rpartition("." if ":" not in name else ":")
    found: RewardFunction = load_function(f"{module}:{function}", "reward_funcs")
    return found


def _follow_up_ranks(
    rank: RankPrompts, asked: Sequence[tuple[int, Snapshot, int]], prompts: Sequence[Conversation]
) -> list[int | None]:
    if not prompts:
        return []
    different = {repr(prompt): prompt for prompt in prompts}
    texts = rank(list(different.values()))
    if len(texts) != len(different):
        raise TrainingError(f"the follow-up policy gave {len(texts)} answers to {len(different)} prompts")
    answers = dict(zip(different, texts, strict=True))
    return [
        state.follow_ups[number].rank(answers[repr(prompt)], state.answer_format)
        for (_, state, number), prompt in zip(asked, prompts, strict=True)
    ]


def _ids(trl: Mapping[str, Any], place: int) -> Sequence[int] | None:
    ids = trl.get("completion_ids")
    return None if ids is None else ids[place]


def _finite(value: float, state: Snapshot) -> float:
    if not isfinite(value):
        raise TrainingError(
            f"the reward of user {state.user_id!r}, turn {state.turn} ({state.task}) is {value}: a reward function "
            "must give a finite number for every rank, None included"
        )
    return value


def _log(trl: dict[str, Any], metrics: dict[str, list[float]]) -> None:
    # TRL passes log_metric; it averages over the logging step and over processes.
    if log := trl.get("log_metric"):
        for name, values in metrics.items():
            if values:
                log(name, fmean(values))


def whole(completion: Completion) -> str:
    """A model's whole answer, as `RankPrompts` gives it: "" if it was cut off."""
    return "" if completion.cut_off else completion.answer


def served(llm: ChatModel, **sampling: Any) -> RankPrompts:
    """Have a server that holds the current policy rank the follow-ups, all at once, through the ordinary client.

    In TRL's vLLM server mode that is the server that TRL generates on: its weights are synchronised before each
    generation, so the follow-ups are on-policy. It calls no collective, so no process waits for one without updates.

    Args:
        llm: The client, e.g. `OpenAIChat(Endpoint(base_url=..., model=...))`; its faults stop the training, which
            resumes from its last checkpoint.
        sampling: temperature, max_tokens and so on of the follow-ups.
    """
    # A client belongs to one event loop, and TRL calls rewards from where a loop may be running (a notebook).
    thread, runner = ThreadPoolExecutor(max_workers=1), asyncio.Runner()

    async def ask(prompts: Sequence[Conversation]) -> list[str]:
        answers = await asyncio.gather(*(llm.complete(prompt, **sampling) for prompt in prompts))
        return [whole(answer) for answer in answers]

    return lambda prompts: thread.submit(lambda: runner.run(ask(prompts))).result()
