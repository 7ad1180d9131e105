"""The rule-based teacher: valid in every format, true in every fact, an agent like any other."""

import re
from pathlib import Path

import pytest

from starec_agents.memory import Memory
from starec_agents.runs.population import run_population
from starec_agents.runs.reading import read_run, read_steps
from starec_agents.tasks import parse_profile, parse_ranking
from starec_env.replay.stream import Stream, judge
from starec_env.types import Dataset, Feedback, Id, Ranking
from starec_training.dataset import run_rows
from starec_training.features import Evidence
from starec_training.rule_teacher import RuleTeacher


@pytest.mark.parametrize(("answer_format", "structured"), [("paper", False), ("compact", False), ("compact", True)])
def test_its_answers_are_valid_in_every_format(
    films: Dataset, evidence: Evidence, tmp_path: Path, answer_format: str, structured: bool
) -> None:
    agent = RuleTeacher(evidence).agent(answer_format=answer_format, structured=structured)
    run = run_population(films, agent, out=tmp_path, users=6, progress=False)
    assert run.metrics["valid_share"] == 1.0
    told = read_run(tmp_path)
    assert (told["model"], told["graph"]) == ("rule-based teacher", "rule-based-teacher")
    for step in read_steps(tmp_path):
        rank, reflect = step.calls
        assert ("<think>" in rank.completion) == (answer_format == "paper")
        assert step.memory.profile == parse_profile(reflect.completion)
    assert run_rows(tmp_path, films).rows


def test_text_and_bare_ranking_are_one(films: Dataset, evidence: Evidence) -> None:
    teacher = RuleTeacher(evidence, thinks=True)
    stream = Stream(films)
    for user in stream.users[:6].tolist():
        query = stream.turns(user)[-1].query
        for answer_format in ("paper", "compact"):
            text = teacher.ranking(query, Memory(history=("Heat (1995): ranked 2 of 20, liked",)), answer_format)
            assert "Heat" in text
            assert parse_ranking(text, query.candidates, answer_format).order == teacher.rank(query).order


def test_the_counts_it_gives_as_reasons_are_true(films: Dataset, evidence: Evidence, train_users: list[Id]) -> None:
    title = {item.title: index for index, item in enumerate(films.items)}
    taken = {u: set(films.item_indices[films.indptr[u] : films.indptr[u + 1]].tolist()) for u in evidence.trained}
    stream, checked = Stream(films), 0
    for user in stream.users.tolist():
        query = stream.turns(user)[-1].query
        text = RuleTeacher(evidence).ranking(query, Memory())
        for candidate, reasons in re.findall(r"^\d+\. (.+?) - also taken by (.+)$", text, re.M):
            for count, film in re.findall(r"(\d+) who took (.+?\(\d{4}\))", reasons):
                both = sum({title[candidate], title[film]} <= items for who, items in taken.items() if who != user)
                assert int(count) == both
                assert title[film] in query.history.item_indices
                checked += 1
    assert checked > 20


def test_its_memory_says_what_is_true_and_what_the_feedback_contradicts(films: Dataset, evidence: Evidence) -> None:
    stream = Stream(films)
    for user in stream.users[:8].tolist():
        turn = stream.turns(user)[-1]
        worst = Ranking(order=tuple(place for place in range(20) if place != turn.target) + (turn.target,))
        feedback, _ = judge(turn, worst)
        said = RuleTeacher(evidence).reflection(turn.query, worst, feedback)
        profile = parse_profile(said)
        assert profile is not None and len(profile.split()) <= 100
        assert f"{turn.target_item.title} was liked in spite of place 20: more" in profile
        assert "<think>" in said
        liked = [item.title for item, rating in zip(turn.query.history.items, turn.query.history.ratings, strict=True)
                 if rating > 3]  # fmt: skip
        recent = [turn.target_item.title, *reversed(liked)][:3]
        assert f"Recently liked: {'; '.join(recent)}." in profile
        kind, good, all_ = re.findall(r"Likes (\w+) \((\d+) of (\d+)\)", profile)[0]
        kinds = [item.attributes["genres"] for item in turn.query.history.items] + [
            turn.target_item.attributes["genres"]
        ]
        assert kinds.count(kind) == int(all_) >= int(good)
        assert "compact" not in said and "<think>" not in RuleTeacher(evidence).reflection(
            turn.query, worst, feedback, "compact"
        )


def test_a_held_prediction_teaches_no_surprise(films: Dataset, evidence: Evidence) -> None:
    stream = Stream(films)
    turn = stream.turns(int(stream.users[0]))[0]
    feedback = Feedback(item_id=turn.target_item.id, rank=1, predicted_liked=True, liked=True)
    ranking = Ranking(order=(turn.target,))
    assert "in spite of" not in RuleTeacher(evidence).reflection(turn.query, ranking, feedback)
