"""Analyses, against cases worked by hand and against plain counting."""

import asyncio
from itertools import combinations
from math import isnan, log2

import numpy as np
import pytest
from support import make_dataset

from starec_agents.llm import ScriptedChat
from starec_agents.llm.base import Call, Usage
from starec_agents.llm.scripted import scripted_user
from starec_agents.memory import Memory
from starec_agents.runs.reading import read_steps
from starec_agents.runs.steps import Step
from starec_env.errors import InvalidOption
from starec_env.metrics import ndcg
from starec_env.types import Feedback, ParseReport, Ranking
from starec_eval.evaluate import evaluate
from starec_eval.protocol import Protocol, Reading
from starec_eval.rankers import build_llm
from starec_eval.rankers.best_of import sample
from starec_eval.report import analysis
from starec_eval.report.memory import check_claims, claims, memory_curves, repetition


def step(user=1, turn=0, rank=1, *, n=20, target=0, liked=True, before="", after="", report=None, calls=(), order=None):
    """A step whose target was given a rank; other candidates follow in the order shown."""
    others = [place for place in range(n) if place != target]
    if order is None:
        order = others if rank is None else [*others[: rank - 1], target, *others[rank - 1 :]]
    feedback = Feedback(item_id=target, rank=rank, predicted_liked=rank is not None and rank <= 5, liked=liked)
    return Step(
        user_id=user,
        turn=turn,
        candidates=tuple(range(n)),
        target=target,
        ranking=Ranking(order=tuple(order), report=ParseReport(**report or {})),
        feedback=feedback,
        reward=0.0,
        calls=tuple(calls),
        memory_before=Memory(profile=before),
        memory=Memory(profile=after, history=("an event",) if after else ()),
    )


def test_best_of_n_is_the_mean_over_all_subsets():
    values = np.random.default_rng(0).random((3, 7))
    for n in range(1, 8):
        (found,) = analysis.best_of(values, [n])
        plain = [np.mean([max(subset) for subset in combinations(row, n)]) for row in values]
        assert found.mean == pytest.approx(np.mean(plain)) and found.n == 3
        assert found.se == pytest.approx(np.std(plain, ddof=1) / np.sqrt(3))
    with pytest.raises(InvalidOption, match="1 to 7"):
        analysis.best_of(values, [10])


def test_best_of_n_of_many_samples_estimates_the_best_of_few_without_bias():
    rng = np.random.default_rng(1)
    many = analysis.best_of(rng.random((400, 50)), [5])[0].mean
    assert many == pytest.approx(5 / 6, abs=0.01)  # the expected maximum of five uniform draws


def test_activity_groups_have_the_papers_bounds():
    lengths = {user: user for user in range(10, 41)}
    groups = analysis.activity_groups(
        lengths, [float(user) for user in lengths], list(lengths), analysis.activity_bounds("ml-1m")
    )
    assert [(group.label, group.n) for group in groups] == [
        ("low, 10-24", 15),
        ("medium, 25-39", 15),
        ("high, 40", 1),
    ]
    assert groups[0].mean == 17 and isnan(groups[2].se)
    cds = analysis.activity_groups(lengths, [1.0] * 31, list(lengths), analysis.activity_bounds("amazon-cds"))
    assert [group.n for group in cds] == [10, 20, 1]


def test_the_learning_curve_counts_turns_learned_from_and_errors_over_users():
    steps = [step(1, 7, 1), step(1, 8, 3), step(2, 0, 2), step(2, 3, None), step(3, 5, 1)]
    first, second = analysis.learning_curve(steps)
    assert (first.label, first.n, second.label, second.n) == ("0", 3, "1", 2)
    assert first.mean == pytest.approx((1 + ndcg(2, 10) + 1) / 3) and second.mean == pytest.approx(0.25)
    assert second.se == pytest.approx(0.25)


def test_disliked_targets_are_left_out_of_every_curve_and_counted_by_who_is_left():
    steps = [step(1, 0, 1, liked=False), step(1, 1, 3), step(2, 0, 2), step(3, 0, 1, liked=False)]
    assert np.isnan(analysis.step_ndcg(steps)).tolist() == [True, False, False, True]
    assert analysis.step_ndcg(steps, relevant="taken").tolist() == ndcg([1, 3, 2, 1], 10).tolist()
    first, second = analysis.learning_curve(steps)
    assert (first.n, first.mean, second.n, second.mean) == (1, ndcg(2, 10), 1, 0.5)
    assert analysis.learning_curve(steps[:1]) == []
    assert analysis.sampled_ndcg([steps[0], steps[2]]).tolist() == [[ndcg(2, 10)]]
    assert analysis.sampled_ndcg([]).shape == (0, 0)


def test_position_bias_is_the_rank_by_place_shown_and_a_missing_one_is_last():
    steps = [
        step(1, rank=2, target=0),
        step(2, rank=None, target=4),
        step(1, rank=5, target=9),
        step(1, rank=3, target=19),
    ]
    found = analysis.position_bias(steps)
    assert [(place.label, place.mean, place.n) for place in found] == [("1-5", 11, 2), ("6-10", 5, 1), ("16-20", 3, 1)]
    assert [place.label for place in analysis.position_bias(steps, bands=20)] == ["1", "5", "10", "20"]
    assert [place.label for place in analysis.position_bias(steps, bands=3)] == ["1-7", "8-14", "15-20"]


def test_the_position_slope_is_least_squares_and_zero_without_bias():
    steps = [step(user, rank=min(20, 3 + place), target=place) for user in range(4) for place in range(0, 16, 3)]
    assert analysis.position_slope(steps).mean == pytest.approx(1)
    rng = np.random.default_rng(0)
    found = analysis.position_slope(
        [step(user, rank=int(rng.integers(1, 21)), target=int(rng.integers(20))) for user in range(400)]
    )
    assert abs(found.mean) < 3 * found.se and found.se == pytest.approx(1 / np.sqrt(400), rel=0.15)
    assert isnan(analysis.position_slope([step()]).mean)


def test_invalid_and_invented_answers_are_shares_of_answers():
    steps = [
        step(report={"invented": 3, "missing": 1}),
        step(report={"tied": 4}),
        step(),
        step(report={"no_answer": True}),
    ]
    assert analysis.invalid_answers(steps) == {
        "invalid": 0.5,
        "invented": 0.25,
        "missing": 0.25,
        "no answer": 0.25,
        "tied": 0.25,
    }


def test_popularity_bias_is_zero_by_chance_and_a_half_at_most():
    counts = {item: item for item in range(20)}
    popular = step(order=range(19, -1, -1))
    assert analysis.popularity_bias([popular], counts).mean == pytest.approx(np.mean([19, 18, 17, 16, 15]) / 19 - 0.5)
    assert analysis.popularity_bias([popular], {}).mean == 0
    rng = np.random.default_rng(0)
    steps = [step(user, order=rng.permutation(20).tolist()) for user in range(500)]
    chance = analysis.popularity_bias(steps, counts)
    assert abs(chance.mean) < 3 * chance.se
    assert isnan(analysis.popularity_bias([step(order=[])], counts).mean)


def test_novelty_and_diversity_of_the_first_five():
    counts = analysis.popularity([[0, 1], [0, 0], [0, 5]])
    assert counts == {0: 3, 1: 1, 5: 1}
    found = analysis.novelty([step(order=[0, 1])], counts, 3)
    assert found.mean == pytest.approx((-log2(4 / 4) - log2(2 / 4)) / 2)
    genres = {0: frozenset({"a", "b"}), 1: frozenset({"b"}), 2: frozenset({"c"}), 3: frozenset()}
    assert analysis.diversity([step(order=[0, 1, 2, 3])], genres).mean == pytest.approx((0.5 + 1 + 1) / 3)
    assert analysis.attribute_words({"genres": "Sci-Fi|Drama", "year": "1999"}) == {"sci-fi", "drama"}


def test_calibration_compares_predicted_likes_with_likes():
    found = analysis.calibration(
        [step(1, rank=1), step(2, rank=4, liked=False), step(3, rank=9), step(4, rank=None, liked=False)]
    )
    assert (found.hits, found.false_alarms, found.misses, found.rejections) == (1, 1, 1, 1)
    assert [(e.label, e.mean, e.n) for e in found.by_rank] == [
        ("1", 1, 1),
        ("2-5", 0, 1),
        ("6-10", 1, 1),
        ("not ranked", 0, 1),
    ]


def test_costs_are_a_users_mean():
    call = Call(
        kind="rank", messages=(), completion="", usage=Usage(prompt_tokens=1000, completion_tokens=50), latency=2
    )
    found = analysis.cost([step(1, 0, calls=[call, call]), step(1, 1, calls=[call]), step(2, calls=[call])], 1.0, 10.0)
    assert (found.users, found.prompt_tokens, found.completion_tokens, found.seconds) == (2, 2000, 100, 4)
    assert found.money == pytest.approx(0.003)
    assert analysis.cost([step(1), step(2)], training=[call]).prompt_tokens == 500


def test_memory_curves_measure_length_change_drift_and_repetition():
    texts = ["a b c d", "a b c e", "a b c e", "a b c e a b c e"]
    steps = [step(1, turn, before=texts[turn], after=texts[turn + 1]) for turn in range(3)]
    unchanged = step(1, 3, before=texts[3]).model_copy(update={"memory": Memory(profile=texts[3])})
    curves = memory_curves([*steps, unchanged])
    assert [point.mean for point in curves["length"]] == [4, 4, 8]
    assert [point.mean for point in curves["change"]] == pytest.approx([0.25, 0, 1 / 3])
    assert [point.mean for point in curves["drift"]] == pytest.approx([0.25, 0.25, 1 - 6 / 12])
    assert [point.mean for point in curves["repetition"]] == pytest.approx([0, 0, 2 / 6])
    assert [point.label for point in curves["length"]] == ["1", "2", "3"]
    assert repetition("so it goes") == 0 == repetition("")


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ("Likes horror and drama, but dislikes comedies.", {"horror": 1, "drama": 1, "comedy": 0}),
        ("She doesn't like horror; he is not a fan of drama", {"horror": 0, "drama": 0}),
        ("Enjoys comedy, not horror", {"comedy": 1, "horror": 0}),
        ("A horror fan; never enjoys comedy", {"horror": 1, "comedy": 0}),
        ('Loves "Horror House" and drama', {"drama": 1}),
        ("Enjoys not only drama", {"drama": 1}),
        ("Prefers drama over horror", {"drama": 1}),
        ("Has little interest in horror while loving comedy", {"horror": 0, "comedy": 1}),
        ("Horror. Dramatic tension is liked.", {}),
    ],
)
def test_claims_of_a_profile_are_read_with_their_sign(profile, said):
    found = claims(profile, {"horror", "drama", "comedy"})
    assert {claim.attribute: claim.likes for claim in found} == {name: bool(likes) for name, likes in said.items()}


def test_a_profile_that_likes_horror_of_someone_who_rates_horror_low_contradicts():
    attributes = {
        1: frozenset({"horror"}),
        2: frozenset({"horror"}),
        3: frozenset({"horror", "drama"}),
        4: frozenset({"drama"}),
    }
    history = [(1, False), (2, False), (3, False), (4, True)]
    profiles = {7: "Likes horror. Likes drama.", 8: "Dislikes horror."}
    found = check_claims(profiles, {7: history, 8: history}, attributes)
    assert (len(found), found["testable"].sum(), found["contradicted"].sum()) == (3, 2, 1)
    (example,) = found[found["contradicted"]].itertuples()
    assert (example.user, example.attribute, example.likes, example.liked, example.ratings) == (7, "horror", True, 0, 3)
    assert len(check_claims({7: "Hm."}, {}, {})) == 0
    unrated = check_claims({"x": "Likes horror."}, {}, attributes)
    assert len(unrated) == 1 and not unrated["testable"].any() and not unrated["contradicted"].any()


async def test_samples_of_the_held_out_lists_give_best_of_n_and_go_on_where_they_stopped(tmp_path):
    protocol = Protocol(make_dataset(n_users=24, n_items=80, length=20), Reading(min_interactions=2), users=6)
    asked = 0

    def chance(messages, sampling):
        nonlocal asked
        asked += 1
        assert sampling.get("temperature") == 1.0
        return " ".join(np.random.default_rng(asked).permutation(list("ABCDEFGHIJKLMNOPQRST")))

    method = build_llm("starec", ScriptedChat(scripted_user()), warmup=1, answer_format="compact")
    warm = tmp_path / "e" / "runs" / "starec" / "0"
    await asyncio.to_thread(evaluate, [method], protocol, out=tmp_path / "e")
    for _ in range(2):
        await sample(protocol, ScriptedChat(chance), warm, out=tmp_path / "s", samples=10, answer_format="compact")
    assert asked == 60
    steps = list(read_steps(tmp_path / "s"))
    known = {s.user_id: s.memory_before for s in read_steps(warm)}
    assert all(s.memory_before == s.memory == known[s.user_id] for s in steps)
    values = analysis.sampled_ndcg(steps)
    assert values.shape == (6, 10)
    found = [point.mean for point in analysis.best_of(values, (1, 5, 10))]
    assert found == sorted(found) and found[0] == pytest.approx(values.mean())
