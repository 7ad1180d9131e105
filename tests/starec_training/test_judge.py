"""The judge: chance where nothing was told, far from it where something was, and no more than users allow."""

import random
from dataclasses import replace

import numpy as np
import pytest

from starec_agents.llm import ScriptedChat
from starec_env.types import Item
from starec_training.dataset import Row, Rows, Shown, Snapshot
from starec_training.judge import LEAST_USERS, Thought, auc, judge, named_first, told_from_untold
from starec_training.teacher import teach

WORDS = "drama crime slow light dark recent old series mood cast plot pace quiet funny sad long short warm".split()
FILMS = tuple(Item(n, f"Film {n:02d} (1990)", {"genres": ("Drama", "Crime")[n % 2]}) for n in range(20))


def thoughts(users: int, a_user: int = 6, hint: str = "", share: float = 1.0) -> list[Thought]:
    """Half of each user's thoughts are told; a share of those holds a hint."""
    drawn = random.Random(0)

    def words(told: bool) -> tuple[str, ...]:
        hints = hint.split() if told and drawn.random() < share else []
        return (*drawn.choices(WORDS, k=30), *hints)

    return [Thought(user, words(told), told) for user in range(users) for told in (True, False) * (a_user // 2)]


def ranking(thought: str, user: int = 1, order: tuple[int, ...] = tuple(range(20))) -> Row:
    listed = "\n".join(f"{place}. {FILMS[n].title} - fits" for place, n in enumerate(order, 1))
    snapshot = Snapshot(task="rank", user_id=user, turn=2, shown=Shown(candidates=FILMS, target=3))
    text = f"<think>\n{thought}\n</think>\n{listed}"
    return Row(prompt=({"role": "user", "content": f"Rank for {user}."},), completion=text, snapshot=snapshot)


def test_where_nothing_was_told_the_scorer_is_at_chance() -> None:
    area, error = told_from_untold(thoughts(60))
    assert abs(area - 0.5) < 3 * error and 0.01 < error < 0.06


def test_a_hint_in_some_of_the_told_thoughts_shows() -> None:
    area, error = told_from_untold(thoughts(60, hint="as they said before", share=0.5))
    assert area > 0.5 + 4 * error
    assert told_from_untold(thoughts(60, hint="as they said before"))[0] > 0.99


def test_a_word_of_one_user_alone_teaches_the_scorer_nothing() -> None:
    known = [replace(t, words=(*t.words, f"user{t.user}", f"{t.user}{t.told}")) for t in thoughts(60)]
    area, error = told_from_untold(known)
    assert abs(area - 0.5) < 3 * error


def test_auc_counts_ties_as_half() -> None:
    told = np.array([True, True, False, False])
    assert auc(np.array([2.0, 1.0, 1.0, 0.0]), told) == (1 + 1 + 0.5 + 1) / 4
    assert np.isnan(auc(np.zeros(2), np.ones(2, bool)))


@pytest.mark.parametrize(
    ("thought", "first"),
    [
        ("Film 03 must lead. The user likes drama.", "target"),
        ("Film 04 (1990) leads.", "another"),
        ("Drama is what they like, so Film 03 leads.", "evidence"),
        ("They liked Ronin (1998), so Film 03 leads.", "evidence"),
        ("Nothing speaks for any.", "evidence"),
    ],
)
def test_what_a_thought_names_first(thought: str, first: str) -> None:
    assert named_first(ranking(thought)) == first


def test_the_report_says_how_often_the_target_comes_before_any_evidence() -> None:
    rows = [
        ranking("Film 03 leads here, of course."),
        ranking("Film 05 or Film 03, as to that."),
        ranking("Drama it is."),
    ]
    found = judge([], rows)
    assert (found.thoughts, found.target_first, found.others_first) == (3, pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert found.auc is None and "too few to compare" in str(found)
    assert "target is named before any evidence in 33.3 % of 3 thoughts" in str(found)


def test_a_teacher_that_tells_of_its_rethinking_is_caught_by_the_judge() -> None:
    def reply(messages: object, sampling: object) -> str:
        asked = messages[-1]["content"]  # type: ignore[index]
        mood = " ".join(random.Random(asked).choices(WORDS, k=20))
        if "earlier" not in asked:
            return ranking(f"A {mood} user.", order=tuple(reversed(range(20)))).completion
        return ranking(f"Quite another road is wanted: a {mood} user.").completion

    rows = Rows([ranking("too short", user) for user in range(2 * LEAST_USERS)])
    kept, report = teach(rows, ScriptedChat(reply), samples=2)
    assert len(kept) == len(rows) and report.tasks["rank"].rethought == [len(rows)]
    assert report.judge is not None and report.judge.auc is not None and report.judge.auc > 0.95
    assert "told from untold with AUC" in str(report)
