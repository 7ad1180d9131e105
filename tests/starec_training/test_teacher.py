"""Screening and "prompt error + rethink" (4.2.1), by the flaws that the paper names."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from starec_agents.llm import Completion, Message, ScriptedChat
from starec_env.errors import EndpointError, InvalidOption, TrainingError
from starec_env.types import Item, User
from starec_training.dataset import Case, Row, Rows, Shown, Snapshot
from starec_training.teacher import Screening, ateach, teach

FILMS = tuple(Item(n, f"Film {n:02d} (1990)") for n in range(1, 21))
THOUGHT = "<think>\nThe user took three dramas of late.\n</think>\n"


def listing(order: Sequence[int] = range(20)) -> str:
    return "\n".join(f"{place}. {FILMS[n].title} - fits" for place, n in enumerate(order, 1))


GOOD = THOUGHT + listing()
PROFILE = THOUGHT + "Updated User description: Likes drama, avoids horror."


def rank_row(completion: str, target: int = 0) -> Row:
    shown = Shown(candidates=FILMS, target=target)
    snapshot = Snapshot(task="rank", user_id=1, turn=2, shown=shown)
    return Row(prompt=({"role": "user", "content": "Rank."},), completion=completion, snapshot=snapshot)


def update_row(completion: str, target: int = 0) -> Row:
    case = Case(candidates=FILMS, target=target, user=User(1), history=((FILMS[5], 4.0),), domain="movie")
    shown = Shown(candidates=FILMS, target=3)
    snapshot = Snapshot(task="reflect", user_id=1, turn=2, shown=shown, follow_ups=(case,))
    return Row(prompt=({"role": "user", "content": "Reflect."},), completion=completion, snapshot=snapshot)


@pytest.mark.parametrize(
    ("row", "flaw"),
    [
        (rank_row(GOOD), None),
        (rank_row(GOOD, target=4), None),
        (rank_row(listing()), "no rationale"),
        (rank_row("<think>\n\n</think>\n" + listing()), "no rationale"),
        (rank_row("<think>\nThe user took three dramas" + listing()), "cut off"),
        (rank_row(THOUGHT + "I can't rank these."), "no answer"),
        (rank_row(THOUGHT + listing(range(1, 20))), "missing"),
        (rank_row(THOUGHT + listing([*range(20), 3])), "repeated"),
        (rank_row(GOOD, target=5), "misranked"),
        (update_row(PROFILE), None),
        (update_row(THOUGHT.strip()), "no profile"),
        (update_row(THOUGHT + "Updated User description: A person of 35, a clerk."), "no preference"),
        (update_row(THOUGHT + "Updated User description: " + "Likes drama. " * 100), "too long"),
        (update_row("Updated User description: Likes drama."), "no rationale"),
    ],
)  # fmt: skip
def test_screening_names_the_flaw(row: Row, flaw: str | None) -> None:
    kept, report = teach(Rows([row]))
    assert report.tasks[row.task].flaws == ({flaw: 1} if flaw else {})
    assert [found.completion for found in kept] == ([] if flaw else [row.completion])
    assert kept.dropped == ({f"screened: {flaw}": 1} if flaw else {})


def test_the_threshold_of_ndcg_is_a_setting() -> None:
    rows = Rows([rank_row(GOOD, target=place) for place in range(20)])
    assert [row.snapshot.shown.target for row in teach(rows)[0]] == [0, 1, 2, 3, 4]
    assert len(teach(rows, screening=Screening(min_ndcg=1.0))[0]) == 1
    assert len(teach(rows, screening=Screening(min_ndcg=0.0))[0]) == 20


def asked_again(answers: Sequence[str | Completion]) -> tuple[ScriptedChat, list[Sequence[Message]]]:
    seen: list[Sequence[Message]] = []

    def reply(messages: Sequence[Message], _: Mapping[str, Any]) -> str | Completion:
        seen.append(messages)
        return answers[len(seen) - 1]

    return ScriptedChat(reply), seen


def test_a_flawed_sample_goes_back_with_its_fault_named() -> None:
    llm, seen = asked_again([THOUGHT + listing(range(1, 20)), GOOD])
    first = rank_row(THOUGHT + listing([*range(1, 20), 0]))
    kept, report = teach(Rows([first]), llm)
    (row,) = kept
    assert row.completion == GOOD
    assert row.prompt == first.prompt
    assert row.lineage["flaws"] == ["misranked", "missing"]
    assert row.lineage["attempt"] == 2
    assert row.lineage["rejected"][0] == first.completion
    assert [message["role"] for message in seen[0]] == ["user", "assistant", "user"]
    assert "You ranked Film 01 (1990) at place 20, but the user chose it next." in seen[0][-1]["content"]
    assert "missing: 1" in seen[1][-1]["content"]
    assert report.tasks["rank"].model_dump() == {
        "samples": 1, "passed": 0, "gained": [0, 1], "flaws": {"misranked": 1}, "lost": {},
    }  # fmt: skip
    assert "1 at rethink 2" in str(report)


def test_rethinking_is_bounded() -> None:
    llm, seen = asked_again([THOUGHT] * 9)
    kept, report = teach(Rows([rank_row(THOUGHT)]), llm, rethinks=3)
    assert (len(kept), len(seen)) == (0, 3)
    assert report.tasks["rank"].lost == {"empty": 1}
    assert kept.dropped == {"screened: empty": 1}


def test_a_rethought_answer_that_tells_of_the_hint_is_not_taught() -> None:
    told = "<think>\nYou said the user in fact chose Film 01, so it goes first.\n</think>\n" + listing()
    llm, seen = asked_again([told, GOOD])
    (row,) = teach(Rows([rank_row(THOUGHT + listing([*range(1, 20), 0]))]), llm)[0]
    assert row.lineage["flaws"] == ["misranked", "mentions the hint"]
    assert row.completion == GOOD


def test_a_memory_update_is_judged_by_the_ranking_that_follows_and_told_no_future() -> None:
    def reply(messages: Sequence[Message], _: Mapping[str, Any]) -> str:
        if messages[0]["content"] == "Reflect.":
            assert "ranked at place 20" in messages[-1]["content"]
            assert "Film 20" not in messages[-1]["content"]
            return THOUGHT + "Updated User description: Likes slow drama."
        helps = "slow" in messages[-1]["content"]
        return THOUGHT + listing([19, *range(19)] if helps else range(20))

    kept, report = teach(Rows([update_row(PROFILE, target=19)]), ScriptedChat(reply))
    (row,) = kept
    assert "slow drama" in row.completion
    assert row.lineage["flaws"] == ["unhelpful"]


def test_thoughts_that_come_apart_count_as_the_rationale() -> None:
    llm, _ = asked_again([Completion(text=listing(), reasoning="The user took three dramas of late.")])
    (row,) = teach(Rows([rank_row("no")]), llm)[0]
    assert row.completion.startswith("<think>\nThe user took three dramas")


def failing(kind: str) -> Callable[..., str]:
    def reply(messages: Sequence[Message], _: Mapping[str, Any]) -> str:
        raise EndpointError("gone", kind)

    return reply


async def test_a_failed_request_loses_its_sample_and_a_dead_endpoint_stops() -> None:
    rows = Rows([rank_row(GOOD), rank_row("no")])
    kept, report = await ateach(rows, ScriptedChat(failing("timeout")))
    assert len(kept) == 1
    assert report.tasks["rank"].lost == {"endpoint: timeout": 1}
    with pytest.raises(TrainingError, match="failed for all 1"):
        await ateach(Rows([rank_row("no")]), ScriptedChat(failing("auth")))
    with pytest.raises(InvalidOption):
        await ateach(rows, rethinks=-1)
