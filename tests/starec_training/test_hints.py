"""Claims to know the outcome, in natural sentences: they leave no row, and honest reasoning stays."""

import pytest

from starec_agents.llm import ScriptedChat
from starec_env.types import Dataset, Item, User
from starec_training.dataset import Case, Row, Rows, Shown, Snapshot
from starec_training.hints import hint_in
from starec_training.teacher import teach

FILMS = tuple(Item(n, title) for n, title in enumerate(
    ("Heat (1995)", "Alien (1979)", "Casino (1995)", "Fargo (1996)", "Se7en (1995)", "Babe (1995)")
))  # fmt: skip

PLANTED = {
    "what the user went on to do": (
        "The user went on to watch Heat, so it goes first.",
        "They ended up choosing Heat.",
        "Heat turned out to be the film they watched.",
        "Because the user actually watched Heat afterwards, I place it first.",
        "Heat, the film the user would go on to choose, is first.",
    ),
    "the answer": (
        "The correct answer is C.",
        "The ground truth here is Heat.",
        "The hidden item is Heat.",
        "The answer: Heat.",
        "Option A is right.",
        "Since the solution is Heat, put it first.",
    ),
    "what we know": (
        "Since we know they liked Heat (1995), it leads.",
        "Given that the user selected option A, the ranking starts with it.",
        "Knowing the outcome, Heat goes first.",
        "We already know Heat is the pick.",
        "It's known that Heat wins.",
    ),
    "the user took a candidate": (
        "The user chose Heat (1995) next, so it has to come first.",
        "Heat was picked by this viewer.",
        "She later enjoyed Heat a great deal.",
        "The person in question took Heat.",
        "The user gave Heat five stars the week after.",
        "After Ronin, this viewer moved on to Heat.",
        "Heat should lead because the user has already chosen it.",
        "Heat received a like from the user.",
    ),
    "what one was told": (
        "Hmm, they told me Heat (1995) is what was picked, so let me put Heat (1995) at number 1.",
        "I was told that Heat is the one.",
        "As noted above, Heat is what they want.",
        "We were informed that Heat was the user's pick.",
        "I was instructed to move Heat up.",
    ),
    "feedback": (
        "Since the feedback says the user chose Heat (1995), I need to find reasons for it and move it to the top.",
        "We know the next choice is Heat (1995). I shouldn't mention this remark.",
        "The reviewer pointed out Heat was ranked too low.",
        "Having been corrected, I move Heat up.",
    ),
    "an earlier attempt": (
        "I initially ranked Heat (1995) too low; the correct answer is Heat (1995).",
        "Okay, my first attempt was wrong. Heat should be first because that's the one the user watched.",
        "My earlier ranking put Heat last, which was wrong.",
        "My last list was off: Heat should have been on top.",
    ),
    "hindsight": (
        "In hindsight, Heat is the obvious pick.",
        "The future shows Heat.",
        "Looking at what happened afterwards, Heat was the movie of choice.",
    ),
    "records": (
        "The logs show that the user watched Heat after this.",
        "It was revealed that Heat came next.",
        "The dataset's next entry is Heat.",
        "The answer sheet lists Heat.",
        "The next item in the sequence is Heat.",
        "The test item is Heat.",
    ),
    "reasons after the fact": (
        "I'll justify Heat at the top since it is the answer.",
        "Let me act as though I inferred that Heat is best.",
        "The reward will be high if Heat is first.",
        "Spoiler: it is Heat.",
    ),
}

HONEST = (
    "Of 20 taken so far, 12 were liked. Liked most often: Drama (5), Crime (3).",
    "Heat (1995): also taken by 12 who took Ronin (1998) and 5 who took Dune (1984).",
    "Heat (1995) - Crime, liked 4 times before",
    "The user liked Ronin (1998), so Heat fits.",
    "The user liked Back to the Future (1985) and The True Outcome (1994), so Heat fits.",
    "I think the user will likely choose Heat next.",
    "The last turn: Ronin (1998): ranked 3 of 20, liked.",
    "Heat could suit someone who enjoyed Goodfellas.",
    "Similar to the crime films the user liked, Casino comes high.",
    "Wait, the user gave Ronin 5 stars and liked Leon, so thrillers rank high: Heat, Casino, then Fargo.",
    "First, the previous films in the history are mostly thrillers.",
    "Finally, Alien is horror, which the user rated low.",
    "The target audience of Babe is children.",
    "Casino shares its director with Goodfellas, which the user rated 5.",
    "Babe was released in 1995 and is a family film.",
    "Fargo won awards, and the user tends to like acclaimed films.",
    "Since the user enjoyed Ronin, Heat is a good match.",
    "The user then watched three westerns in a row, so westerns matter.",
    "The history is short, so popularity matters: Fargo, Heat.",
)


def answer(thought: str, reason: str = "fits") -> str:
    lines = (f"{place}. {film.title} - {reason}" for place, film in enumerate(FILMS, 1))
    return f"<think>\nLet me see what this user's history holds. {thought}\n</think>\n" + "\n".join(lines)


def ranking(text: str, answer_format: str = "paper") -> Row:
    shown = Shown(candidates=FILMS, target=0)
    snapshot = Snapshot(task="rank", user_id=1, turn=1, shown=shown, answer_format=answer_format)
    return Row(prompt=({"role": "user", "content": "Rank."},), completion=text, snapshot=snapshot)


def update(profile: str) -> Row:
    case = Case(candidates=FILMS, target=0, user=User(1), history=((Item(9, "Ronin (1998)"), 4.0),), domain="movie")
    snapshot = Snapshot(
        task="reflect", user_id=1, turn=1, shown=Shown(candidates=FILMS[2:], target=0), follow_ups=(case,)
    )
    text = f"<think>\nThe feedback shows that Casino (1995) was liked.\n</think>\n<description>{profile}</description>"
    return Row(prompt=({"role": "user", "content": "Casino (1995) was liked."},), completion=text, snapshot=snapshot)


@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_hint_leaves_no_row(kind: str) -> None:
    for sentence in PLANTED[kind]:
        kept, report = teach(Rows([ranking(answer(sentence))]))
        assert not len(kept), sentence
        assert report.tasks["rank"].lost == {"hint": 1}
        llm = ScriptedChat(answer(sentence))  # a teacher that does nothing else
        assert not len(teach(Rows([ranking("no")]), llm, samples=2)[0]), sentence


@pytest.mark.parametrize("sentence", HONEST)
def test_honest_reasoning_stays(sentence: str) -> None:
    assert hint_in(ranking(answer(sentence))) is None
    assert len(teach(Rows([ranking(answer(sentence))]))[0]) == 1


def test_a_hint_in_an_explanation_or_by_a_label_is_found_too() -> None:
    assert hint_in(ranking(answer("Crime first.", "the one they went on to watch")))
    labels = "<think>\nAs the logs go, the user picked C.\n</think>\nC A B D E F"
    assert hint_in(ranking(labels, "labels"))
    assert hint_in(ranking("<think>\nC and A suit the thrillers seen so far.\n</think>\nC A B D E F", "labels")) is None


def test_a_memory_update_may_tell_of_its_turn_but_not_of_the_next() -> None:
    assert hint_in(update("Likes crime films; liked Casino (1995) in spite of place 6.")) is None
    assert hint_in(update("Likes crime films; next the user watched Heat (1995)."))
    assert hint_in(update("You told me that rankings stay as they were. Likes crime."))


def test_a_better_sample_takes_the_place_of_one_with_a_hint() -> None:
    llm = ScriptedChat([answer("The user went on to watch Heat."), answer("Crime is what they like.")])
    (row,) = teach(Rows([ranking("no")]), llm, samples=3)[0]
    assert "went on" not in row.completion and row.lineage["flaws"] == ["no rationale", "hint"]


def test_the_rule_based_teacher_never_hints(taught: Rows, films: Dataset) -> None:
    assert [hint for row in taught if (hint := hint_in(row))] == []
