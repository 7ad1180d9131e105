"""The report card: every quantity against hand-computed values, and cards of users whose fidelity is known."""

import json
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support import make_dataset

from starec_env.data.cut import rows_only
from starec_env.errors import InvalidOption, RunError
from starec_env.metrics import per_user
from starec_env.recommend.sequence import SequenceUser
from starec_eval.fidelity import Card, fidelity, measures
from starec_eval.fidelity.answers import Answers, log_choice
from starec_eval.fidelity.asked import Asked, appended, cases_of
from starec_eval.fidelity.card import Value, measured
from starec_eval.fidelity.commands import fidelity_command, settings_of_agents
from starec_eval.fidelity.floor import PopularityUser
from starec_eval.fidelity.order import places, simulated_lists
from starec_eval.fidelity.page import head, to_markdown
from starec_eval.fidelity.synthetic import shuffled, simulated_log
from starec_eval.protocol import Protocol, Reading
from starec_eval.report import write_report

SMALL = Reading(min_interactions=1)


def dataset():
    return make_dataset(n_users=24, n_items=80, length=30)


def asked(**options):
    return Asked(Protocol(dataset(), SMALL, users=12, repetitions=2), **options)


class Oracle:
    """Knows the future: it is told the whole log, as no user model may be."""

    def __init__(self, seen, seed=0):
        self.whole = dataset()
        self.liked = np.zeros((self.whole.n_users, self.whole.n_items), bool)
        self.liked[self.whole.owner[self.whole.liked], self.whole.item_indices[self.whole.liked]] = True
        self.touched = np.zeros_like(self.liked)
        self.touched[self.whole.owner, self.whole.item_indices] = True

    def log_choice(self, cases, relevant="liked"):
        score = 20.0 * self.liked[cases.users[:, None], cases.candidates]
        return score - np.log(np.exp(score).sum(1, keepdims=True))

    def accepts(self, cases):
        return self.touched[cases.users[:, None], cases.candidates].astype(float)

    def rate(self, dataset, rows):
        return dataset.ratings[rows].astype(float), dataset.liked[rows].astype(float)

    def draw_stars(self, dataset, rows, seed):
        return dataset.ratings[rows].astype(float)


# Quantities -----------------------------------------------------------------------------------------------------------


def test_a_calibration_error_is_the_mean_gap_of_bins_weighted_by_their_rows():
    # Bin 0.1: two rows of 0.15, one happened: |0.15 - 0.5|; bin 0.9: two rows of 0.95, both happened: 0.05.
    assert measures.calibration_error([0.15, 0.15, 0.95, 0.95], [0, 1, 1, 1]) == pytest.approx(0.5 * 0.35 + 0.5 * 0.05)
    assert measures.calibration_error([1.0, 0.0], [1, 0]) == 0
    assert np.isnan(measures.calibration_error([], []))


def test_a_calibration_floor_falls_with_the_root_of_the_rows():
    few, many = (measures.calibration_floor(np.full(n, 0.55)) for n in (100, 10_000))
    # One bin: the mean of |normal| with the standard deviation of a mean of n coins.
    assert few == pytest.approx(np.sqrt(2 / np.pi) * np.sqrt(0.55 * 0.45 / 100), rel=0.5)
    assert many == pytest.approx(few / 10, rel=0.6)
    assert measures.calibration_floor(np.ones(50)) == 0


def test_auc_counts_pairs_in_order_and_ties_half():
    assert measures.auc([1, 0, 1, 0], [3, 2, 1, 0]) == pytest.approx(3 / 4)
    assert measures.auc([1, 0], [1, 1]) == 0.5
    assert np.isnan(measures.auc([1, 1], [0, 1]))


def test_yes_and_no_are_scored_as_agent4rec_scores_them():
    said = np.array([[1, 1, 0, 0], [0, 0, 0, 0]], bool)
    true = np.array([[1, 0, 1, 0], [1, 1, 0, 0]], bool)
    found = measures.yes_no(said, true)
    assert found["accuracy"].tolist() == [0.5, 0.5]
    assert found["precision"].tolist() == [0.5, 0]
    assert found["recall"].tolist() == [0.5, 0]
    assert found["F1"].tolist() == [0.5, 0]


def test_a_pooled_mean_weighs_rows_alike_and_its_error_is_that_of_a_ratio():
    found = measures.pooled([1, 2, 3, 10], [0, 0, 0, 1])
    # Mean 16 / 4; each user's sum less mean times rows: 6 - 12 = -6 and 10 - 4 = 6.
    assert found.mean == 4
    assert found.se == pytest.approx(np.sqrt((36 + 36) * 2 / 1) / 4)
    assert measures.pooled([1, np.nan], [0, 1]).n == 1
    assert np.isnan(measures.pooled([], []).mean)


def test_the_error_of_a_root_follows_from_its_slope():
    found = measures.root(measures.pooled([4.0, 4.0], [0, 1]))
    assert (found.mean, found.se) == (2, 0)
    assert measures.root(measures.pooled([3.0, 5.0], [0, 1])).se == pytest.approx(
        measures.pooled([3.0, 5.0], [0, 1]).se / 4
    )


def test_the_jackknife_of_a_mean_of_one_row_a_user_is_the_usual_error():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    found = measures.jackknifed(lambda rows: float(values[rows].mean()), np.arange(4))
    assert found.mean == 4
    assert found.se == pytest.approx(values.std(ddof=1) / 2)
    assert found.n == 4


def test_distances_of_histograms():
    assert measures.total_variation([1, 1], [2, 2]) == 0
    assert measures.total_variation([1, 0], [0, 5]) == 1
    assert measures.total_variation([1, 3], [3, 1]) == 0.5
    # A quarter of the mass goes from 1 to 4 stars.
    assert measures.earth_mover([2, 2, 0], [1, 2, 1], [1, 2, 4]) == pytest.approx(0.25 * 3)


def test_a_distance_of_real_from_itself_is_its_floor():
    rng = np.random.default_rng(0)
    real, users = rng.integers(5, size=400), np.repeat(np.arange(40), 10)
    made, floor = measures.beside_floor(real, real, users, measures.total_variation, 5)
    assert made.mean == floor.mean > 0
    far, floor = measures.beside_floor(np.zeros(400, int), real, users, measures.total_variation, 5)
    assert far.mean == pytest.approx(0.8, abs=0.05) and floor.mean < 0.15


def test_the_order_of_recommenders_is_kendalls_tau_and_a_mean_gap():
    real = np.tile([[0.1], [0.2], [0.3]], 6)
    swapped = np.tile([[0.1], [0.3], [0.2]], 6)
    found = measures.order(real, swapped)
    assert found["tau"].mean == pytest.approx(1 / 3)  # two pairs of three in order
    assert found["told_apart"].mean == pytest.approx(1 / 3)  # users agree, so all pairs are told apart
    assert found["gap"].mean == pytest.approx(0.2 / 3)
    assert [found[name].se for name in ("tau", "told_apart", "gap")] == pytest.approx([0, 0, 0])
    assert measures.order(real, real)["tau"].mean == pytest.approx(1)


def test_pairs_that_real_lists_do_not_tell_apart_are_left_out():
    noisy = np.array([[0.2, 0.4, 0.2, 0.4], [0.4, 0.2, 0.4, 0.21], [0.9, 0.9, 0.8, 0.9]])  # the first two are alike
    swapped = noisy[[1, 0, 2]]
    found = measures.order(noisy, swapped)
    assert found["tau"].mean == pytest.approx(1 / 3) and found["told_apart"].mean == 1


def test_the_floor_of_an_order_is_half_of_the_users_against_the_others():
    alike = np.tile([[0.1], [0.2], [0.3]], 6)
    floor = measures.order_floor(alike)
    assert (floor["tau"].mean, floor["gap"].mean) == pytest.approx((1, 0))
    noise = np.random.default_rng(0).random((5, 40))
    assert measures.order_floor(noise)["tau"].mean < 0.6 and measures.order_floor(noise)["gap"].mean > 0.01


def test_chance_is_a_random_order_and_shares_go_from_floor_to_top():
    assert measures.chance_ndcg(1, 20) == 1 / 20
    assert measures.chance_ndcg(10, 20) == pytest.approx(np.mean([*(1 / np.log2(np.arange(2, 12))), *[0] * 10]))
    assert measures.share_above(0.6, 0.2, 1.0) == pytest.approx(0.5)
    assert np.isnan(measures.share_above(0.6, 0.2, 0.2))


def test_a_sitting_ends_before_a_long_pause_or_another_user():
    lengths = measures.sitting_lengths([0, 0, 0, 1], [0, 1800, 3601, 3602])
    assert lengths.tolist() == [2, 1, 1]
    assert measures.sitting_lengths([], []).tolist() == []


def test_steps_of_sittings_end_where_a_pause_follows_and_the_log_goes_on():
    steps, left = measures.sitting_steps([0, 0, 0, 1], [0, 5, 9999, 0])
    assert steps.tolist() == [1, 2, 1, 1]
    assert left[:2].tolist() == [0, 1] and np.isnan(left[2:]).all()


def test_the_chance_to_leave_is_of_the_sittings_that_lasted_so_long():
    # Of 80 all reach step 1 and 40 end there; of the 40 that reach step 3 half end; nobody reaches step 9.
    chances = measures.leaving_chances(np.repeat([1, 1, 3, 5], 20), [1, 2, 3, 5, 9])
    assert chances[:4].tolist() == [0.5, 0, 0.5, 1] and np.isnan(chances[4])


def test_means_by_user_are_a_row_a_recommender():
    users = [3, 3, 5]
    assert measures.by_user([1, 3, 5], users).tolist() == [2, 5]
    assert measures.by_user([[1, 3, 5], [0, 0, 1]], users).tolist() == [[2, 5], [0, 1]]


def test_places_of_all_candidates_break_ties_by_their_keys():
    assert places(np.array([[1.0, 3.0, 3.0, 0.0]]), np.array([[0, 9, 4, 1]])).tolist() == [[3, 2, 1, 4]]


# Questions ------------------------------------------------------------------------------------------------------------


def test_nothing_that_is_asked_about_was_to_be_seen():
    questions = asked()
    lists, whole = questions.lists, questions.dataset
    assert lists.source.n_interactions < whole.n_interactions
    for case in range(len(lists)):
        seen = lists.source.item_indices[lists.first[case] : lists.stop[case]]
        assert lists.target_items[case] not in seen
    assert np.array_equal(lists.candidates, questions.protocol.cases.candidates)
    assert np.array_equal(np.diff(whole.indptr) - np.diff(questions.seen_of_tenths.indptr), np.full(24, 3))
    assert len(questions.rows) == 24 * 3 and (questions.rows >= questions.tenths[questions.owners]).all()


def test_ratings_are_asked_of_the_tested_alone_or_of_some_where_that_is_wanted():
    assert set(asked(everybody=False).owners) == set(asked().users)
    some = asked(most_rows=7).rows
    assert len(some) == 7 and (np.diff(some) > 0).all()
    with pytest.raises(InvalidOption, match="most_ratings is 0"):
        asked(most_rows=0)


def test_offers_hold_m_items_never_touched_for_each_taken_later():
    questions = asked()
    for ratio in (1, 2, 9):
        (part,) = questions.offers[ratio]  # all have three rows held out
        taken = min(3, 20 // (ratio + 1))
        assert part.touched.shape == (12, taken * (ratio + 1))
        assert (part.touched.sum(1) == taken).all()
        for case in range(12):
            user = part.cases.users[case]
            rows = slice(questions.dataset.indptr[user], questions.dataset.indptr[user + 1])
            met = np.isin(part.cases.candidates[case], questions.dataset.item_indices[rows])
            assert np.array_equal(met, part.touched[case])


def test_one_row_more_comes_last_and_moves_nobody_elses():
    data = dataset()
    longer, rows = appended(data, np.array([0, 5]), np.array([7, 8]), np.array([2.0, 3.0]))
    assert longer.item_indices[rows].tolist() == [7, 8] and longer.ratings[rows].tolist() == [2, 3]
    assert rows.tolist() == [30, 6 * 30 + 1]
    back = np.delete(np.arange(longer.n_interactions), rows)
    assert np.array_equal(longer.item_indices[back], data.item_indices)


def test_groups_are_thirds_by_activity_and_shared_demographics():
    questions = Asked(Protocol(make_dataset(n_users=80, n_items=80, length=30), SMALL, users=60, repetitions=1))
    groups = questions.groups
    assert sum(mask.astype(int) for name, mask in groups.items() if "rows" in name).tolist() == [1] * 80
    assert {name for name in groups if "rows" not in name} == {"age 25-34", "gender F", "gender M"}


# Models ---------------------------------------------------------------------------------------------------------------


def test_the_floor_knows_popularity_and_each_users_mean_so_far():
    data = dataset()
    model = PopularityUser(data)
    counts = np.bincount(data.item_indices, minlength=80)
    cases = cases_of(data, np.array([0]), np.array([[1, 2, 3]], np.int32))
    chances = np.exp(model.log_choice(cases, "taken")[0])
    assert chances == pytest.approx((counts[1:4] + 1) / (counts[1:4] + 1).sum())
    assert model.accepts(cases)[0] == pytest.approx(counts[1:4] / (counts[1:4] + counts.mean()))
    stars, like = model.rate(data, np.array([0, 2, 32]))
    assert stars == pytest.approx([data.ratings.mean(), data.ratings[:2].mean(), data.ratings[30:32].mean()])
    assert like[1] == pytest.approx((data.liked[:2].sum() + 5 * data.liked.mean()) / 7)
    drawn = model.draw_stars(data, np.full(50, 2), 0)
    assert set(drawn) == set(data.ratings[:2].tolist())


def test_answers_that_are_no_chances_are_refused_with_the_user():
    class Wrong(PopularityUser):
        def log_choice(self, cases, relevant="liked"):
            return super().log_choice(cases) - 1

        def rate(self, dataset, rows):
            return np.full(len(rows), 9.0), np.full(len(rows), np.nan)

        def accepts(self, cases):
            return np.zeros(3)

    questions = asked()
    answers = Answers(Wrong, questions)
    with pytest.raises(InvalidOption, match=r"user \d+ chances that sum to 0.367879"):
        _ = answers.log_choice
    with pytest.raises(InvalidOption, match="gave 9 to 9, wanted numbers from 1 to 5"):
        _ = answers.rated
    with pytest.raises(InvalidOption, match=r"gave shape \(3,\), wanted \(12, 6\)"):
        answers.accepts(1)


def test_simulated_lists_hold_a_drawn_target_among_items_never_met():
    questions = asked()
    lists = simulated_lists(PopularityUser(questions.seen_of_lists), questions)
    real = questions.protocol.cases
    assert lists.candidates.shape == real.candidates.shape and np.array_equal(lists.users, real.users)
    for case in range(len(lists)):
        user, target = lists.users[case], lists.target_items[case]
        seen, whole = questions.seen_of_lists, questions.dataset
        assert target not in seen.item_indices[seen.indptr[user] : seen.indptr[user + 1]]
        others = np.delete(lists.candidates[case], lists.targets[case])
        assert len(set(lists.candidates[case].tolist())) == 20
        assert not np.isin(others, whole.item_indices[whole.indptr[user] : whole.indptr[user + 1]]).any()
    assert len(np.unique(lists.targets)) > 5  # the place of the target says nothing


def test_simulated_lists_follow_the_models_chances():
    class Certain(PopularityUser):
        def log_choice(self, cases, relevant="liked"):
            return np.log(np.where(cases.candidates == 79, 1 - 79e-12, 1e-12))

    questions = asked()
    lists = simulated_lists(Certain(questions.seen_of_lists), questions)
    seen = questions.seen_of_lists
    met = [79 in seen.item_indices[seen.indptr[u] : seen.indptr[u + 1]] for u in lists.users]
    assert np.array_equal(lists.target_items == 79, ~np.array(met)) and not all(met)


def test_a_simulated_log_begins_as_the_real_one_and_repeats_nothing():
    questions = asked()
    real = questions.protocol.training("sample")
    made = simulated_log(PopularityUser(questions.seen_of_lists), questions, real)
    assert np.array_equal(made.indptr, real.indptr)
    for user in range(real.n_users):
        rows = slice(real.indptr[user], real.indptr[user + 1])
        assert np.array_equal(made.item_indices[rows][:5], real.item_indices[rows][:5])
        assert len(set(made.item_indices[rows].tolist())) == len(made.item_indices[rows])
    assert not np.array_equal(made.item_indices, real.item_indices)


def test_the_control_keeps_how_often_each_item_is_there_and_nothing_else():
    real = asked().protocol.training("sample")
    mixed = shuffled(real, 0)
    assert np.array_equal(np.sort(mixed.item_indices), np.sort(real.item_indices))
    assert not np.array_equal(mixed.item_indices, real.item_indices)


def test_choices_over_a_users_own_rows_alone_are_asked_for():
    data = dataset()
    seen = rows_only(data, data.indptr[:-1], data.indptr[:-1] + 2)
    cases = cases_of(seen, np.array([3]), np.array([[1, 2]], np.int32))
    assert (cases.first[0], cases.stop[0]) == (6, 8)
    assert np.exp(log_choice(PopularityUser(seen), cases)).sum() == pytest.approx(1)


def paths(n_users=60, n_items=30, length=12):
    """Users who walk along the catalogue in steps of one from anywhere, and like even items."""
    starts = np.random.default_rng(0).integers(n_items, size=n_users)
    items = (starts[:, None] + np.arange(length)) % n_items
    stars = np.where(items % 2, 2.0, 4.0).astype(np.float32)
    base = make_dataset(n_users=n_users, n_items=n_items, length=length)
    return replace(base, item_indices=items.ravel().astype(np.int32), ratings=stars.ravel())


def test_the_second_family_takes_what_others_took_next_and_likes_what_others_liked():
    data = paths()
    model = SequenceUser.made(data)
    users = np.arange(data.n_users)
    last = data.item_indices[data.indptr[1:] - 1]
    shown = np.stack([(last + 1) % 30, (last + 10) % 30, (last + 15) % 30], axis=1).astype(np.int32)
    cases = cases_of(data, users, shown)
    taken, liked = model.log_choice(cases, "taken"), model.log_choice(cases)
    assert np.exp(taken).sum(1) == pytest.approx(np.ones(len(users)))
    assert (taken.argmax(1) == 0).mean() > 0.9
    gained = (liked[:, 0] - liked[:, 1]) - (taken[:, 0] - taken[:, 1])  # of two items one is even
    assert ((gained > 0) == (shown[:, 0] % 2 == 0)).all()
    yes = model.accepts(cases)
    assert yes[:, 0].min() > 0.5 > yes[:, 2].max()


def test_the_second_family_says_the_same_of_an_item_alone_as_of_the_whole_catalogue():
    data = paths()
    model = SequenceUser.made(data)
    stops = data.indptr[1:] - np.arange(data.n_users) % data.indptr[1]  # some have less of a past than is looked at
    recent = model._recent(data, data.indptr[:-1], stops)
    everything = np.broadcast_to(np.arange(data.n_items), (data.n_users, data.n_items))
    apart = [model.utilities(recent, everything[:, item, None]) for item in range(data.n_items)]
    assert np.concatenate(apart, axis=1) == pytest.approx(model.utilities(recent, everything), abs=1e-5)


def test_the_second_family_rates_by_item_and_by_what_the_user_gave_before():
    data = paths()
    model = SequenceUser.made(data)
    stars, like = model.rate(data, np.arange(24))
    assert 2 <= stars.min() and stars.max() <= 4
    first, later = np.arange(len(data.ratings)) < 3, np.arange(3, 12)  # of the first user, whose rows are 0 to 11
    before, like_before = model.rate(data, later)
    kinder, kinder_like = model.rate(replace(data, ratings=data.ratings + first.astype(np.float32)), later)
    assert (kinder_like > like_before).all() and (kinder >= before).all() and kinder.sum() > before.sum()
    assert (like > 0.5).tolist() == (data.ratings[:24] > 3).tolist()
    assert set(model.draw_stars(data, np.arange(24), 0)) <= {2.0, 4.0}
    assert model.sitting_lengths(50, 0).min() >= 1


# Cards ----------------------------------------------------------------------------------------------------------------


def test_who_knows_the_future_gets_a_perfect_card(tmp_path):
    card = fidelity(dataset(), Oracle, name="oracle", out=tmp_path, reading=SMALL, users=12, quick=True)
    choice, offers, ratings = (card.section(key) for key in ("choice", "offers", "ratings"))
    assert choice.value("ndcg@1").mean == pytest.approx(100)
    assert choice.value("choice_ece").mean == pytest.approx(0, abs=1e-6)
    assert offers.value("accuracy@1:1").mean == 100 and offers.value("f1@1:9").mean == 100
    assert (ratings.value("rmse").mean, ratings.value("like_auc").mean) == (0, 100)
    assert ratings.value("like_rate") == ratings.value("like_rate", "real")
    assert card.section("agreeableness").value("surplus").mean == 0
    distances = card.section("distances")
    assert distances.value("stars_tv") == distances.value("stars_tv", "floor")
    assert choice.value("ndcg@1", "popularity").mean < 50
    assert set(card.left_out) == {"order", "tstr", "sittings"}


def test_a_whole_card_of_the_floor_is_the_floor(tmp_path):
    card = fidelity(
        dataset(),
        PopularityUser,
        name="popularity",
        out=tmp_path,
        reading=SMALL,
        users=12,
        recommenders=("random", "pop", "item-knn"),
        trained=("pop", "item-knn"),
    )
    columns = [
        (m.values["model"], m.values["popularity"])
        for s in card.sections
        for m in s.measures
        if "popularity" in m.values
    ]
    assert len(columns) > 40 and all(model == floor for model, floor in columns)
    order, tstr = card.section("order"), card.section("tstr")
    assert order.value("order:pop", "real").n == 12
    assert -1 <= order.value("tau").mean <= 1
    assert tstr.value("tstr:pop", "shuffled items") == tstr.value("tstr:pop", "real")
    assert "Order of recommenders" in to_markdown(card)
    html = (tmp_path / "card.html").read_text(encoding="utf-8")
    assert "Fidelity" in (tmp_path / "card.md").read_text(encoding="utf-8") and "Kendall" in html
    assert all(f"<li>{line}</li>" in unescape(html) for line in head(card))
    assert 'id="timelines"' not in html and "<script" not in html  # there is no run to look into
    report = write_report([tmp_path], tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"Fidelity of popularity on {card.dataset}" in report
    row = report[report.index(">NDCG@10<") :]
    assert f"{card.section('choice').value('ndcg@10').mean:.1f}" in row[: row.index("</tr>")]


def test_who_chooses_among_few_has_the_expected_order_alone(tmp_path):
    class Few(PopularityUser):
        most_candidates = 20
        problems = {"missing": 2}

    make = {"reading": SMALL, "users": 12, "recommenders": ("random", "pop", "item-knn"), "trained": ("pop",)}
    card = fidelity(dataset(), Few, name="few", out=tmp_path, **make)
    order = {measure.key: measure.values for measure in card.section("order").measures}
    assert set(order["tau"]) == {"popularity", "floor"}
    assert set(order["expected_tau"]) == {"model", "popularity", "floor"}
    assert set(order["order:pop"]) == {"real", "popularity", "model, expected", "popularity, expected"}
    assert card.left_out["tstr"] == "the user model chooses among 20 items at most, not from all 80"
    assert card.problems == {"missing": 4}  # it is made twice
    assert "problems of answers: missing 4" in to_markdown(card)


def test_a_card_says_what_it_is_of_and_is_made_anew_to_the_same_numbers(tmp_path):
    make = {"name": "popularity", "reading": SMALL, "users": 12, "quick": True}
    first = fidelity(dataset(), PopularityUser, out=tmp_path / "a", **make)
    again = fidelity(dataset(), PopularityUser, out=tmp_path / "b", **make)
    assert first.sections == again.sections and first.identity == again.identity
    other = fidelity(dataset(), PopularityUser, out=tmp_path / "c", seed=7, **make)
    assert other.candidates != first.candidates and other.sections != first.sections
    assert Card.read(tmp_path / "a" / "card.json") == first
    assert first.candidates == Protocol(dataset(), SMALL, users=12).cases.hash
    assert first.left_out["order"] == "it is slow, and a quick card was asked for"


def test_a_card_that_was_stopped_goes_on_where_it_was(tmp_path):
    class Stops(PopularityUser):
        def rate(self, dataset, rows):
            raise KeyboardInterrupt

    make = {"name": "popularity", "out": tmp_path, "reading": SMALL, "users": 12, "quick": True}
    with pytest.raises(KeyboardInterrupt):
        fidelity(dataset(), Stops, **make)
    kept = Card.read(tmp_path / "card.json")
    assert [section.key for section in kept.sections] == ["choice", "offers"]
    with pytest.raises(RunError, match="is there already: pass resume=True"):
        fidelity(dataset(), PopularityUser, **make)
    whole = fidelity(dataset(), PopularityUser, resume=True, **make)
    assert whole.sections[:2] == kept.sections
    assert [section.key for section in whole.sections][-2:] == ["consistency", "sittings"]
    with pytest.raises(RunError, match="of another candidates, seed"):
        fidelity(dataset(), PopularityUser, resume=True, seed=3, **make)


def test_a_file_that_is_no_card_is_refused_by_its_path(tmp_path):
    (tmp_path / "card.json").write_text('{"version": 1}')
    with pytest.raises(RunError, match=r"card\.json is no report card"):
        Card.read(tmp_path / "card.json")


def test_numbers_that_are_not_finite_are_null_in_the_file():
    assert Value.of(float("nan")).mean is None
    found = measured(
        "x", "x", "percent", {"model": [1.0, np.nan]}, np.array([0, 1]), {"nobody": np.array([False, False])}
    )
    assert found.values["model"] == Value(mean=100.0, se=None, n=1)
    assert found.groups["nobody"]["model"] == Value(mean=None, se=None, n=0)
    assert per_user([1.0, np.nan], [0, 1]).tolist()[0] == 1


def test_the_user_model_of_the_docs_gets_a_card(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "fidelity.md").read_text(encoding="utf-8")
    (tmp_path / "newcomer.py").write_text(page.split("```python\n")[1].split("```")[0], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    options = ["--user", "newcomer:make", "--quick", "--users", "30", "--ratings", "90", "--quiet"]
    done = CliRunner().invoke(fidelity_command, [*options, "--out", str(tmp_path / "card")])
    assert done.exit_code == 0, done.output
    choice = Card.read(tmp_path / "card" / "card.json").section("choice")
    assert choice.value("ndcg@10").mean < choice.value("ndcg@10", "popularity").mean


def test_agents_are_not_asked_about_users_they_were_trained_on(tmp_path):
    options = ["--user", "agent", "--model", "starec-nano", "--base-url", "http://127.0.0.1:9/v1", "--quiet"]
    done = CliRunner().invoke(fidelity_command, [*options, "--out", str(tmp_path)], standalone_mode=False)
    assert isinstance(done.exception, InvalidOption) and "--split-file FOLDER/starec.json" in str(done.exception)
    assert not (tmp_path / "card.json").exists()


def test_the_command_writes_the_card_and_names_what_it_does_not_know(tmp_path):
    runner = CliRunner()
    base = ["--dataset", "ml-latest-small", "--out", str(tmp_path / "card"), "--quiet", "--quick", "--users", "40"]
    done = runner.invoke(fidelity_command, [*base, "--user", "popularity", "--ratings", "300"])
    assert done.exit_code == 0, done.output
    whole = json.loads((tmp_path / "card" / "card.json").read_text(encoding="utf-8"))
    assert whole["settings"]["ratings"] == 300 and whole["settings"]["tested_users"] == 40
    assert "written to" in done.output
    wrong = runner.invoke(fidelity_command, [*base, "--user", "popularty"], standalone_mode=False)
    assert "popularity" in str(wrong.exception)
    wrong = runner.invoke(fidelity_command, [*base, "--recommenders", "pop,sasrek"], standalone_mode=False)
    assert "sasrec" in str(wrong.exception)


def test_answers_that_would_be_counted_as_something_else_are_refused():
    questions = asked()
    for method, wrong in (
        ("draw_stars", lambda self, dataset, rows, seed: np.full(len(rows), np.nan)),
        ("draw_stars", lambda self, dataset, rows, seed: np.ones(3)),
        ("rate", lambda self, dataset, rows: np.zeros(len(rows))),
        ("sitting_lengths", lambda self, n, seed: np.zeros(n)),
        ("sitting_lengths", lambda self, n, seed: None),
    ):
        answers = Answers(type("Odd", (PopularityUser,), {method: wrong}), questions)
        with pytest.raises(InvalidOption, match=f"{method} of the user model gave"):
            answers.sitting_lengths(9) if method == "sitting_lengths" else answers.drawn if "draw" in method else (
                answers.rated
            )
    with pytest.raises(InvalidOption, match="a NoneType, which lacks log_choice, accepts, rate"):
        Answers(lambda seen, seed: None, questions).log_choice  # noqa: B018


def test_another_calibration_or_request_field_is_another_card(tmp_path):
    options = {parameter.name: None for parameter in fidelity_command.params} | {"model": ("m",)}
    file = tmp_path / "calibration.json"
    file.write_text("{}")
    changes = {"extra_body": '{"top_k": 1}', "raw_stars": True, "traits": True, "calibration": file}
    found = [settings_of_agents({**options, name: value}) for name, value in changes.items()]
    assert settings_of_agents(options) not in found
    file.write_text("[]")
    assert settings_of_agents({**options, "calibration": file}) != found[-1]


def test_a_folder_that_cant_be_written_is_refused_before_a_model_is_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="can't write to"):
        fidelity(dataset(), lambda seen, seed: pytest.fail("a model was made"), name="x", out=tmp_path / "file")
