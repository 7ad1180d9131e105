"""Evaluating rankers of every kind: scorers, sync and async rankers, failing ones, and runs that go on."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from support import make_dataset

from starec_env.data import prepare
from starec_env.data.cut import catalogue_only
from starec_env.errors import EndpointError, RunError
from starec_env.replay.stream import Stream
from starec_env.types import Ranker, Ranking
from starec_eval.evaluate import evaluate
from starec_eval.protocol import Protocol, Reading
from starec_eval.rankers import ItemKNN, NextId, Pop, Random, Scorer, build


@pytest.fixture(scope="module")
def protocol():
    dataset = make_dataset(n_users=60, n_items=80, length=20)
    return Protocol(dataset, Reading(min_interactions=2), users=20)


class Oracle:
    """Knows the answers, as no real ranker can: puts the target at a place of one's choice."""

    def __init__(self, protocol, place=0, keep=20):
        cases = protocol.cases
        keys = zip(cases.user_ids, map(tuple, cases.candidates.tolist()), strict=True)
        self.targets = dict(zip(keys, cases.targets.tolist(), strict=True))
        self.place, self.keep, self.asked = place, keep, 0

    def rank(self, query):
        self.asked += 1
        target = self.targets[query.user.id, tuple(query.candidates.indices.tolist())]
        order = [place for place in range(20) if place != target]
        order.insert(self.place, target)
        return Ranking(order=tuple(order[: self.keep]))


class AsyncOracle(Oracle):
    name = "async-oracle"

    async def arank(self, query):
        return Oracle.rank(self, query)


def test_an_oracle_scores_a_hundred_and_the_reverse_oracle_the_floor(protocol):
    results = evaluate(
        [("oracle", Oracle(protocol)), ("reverse", Oracle(protocol, 19)), AsyncOracle(protocol)], protocol
    )
    best, worst, same = results.rows
    for k in (1, 5, 10, 20):
        assert best[f"ndcg@{k}"] == same[f"ndcg@{k}"] == 100
    assert [worst[f"ndcg@{k}"] for k in (1, 5, 10)] == [0, 0, 0]
    assert worst["ndcg@20"] == pytest.approx(100 / np.log2(21), abs=1e-3)
    assert same["method"] == "async-oracle" and best["mrr"] == 100


def test_every_scorer_is_a_ranker_and_scores_the_same_either_way(protocol):
    knn = ItemKNN().fit(protocol.training("sample"))
    assert isinstance(knn, Ranker)

    class Wrapped:
        rank = staticmethod(knn.rank)

    results = evaluate([ItemKNN(), ("wrapped", Wrapped())], protocol)
    assert (results.methods[0].ranks == results.methods[1].ranks).all()


def test_pop_counts_whom_the_reading_says_and_full_trains_on_all(protocol):
    pop, knn = Pop(), ItemKNN(train="full")
    evaluate([pop, knn], protocol)
    assert pop.counts.sum() == protocol.training("full").n_interactions
    assert knn._fitted_on is protocol.training("full")


def test_a_ranker_that_returns_half_a_list_is_recorded_with_user_and_cause(protocol):
    results = evaluate([("half", Oracle(protocol, place=15, keep=10))], protocol)
    row, scored = results.rows[0], results.methods[0]
    assert row["missing"] == 1 and row["ndcg@20"] == 0 and row["violations"] == 60
    assert scored.violations[0] == f"user {protocol.cases.user_ids[0]}, repetition 0: missing: 10"


@pytest.mark.parametrize("order", [(0, 0, 1), (0, 25)])
def test_a_ranking_that_is_none_ranks_nothing(protocol, order):
    class Wrong:
        def rank(self, query):
            return Ranking(order=order)

    scored = evaluate([("wrong", Wrong())], protocol).methods[0]
    assert np.isnan(scored.ranks).all() and "not a ranking of 20" in scored.violations[0]


class Failing(Scorer):
    name = "failing"

    def fit(self, train):
        raise ValueError("no luck")


def test_a_method_that_fails_has_its_error_in_its_row_and_the_others_go_on(protocol):
    failed, good = evaluate([Failing(), Random()], protocol).rows
    assert failed["error"] == "ValueError: no luck" and failed["ndcg@10"] is None
    assert good["error"] is None and good["ndcg@10"] > 0


class Dying(AsyncOracle):
    """Fails for one user after so many answers."""

    async def arank(self, query):
        if query.user.id == self.victim:
            raise EndpointError("the server is gone", "connection")
        return await super().arank(query)


@pytest.mark.parametrize("kind", ["fails", "is killed"])
def test_an_evaluation_goes_on_where_it_stopped_and_asks_nothing_twice(protocol, tmp_path, kind):
    first = Dying(protocol)
    first.victim = protocol.cases.user_ids[7]
    row = evaluate([first], protocol, out=tmp_path, concurrency=3).rows[0]
    assert f"3 of 60 cases failed, the first: user {first.victim}: the server is gone" in row["error"]
    path, kept = tmp_path / "ranks" / "async-oracle.jsonl", 57
    if kind == "is killed":
        text = path.read_text().splitlines(keepends=True)
        path.write_text("".join(text[:31]) + text[31][:9])
        kept = 30
    again = Dying(protocol)
    again.victim = None
    resumed = evaluate([again], protocol, out=tmp_path, resume=True)
    assert again.asked == 60 - kept and resumed.rows[0]["ndcg@1"] == 100
    assert resumed.rows[0]["seconds"] > (row["seconds"] if kind == "fails" else 0)
    unasked = Dying(protocol)
    for _ in range(2):
        finished = evaluate([unasked], protocol, out=tmp_path, resume=True)
        assert (finished.methods[0].ranks == 1).all() and finished.rows[0]["seconds"] == resumed.rows[0]["seconds"]
    assert unasked.asked == 0


def test_ranks_of_other_settings_or_without_resume_are_refused(protocol, tmp_path):
    evaluate([Random(seed=1)], protocol, out=tmp_path)
    with pytest.raises(RunError, match="--resume"):
        evaluate([Random(seed=1)], protocol, out=tmp_path)
    with pytest.raises(RunError, match="another settings"):
        evaluate([Random(seed=2)], protocol, out=tmp_path, resume=True)
    other = Protocol(protocol.loaded, protocol.reading, users=20, seed=9)
    with pytest.raises(RunError, match="another seed, candidates"):
        evaluate([Random(seed=1)], other, out=tmp_path, resume=True)


def test_chance_needs_nobody_to_train_on(protocol):
    dataset = protocol.loaded
    users = dataset.user_ids[Stream(prepare(dataset, min_interactions=2)).users].tolist()
    everybody = Protocol(dataset, Reading(min_interactions=2), users=users, train_users=[])
    random, next_id, knn = evaluate([Random(), NextId(), ItemKNN()], everybody).rows
    assert random["error"] is next_id["error"] is None and random["ndcg@10"] > 0
    assert "no user is left to train on" in knn["error"]


def test_the_next_id_ranks_what_lies_above_the_last_items_id_first_and_learns_nothing(protocol):
    ids = np.random.default_rng(0).permutation(80) * 7
    items = tuple(replace(item, id=int(new)) for item, new in zip(protocol.loaded.items, ids, strict=True))
    renamed = Protocol(replace(protocol.loaded, items=items), protocol.reading, users=20)
    scorer = NextId().fit(catalogue_only(renamed.dataset))
    for case in range(0, 60, 7):
        query = renamed.cases.query(case)
        last, shown = query.history.items[-1].id, [item.id for item in query.candidates]
        expected = sorted(range(20), key=lambda place: (shown[place] < last, abs(shown[place] - last)))
        assert list(scorer.rank(query).order) == expected


@pytest.mark.parametrize(
    ("ranker", "message"),
    [
        (type("Lists", (), {"rank": lambda self, query: [1, 2]})(), "returned a list for user .*Ranking"),
        (type("Nothing", (), {"rank": lambda self, query: None})(), "returned a NoneType for user .*Ranking"),
        (object(), "thing is a object, which can't rank: give it rank\\(query\\)"),
    ],
)
def test_what_is_no_ranker_gets_an_error_that_says_what_would_do(protocol, ranker, message):
    (row,) = evaluate([("thing", ranker)], protocol).rows
    assert re.search(message, row["error"])


async def test_it_works_inside_a_running_event_loop(protocol):
    assert evaluate([AsyncOracle(protocol)], protocol).rows[0]["ndcg@1"] == 100


def test_an_ensemble_evaluates_beside_the_members_it_shares(protocol, tmp_path):
    results = evaluate(build(["item-knn", "markov", "ensemble"]), protocol, out=tmp_path)
    assert not any(row["error"] for row in results.rows)
    assert json.loads((tmp_path / "ranks" / "ensemble.jsonl").read_text().splitlines()[0])["method"] == "ensemble"
