"""Rewards: the paper's levels from real answers, memory updates by what follows, guards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from starec_agents.llm import Completion, Message, ScriptedChat
from starec_agents.tasks import labels
from starec_env.errors import InvalidOption, TrainingError
from starec_env.types import Item, User
from starec_training.dataset import Case, Shown, Snapshot
from starec_training.rewards import (
    Ending,
    knowing,
    memory_reward,
    ndcg_reward,
    ranking_reward,
    reward_functions,
    served,
)

FILMS = tuple(Item(n, f"Film {n:02d} (1990)", {"genres": "Drama"}) for n in range(1, 23))


def ranking(n: int, target: int = 0, answer_format: str = "paper") -> str:
    shown = Shown(candidates=FILMS[:n], target=target)
    return Snapshot(task="rank", user_id=7, turn=0, shown=shown, answer_format=answer_format).model_dump_json()


def update(*targets: int, answer_format: str = "compact") -> str:
    follow_ups = tuple(
        Case(candidates=FILMS[:20], target=target, user=User(7), history=((FILMS[20], 4.0),), domain="movie")
        for target in targets
    )
    shown = Shown(candidates=FILMS[:20], target=3)
    return Snapshot(
        task="reflect", user_id=7, turn=0, shown=shown, answer_format=answer_format, follow_ups=follow_ups
    ).model_dump_json()


def said(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def listing(place: int, n: int = 20) -> str:
    """A paper-format answer that puts Film 01 at a place, 1-based; beyond n it is left out."""
    others = [film.title for film in FILMS[1:n]]
    titles = [*others[: place - 1], FILMS[0].title, *others[place - 1 :]] if place <= n else others
    body = "\n".join(f"{rank}. {title} - fits" for rank, title in enumerate(titles, 1))
    return f"<think>\nThe user likes drama.\n</think>\n{body}"


@pytest.mark.parametrize(
    ("place", "worth"),
    [(1, 1.0), (2, 0.5), (5, 0.5), (6, 0.0), (10, 0.0), (11, -0.5), (20, -0.5), (99, -1.0)],
)
def test_a_ranking_earns_what_the_paper_gives_its_positives_place(place: int, worth: float) -> None:
    # 4.2.2: +1.0 at 1, +0.5 at 2-5, 0.0 at 6-10, -0.5 at 11-20, -1.0 where it is not within the top 20.
    assert ranking_reward()(completions=[said(listing(place))], snapshot=[ranking(20)]) == [worth]


def test_a_place_beyond_twenty_earns_what_a_missing_one_does() -> None:
    assert ranking_reward()(completions=[said(listing(22, 22))], snapshot=[ranking(22)]) == [-1.0]


def test_an_unfinished_thought_and_a_made_up_list_earn_nothing_by_guess() -> None:
    texts = ["<think>\n1. Film 01 (1990) - first", "1. Some other film - the best", ""]
    assert ranking_reward()(completions=list(map(said, texts)), snapshot=[ranking(20)] * 3) == [-1.0, -1.0, -1.0]


ENDED, CUT = [5, 6, 2], [5, 6, 7]


@pytest.mark.parametrize(
    ("text", "ids", "ending", "earned"),
    [
        (listing(1), ENDED, Ending(frozenset({2})), 1.0),
        (listing(1), CUT, Ending(frozenset({2})), -1.0),
        (listing(1), [], Ending(frozenset({2})), -1.0),
        (listing(1), CUT, None, 1.0),
        (listing(1), None, Ending(frozenset({2})), 1.0),
        (listing(1).removeprefix("<think>\n"), ENDED, Ending(frozenset({2}), opened=True), 1.0),
        (listing(1).partition("</think>\n")[2], ENDED, Ending(frozenset({2}), opened=True), -1.0),
        (listing(1).partition("</think>\n")[2], ENDED, Ending(frozenset({2})), 1.0),
        (listing(1).partition("</think>\n")[2] + "\nBut which of these would the user", None, None, -1.0),
        (listing(1).partition("</think>\n")[0], None, None, -1.0),
    ],
)
def test_a_completion_that_was_cut_off_earns_what_a_missing_positive_does(
    text: str, ids: list[int] | None, ending: Ending | None, earned: float
) -> None:
    passed: dict[str, Any] = {} if ids is None else {"completion_ids": [ids]}
    ranked = knowing(ending or Ending(), ranking_reward())
    assert ranked(completions=[said(text)], snapshot=[ranking(20)], **passed) == [earned]


def test_a_profile_that_was_cut_off_and_a_ranking_that_was_earn_nothing_by_it() -> None:
    text = said("Updated User description: likes Film 04.")
    ending = Ending(frozenset({2}))
    updated = knowing(ending, memory_reward(by_profile))
    assert updated(completions=[text] * 2, snapshot=[update(3)] * 2, completion_ids=[ENDED, CUT]) == [1.0, -1.0]


async def test_a_servers_answer_that_was_cut_off_ranks_no_follow_up() -> None:
    def reply(messages: Sequence[Message], sampling: Any) -> Completion:
        return Completion(text="A B", reasoning="r", finish_reason=messages[0]["content"])

    server = ScriptedChat(reply)
    rank = served(server)
    prompts = [[{"role": "user", "content": reason}] for reason in ("stop", "length")]
    assert list(rank(prompts)) == ["<think>\nr\n</think>\nA B", ""]


def test_ndcg_as_the_reward_has_no_plateaus() -> None:
    ranked = ranking_reward(ndcg_reward)
    values = ranked(completions=[said(listing(place)) for place in (1, 2, 3, 20, 99)], snapshot=[ranking(20)] * 5)
    assert values == pytest.approx([1.0, 0.6309, 0.5, 0.2277, 0.0], abs=1e-4)


def test_each_function_leaves_the_other_task_alone() -> None:
    batch: dict[str, Any] = {
        "completions": [said("A B"), said("Updated User description: likes drama.")],
        "snapshot": [ranking(2, answer_format="compact"), update(0)],
    }
    assert ranking_reward()(**batch) == [1.0, None]
    assert memory_reward(lambda prompts: [" ".join(labels(20))] * len(prompts))(**batch) == [None, 1.0]


def by_profile(prompts: Sequence[Sequence[Message]]) -> list[str]:
    """A policy that ranks Film 04 first if the description speaks of it, and last otherwise."""
    first = ["D", *(label for label in labels(20) if label != "D")]
    return [" ".join(first if "Film 04" in prompt[-1]["content"].split("Candidate")[0] else first[1:] + ["D"])
            for prompt in prompts]  # fmt: skip


def test_a_memory_update_earns_what_the_ranking_after_it_earns() -> None:
    texts = ["Updated User description: likes Film 04.", "Updated User description: likes nothing.", "no description"]
    paid = memory_reward(by_profile)(completions=list(map(said, texts)), snapshot=[update(3)] * 3)
    assert paid == [1.0, -0.5, -1.0]


def test_several_follow_ups_are_averaged() -> None:
    texts = ["Updated User description: likes Film 04."]
    assert memory_reward(by_profile)(completions=[said(texts[0])], snapshot=[update(3, 19)]) == [(1.0 - 0.5) / 2]


def test_metrics_go_where_trl_wants_them() -> None:
    logged: dict[str, float] = {}
    ranking_reward()(
        completions=[said(listing(1)), said("1. Film 01 (1990)")], snapshot=[ranking(20)] * 2,
        log_metric=logged.__setitem__,
    )  # fmt: skip
    memory_reward(by_profile)(
        completions=[said("Updated User description: likes Film 04."), said("")], snapshot=[update(3)] * 2,
        log_metric=logged.__setitem__,
    )  # fmt: skip
    assert logged == {
        "rank/ndcg@10": 1.0, "rank/valid": 0.5, "memory/ndcg@10": 1.0, "memory/usable": 0.5, "memory/characters": 14.0,
    }  # fmt: skip


def test_a_reward_that_is_no_number_stops_training() -> None:
    with pytest.raises(TrainingError, match="user 7, turn 0 .* is nan"):
        ranking_reward(lambda rank: float("nan"))(completions=[said("x")], snapshot=[ranking(20)])


def test_a_policy_that_answers_too_little_stops_training() -> None:
    with pytest.raises(TrainingError, match="gave 0 answers to 1 prompts"):
        memory_reward(lambda prompts: [])(
            completions=[said("Updated User description: likes drama.")], snapshot=[update(3)]
        )


async def test_a_server_ranks_follow_ups_even_inside_a_running_loop() -> None:
    server = ScriptedChat(lambda messages, sampling: f"{sampling['temperature']} {messages[0]['content']}")
    rank = served(server, temperature=0.0)
    prompts = [[{"role": "user", "content": str(n)}] for n in range(50)]
    assert list(rank(prompts)) == [f"0.0 {n}" for n in range(50)]
    assert list(rank(prompts[:1])) == ["0.0 0"]


def test_equal_follow_ups_are_ranked_once() -> None:
    asked: list[int] = []

    def rank(prompts: Sequence[Sequence[Message]]) -> list[str]:
        asked.append(len(prompts))
        return by_profile(prompts)

    texts = ["Updated User description: likes Film 04."] * 3 + ["Updated User description: likes nothing."]
    paid = memory_reward(rank)(completions=list(map(said, texts)), snapshot=[update(3)] * 4)
    assert (paid, asked) == ([1.0, 1.0, 1.0, -0.5], [2])


def test_a_reward_function_whose_module_fails_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "failing_reward.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    for name in ("failing_reward:reward", "failing_reward.reward"):
        with pytest.raises(InvalidOption, match="importing failing_reward fails with ZeroDivisionError"):
            reward_functions([name])
