"""Rejection sampling and "prompt error + rethink" (4.2.1): what is kept, and what the teacher is told."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from starec_agents.llm import Completion, Message, ScriptedChat
from starec_env.errors import EndpointError, InvalidOption, TrainingError
from starec_env.metrics import ndcg
from starec_env.types import Item, User
from starec_training.dataset import Case, Row, Rows, Shown, Snapshot
from starec_training.screening import Flaw, Screening
from starec_training.teacher import ateach, teach, with_remark

FILMS = tuple(Item(n, f"Film {n:02d} (1990)") for n in range(1, 21))
THOUGHT = "<think>\nThe user took three dramas of late.\n</think>\n"


def listing(order: Sequence[int] = range(20)) -> str:
    return "\n".join(f"{place}. {FILMS[n].title} - fits" for place, n in enumerate(order, 1))


GOOD = THOUGHT + listing()
PROFILE = THOUGHT + "<description>Likes drama, avoids horror.</description>"


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


def test_the_best_of_the_samples_is_kept() -> None:
    llm, seen = asked_again([THOUGHT + listing([*range(1, 20), 0]), GOOD, THOUGHT + listing([1, 0, *range(2, 20)])])
    first = rank_row(THOUGHT + listing([1, 2, 0, *range(3, 20)]))
    kept, report = teach(Rows([first]), llm, samples=4)
    (row,) = kept
    assert row.completion == GOOD and row.prompt == first.prompt
    assert (row.lineage["round"], row.lineage["score"], row.lineage["flaws"]) == (0, 1.0, ["misranked"])
    assert [list(messages) for messages in seen] == [list(first.prompt)] * 3
    assert report.tasks["rank"].passed == 1
    assert len(teach(Rows([rank_row(GOOD)]), ScriptedChat(failing("auth")))[0]) == 1  # nothing better can come


def test_samples_differ_in_their_seeds_alone_and_in_no_other_way_from_the_prompt() -> None:
    seeds = []

    def reply(messages: Sequence[Message], sampling: Mapping[str, Any]) -> str:
        seeds.append(sampling["seed"])
        return THOUGHT

    teach(Rows([rank_row(THOUGHT)]), ScriptedChat(reply), samples=3, rethinks=2, seed=10)
    assert seeds == [11, 12, *range(13, 16), *range(16, 19)]


def test_a_prompt_without_a_passing_sample_is_asked_again_with_its_fault_named() -> None:
    llm, seen = asked_again([THOUGHT + listing(range(1, 20)), GOOD])
    first = rank_row(THOUGHT + listing([*range(1, 20), 0]))
    kept, report = teach(Rows([first]), llm, samples=1)
    (row,) = kept
    assert row.completion == GOOD and row.prompt == first.prompt
    assert row.lineage["flaws"] == ["misranked", "missing"] and row.lineage["round"] == 2
    assert [message["role"] for message in seen[0]] == ["user"]
    assert "An earlier ranking did not place what the user chose where it belongs." in seen[0][-1]["content"]
    assert "missing: 1" in seen[1][-1]["content"]
    assert report.tasks["rank"].model_dump() == {
        "prompts": 1, "passed": 0, "resampled": 0, "rethought": [0, 1], "samples": 3,
        "flaws": {"misranked": 1, "missing": 1}, "lost": {},
    }  # fmt: skip
    assert "1 by rethink 2 (100 % of the rows)" in str(report)


def test_nothing_that_a_teacher_is_asked_depends_on_the_target() -> None:
    order = THOUGHT + listing()
    requests = []
    for target in range(5, 20):  # all of them misranked
        llm, seen = asked_again([order] * 20)
        assert not len(teach(Rows([rank_row(order, target=target)]), llm, samples=3)[0])
        requests.append([[dict(message) for message in messages] for messages in seen])
    assert all(each == requests[0] for each in requests)
    said = requests[0][-1][-1]["content"]
    assert not any(film.title in said for film in FILMS) and not any(char.isdigit() for char in said)


def test_the_most_common_fault_of_a_round_is_the_one_that_is_named() -> None:
    bad = THOUGHT + listing([*range(1, 20), 0])
    llm, seen = asked_again([listing(), bad, GOOD, GOOD, GOOD])
    (row,) = teach(Rows([rank_row(bad)]), llm, samples=3)[0]
    assert "did not place" in seen[2][-1]["content"] and row.lineage["round"] == 1


def test_rethinking_is_bounded() -> None:
    llm, seen = asked_again([THOUGHT] * 9)
    kept, report = teach(Rows([rank_row(THOUGHT)]), llm, samples=2, rethinks=3)
    assert (len(kept), len(seen)) == (0, 1 + 3 * 2)
    assert report.tasks["rank"].lost == {"empty": 1}
    assert kept.dropped == {"screened: empty": 1}


def test_a_cut_answer_is_never_kept() -> None:
    cut = Completion(text=GOOD, finish_reason="length")
    open_thought = "<think>\nThe user took three dramas" + listing()
    llm, seen = asked_again([cut, open_thought, cut, open_thought])
    kept, report = teach(Rows([rank_row(listing())]), llm, samples=3, rethinks=0)
    assert not len(kept) and report.tasks["rank"].flaws == {"no rationale": 1, "cut off": 2}
    marked = rank_row(GOOD).model_copy(update={"lineage": {"cut_off": True}})
    assert teach(Rows([marked]))[0].dropped == {"screened: cut off": 1}


def test_an_answer_without_its_opening_tag_is_kept_with_both() -> None:
    llm, _ = asked_again(["The user took three dramas of late.\n</think>\n\n" + listing()])
    (row,) = teach(Rows([rank_row("no")]), llm, samples=2)[0]
    assert row.completion == GOOD
    assert (row.thought, row.answer) == ("The user took three dramas of late.", listing())


def helped_by(word: str, seen: list[Sequence[Message]], ranks: tuple[int, int] = (0, 9)) -> ScriptedChat:
    """Reflections say "Likes slow drama."; follow-ups rank the target first if the prompt holds a word, else tenth."""

    def reply(messages: Sequence[Message], _: Mapping[str, Any]) -> str:
        seen.append(messages)
        if "Reflect." in messages[0]["content"]:
            return THOUGHT + "<description>Likes slow drama.</description>"
        order = list(range(1, 20))
        order.insert(ranks[word not in messages[-1]["content"]], 0)
        return THOUGHT + listing(order)

    return ScriptedChat(reply)


def test_a_memory_update_is_kept_by_its_gain_over_the_old_memory_on_the_same_lists() -> None:
    seen: list[Sequence[Message]] = []
    (row,) = teach(Rows([update_row(PROFILE)]), helped_by("slow", seen), samples=2, seed=3)[0]
    assert "slow drama" in row.completion
    assert row.lineage["flaws"] == ["unhelpful"]
    assert row.lineage["score"] == pytest.approx(1 - float(ndcg(10, 10)))
    follow_ups = [messages[-1]["content"] for messages in seen if "Reflect." not in messages[0]["content"]]
    lists = {text.partition("Candidate")[2] for text in follow_ups}
    assert len(follow_ups) == 3 and len(lists) == 1  # the old memory's ranking, and two new ones


def test_an_easy_user_gains_nothing_and_a_hard_one_needs_no_rank_in_the_top() -> None:
    seen: list[Sequence[Message]] = []
    easy, report = teach(Rows([update_row(PROFILE)]), helped_by("slow", seen, (0, 0)))
    assert not len(easy) and report.tasks["reflect"].lost == {"nothing to gain": 1}
    hard, _ = teach(Rows([update_row(PROFILE)]), helped_by("slow", seen, (7, 9)), samples=2)
    assert len(hard) == 1
    level, report = teach(Rows([update_row(PROFILE)]), helped_by("fast", seen), samples=2, rethinks=1)
    assert not len(level) and report.tasks["reflect"].flaws == {"unhelpful": 4}
    said = [messages[-1]["content"] for messages in seen if "earlier" in messages[-1]["content"]]
    assert said and not any(film.title in text for text in said for film in FILMS)
    assert "rank" not in said[0].replace("rankings that followed", "")


def test_a_remark_ends_the_prompt_and_the_row_keeps_the_prompt_without_it() -> None:
    row = rank_row(THOUGHT)
    llm, seen = asked_again([THOUGHT, GOOD])
    (kept,) = teach(Rows([row]), llm, samples=1)[0]
    assert kept.prompt == row.prompt
    assert [len(messages) for messages in seen] == [len(row.prompt)] * 2
    assert seen[0][-1]["content"].startswith(row.prompt[-1]["content"])
    assert with_remark(row, Flaw("odd", "It was odd."))[-1]["content"].endswith(
        "It was odd. Answer in the same format."
    )


def test_thoughts_that_come_apart_count_as_the_rationale() -> None:
    llm, _ = asked_again([Completion(text=listing(), reasoning="The user took three dramas of late.")])
    (row,) = teach(Rows([rank_row("no")]), llm, samples=2)[0]
    assert row.completion.startswith("<think>\nThe user took three dramas")


def failing(kind: str) -> Callable[..., str]:
    def reply(messages: Sequence[Message], _: Mapping[str, Any]) -> str:
        raise EndpointError("gone", kind)

    return reply


async def test_a_failed_request_loses_its_prompt_and_a_dead_endpoint_stops() -> None:
    rows = Rows([rank_row(GOOD), rank_row("no")])
    kept, report = await ateach(rows, ScriptedChat(failing("timeout")))
    assert len(kept) == 1
    assert report.tasks["rank"].lost == {"endpoint: timeout": 1}
    with pytest.raises(TrainingError, match="1 prompts in a row failed"):
        await ateach(Rows([rank_row("no")]), ScriptedChat(failing("auth")))
    llm = ScriptedChat(failing("auth"))
    with pytest.raises(TrainingError, match="9 prompts in a row failed.*same command again"):
        await ateach(Rows([rank_row("no")] * 1000), llm, concurrency=9, samples=2)
    assert llm.requests < 30
    for wrong in ({"rethinks": -1}, {"samples": 0}, {"concurrency": 0}):
        with pytest.raises(InvalidOption):
            await ateach(rows, **wrong)


def test_one_failed_request_of_several_costs_no_prompt() -> None:
    def reply(messages: Sequence[Message], sampling: Mapping[str, Any]) -> str:
        if sampling["seed"] == 1:
            raise EndpointError("gone", "timeout")
        return GOOD

    assert len(teach(Rows([rank_row("no")]), ScriptedChat(reply), samples=3)[0]) == 1
