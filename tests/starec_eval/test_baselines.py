"""The classical rankers, against plain references and patterns they must find."""

import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from support import make_dataset, shared_data

from starec_env.data import load_dataset
from starec_env.errors import InvalidOption, MissingExtra, StarecWarning, UnknownName
from starec_env.metrics import ndcg
from starec_eval.evaluate import score_ranks
from starec_eval.protocol import Protocol, Reading
from starec_eval.rankers import BASELINES, BPR, EASE, Ensemble, ItemKNN, Markov, Pop, Random, Scorer, build
from starec_eval.rankers.scorer import ranks_of
from starec_eval.rankers.sequential import Sequential, pieces

QUICK = {"gru4rec": {"epochs": 2}, "sasrec": {"epochs": 2}, "bpr": {"epochs": 2}}


WITHOUT_TORCH = pytest.mark.skipif(find_spec("torch") is None, reason="needs torch: pip install 'starec[baselines]'")


def marked(*names):
    return [pytest.param(name, marks=[WITHOUT_TORCH] if name in QUICK else []) for name in names]


@pytest.fixture(scope="module")
def train():
    return make_dataset(n_users=40, n_items=50, length=16, seed=3)


@pytest.fixture(scope="module")
def cases():
    dataset = make_dataset(n_users=40, n_items=50, length=16, seed=4)
    return Protocol(dataset, Reading(min_interactions=1), users=40).cases


def matrix(train):
    return np.stack([np.bincount(row, minlength=50) for row in train.item_indices.reshape(40, 16)]).astype(float)


def cyclic(n_users=120, n_items=30, length=12):
    """Each user walks through the catalogue in order from a place of the user's own."""
    dataset = make_dataset(n_users=n_users, n_items=n_items, length=length)
    starts = np.random.default_rng(0).integers(n_items, size=n_users)
    walks = (starts[:, None] + np.arange(length)) % n_items
    return replace(dataset, item_indices=walks.ravel().astype(np.int32), ratings=np.full(walks.size, 5, np.float32))


@pytest.mark.parametrize("name", marked(*BASELINES))
def test_a_query_ranks_as_it_does_in_a_batch_and_twice_the_same(name, train, cases):
    scorer = BASELINES[name](seed=7, **QUICK.get(name, {})).fit(train)
    ranks = score_ranks(scorer, cases)
    again = BASELINES[name](seed=7, **QUICK.get(name, {})).fit(train)
    for case in range(0, len(cases), 17):
        ranking = again.rank(cases.query(case))
        assert sorted(ranking.order) == list(range(20))
        assert ranking.rank_of(int(cases.targets[case])) == ranks[case]


def test_equal_scores_are_ordered_by_the_seed_and_never_by_place(cases):
    batch = cases.batch()
    first = np.zeros(len(cases), int)
    ranks = [ranks_of(np.zeros(batch.candidates.shape), first, batch, seed) for seed in range(50)]
    assert np.mean(ranks) == pytest.approx(10.5, abs=0.3)
    assert np.bincount(np.concatenate(ranks).astype(int))[1:].min() > 0.6 * 50 * len(cases) / 20
    assert (ranks[0] != ranks[1]).any()


def test_ranks_of_ties_are_a_permutation(cases):
    batch, scores = cases.batch(), np.zeros(cases.candidates.shape)
    scores[:, 5] = 1
    ranks = np.stack([ranks_of(scores, np.full(len(cases), place), batch, 0) for place in range(20)], axis=1)
    assert (np.sort(ranks, axis=1) == np.arange(1, 21)).all() and (ranks[:, 5] == 1).all()


def test_random_scores_what_chance_expects(cases):
    ranks = np.concatenate([score_ranks(Random(seed=seed), cases) for seed in range(500)])
    found = [100 * ndcg(ranks, k).mean() for k in (1, 5, 10, 20)]
    assert found == pytest.approx([5.0, 14.7, 22.7, 35.2], abs=0.5)


def test_random_scores_what_chance_expects_on_movielens_1m_over_twenty_seeds():
    dataset = load_dataset("ml-1m", shared_data("ml-1m"))
    ranks = [score_ranks(Random(seed=seed), Protocol(dataset, seed=seed).cases) for seed in range(20)]
    found = np.array([[100 * ndcg(each, k).mean() for k in (1, 5, 10, 20)] for each in ranks])
    print(f"mean {found.mean(0).round(2)}, lowest {found.min(0).round(2)}, highest {found.max(0).round(2)}")
    assert found.mean(axis=0) == pytest.approx([5.0, 14.7, 22.7, 35.2], abs=0.5)


def test_popularity_counts_interactions(train, cases):
    scores = Pop().fit(train).scores(cases.batch())
    assert (scores == matrix(train).sum(axis=0)[cases.candidates]).all()


def test_item_knn_is_the_decayed_sum_of_shrunk_cosines(train, cases):
    x = matrix(train)
    together = x.T @ x
    np.fill_diagonal(together, 0)
    counts = x.sum(axis=0)
    similarity = together / (np.sqrt(np.outer(counts, counts)) + 20)
    scores = ItemKNN().fit(train).scores(cases.batch())
    for case in range(0, len(cases), 13):
        history = cases.query(case).history.item_indices[::-1]
        expected = sum(0.8**age * similarity[cases.candidates[case], item] for age, item in enumerate(history))
        assert scores[case] == pytest.approx(expected)


def test_ease_is_the_closed_form(train, cases):
    x = matrix(train)
    inverse = np.linalg.inv(x.T @ x + 500 * np.eye(50))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    scores = EASE().fit(train).scores(cases.batch())
    history = cases.query(0).history.item_indices
    assert scores[0] == pytest.approx(weights[history][:, cases.candidates[0]].sum(axis=0))


def test_ease_scores_items_that_training_never_met_zero(train, cases):
    fewer = replace(train, item_indices=train.item_indices % 25)
    scores = EASE().fit(fewer).scores(cases.batch())
    assert (scores[cases.candidates >= 25] == 0).all() and (scores[cases.candidates < 25] != 0).any()


@pytest.mark.parametrize("name", marked("markov", "item-knn", "gru4rec", "sasrec"))
def test_sequence_models_find_what_comes_next(name):
    dataset = cyclic()
    protocol = Protocol(dataset, Reading(min_interactions=1), users=40, n_train=80, n_candidates=15)
    settings = {"epochs": 25, "lr": 1e-2, "dropout": 0.1} if name in QUICK else {}
    ranks = score_ranks(BASELINES[name](**settings).fit(protocol.training("sample")), protocol.cases)
    assert ndcg(ranks, 10).mean() > 0.8


@WITHOUT_TORCH
@pytest.mark.parametrize("known", [True, False])
def test_bpr_finds_a_users_taste_whether_it_met_the_user_or_not(known):
    dataset, rng = make_dataset(n_users=120, n_items=60, length=14), np.random.default_rng(1)
    halves = np.stack([rng.permutation(30)[:14] + 30 * (user % 2) for user in range(120)])
    dataset = replace(dataset, item_indices=halves.ravel().astype(np.int32), ratings=np.full(1680, 5, np.float32))
    protocol = Protocol(dataset, Reading(min_interactions=1, transductive=known), users=40, n_train=80)
    ranks = score_ranks(BPR().fit(protocol.training("sample")), protocol.cases)
    # A user's half is 30 items of which training has 13: among the items not taken, what comes next is drawn often.
    assert ndcg(ranks, 10).mean() > 0.42 > 2 * 0.2


@WITHOUT_TORCH
def test_bpr_never_draws_an_item_that_the_user_took(train):
    import torch

    owners = torch.from_numpy(train.owner)
    pairs = (owners * train.n_items + torch.from_numpy(train.item_indices.astype(np.int64))).unique()
    other = BPR()._untaken(torch, owners, pairs, train.n_items, torch.Generator().manual_seed(0))
    assert not torch.isin(owners * train.n_items + other, pairs).any()


@WITHOUT_TORCH
@pytest.mark.parametrize("name", ["bpr", "gru4rec", "sasrec"])
def test_a_second_fit_of_the_same_data_and_settings_is_read_and_scores_the_same(name, train, cases, tmp_path):
    quick = {"epochs": 2}
    first = BASELINES[name](**quick).fitted(train, tmp_path)
    (file,) = tmp_path.iterdir()
    second = BASELINES[name](**quick)
    second.fit = None  # it isn't called
    assert (second.fitted(train, tmp_path).scores(cases.batch()) == first.scores(cases.batch())).all()
    BASELINES[name](**quick, seed=1).fitted(train, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    file.write_bytes(b"damaged")
    with pytest.warns(StarecWarning, match="fitted again"):
        BASELINES[name](**quick).fitted(train, tmp_path)
    assert (BASELINES[name](**quick).fitted(train, tmp_path).scores(cases.batch()) == first.scores(cases.batch())).all()


@WITHOUT_TORCH
def test_bpr_without_folding_in_ranks_strangers_by_the_items_biases(train, cases):
    scorer, batch = BPR(epochs=2, fold_in=False).fit(train), cases.batch()
    scorer.users = dict.fromkeys(list(scorer.users)[:20], 0)
    stranger = np.array([user not in scorer.users for user in batch.users])
    biases = scorer.tables[2].numpy()[batch.candidates]
    same = (scorer.scores(batch) == biases).all(axis=1)
    assert (same == stranger).all() and 0 < stranger.sum() < len(stranger)


@WITHOUT_TORCH
def test_training_leaves_the_callers_torch_random_state_alone(train):
    import torch

    torch.manual_seed(1)
    expected = torch.rand(3).tolist()
    torch.manual_seed(1)
    BASELINES["gru4rec"](epochs=1).fit(train)
    assert torch.rand(3).tolist() == expected


def test_without_torch_the_error_names_the_extra(train, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in QUICK:
        with pytest.raises(MissingExtra, match=r"starec\[baselines\]"):
            BASELINES[name]().fit(train)


def test_long_sequences_are_cut_into_pieces_that_make_each_item_a_target_once(train):
    parts, ends = pieces(train, 6)
    targets = np.sort(parts[:, 1:][parts[:, 1:] > 0]) - 1
    assert (targets == np.sort(train.item_indices.reshape(40, 16)[:, 1:].ravel())).all()
    assert ends.sum() == 40 and (parts[ends][:, -1] - 1 == train.item_indices.reshape(40, 16)[:, -1]).all()


@WITHOUT_TORCH
@WITHOUT_TORCH
def test_training_stops_only_after_checks_of_fifty_steps_or_more(train, monkeypatch):
    found = [0.1, 0.1, 0.2, 0.1, 0.1, 0.1]
    checks, steps = iter(found), []
    loss = Sequential._loss
    monkeypatch.setattr(Sequential, "_loss", lambda self, *args: steps.append(1) or loss(self, *args))
    monkeypatch.setattr(Sequential, "_validate", lambda *args: next(checks))
    BASELINES["gru4rec"](batch_size=3, patience=3).fit(train)  # 14 steps an epoch, so a check every 4 epochs
    assert len(steps) == 6 * 4 * 14 and not list(checks)


@pytest.mark.parametrize("name", ["gru4rec", "sasrec"])
def test_sequences_longer_than_the_model_train_and_score(name, train, cases):
    scorer = BASELINES[name](epochs=1, max_length=6).fit(train)
    assert np.isfinite(scorer.scores(cases.batch())).all()


class Broken(Scorer):
    name = "broken"

    def scores(self, batch):
        return np.where(np.arange(len(batch))[:, None] == 4, np.nan, np.zeros(batch.candidates.shape))


def test_a_nan_score_is_an_error_that_names_user_and_method(cases):
    with pytest.raises(InvalidOption, match=f"broken gave user {cases.user_ids[4]} a NaN"):
        score_ranks(Broken(), cases)


def test_an_ensemble_by_rank_is_bordas_count_and_by_score_the_mean_of_standard_scores(train, cases):
    members = [ItemKNN().fit(train), Markov().fit(train)]
    batch = cases.batch()
    parts = [member.scores(batch) for member in members]
    scaled = [(part - part.mean(1, keepdims=True)) / part.std(1, keepdims=True) for part in parts]
    assert Ensemble(members).scores(batch) == pytest.approx(np.mean(scaled, axis=0))
    pop = Pop().fit(train)
    counts, places = pop.scores(batch), Ensemble([pop], by="rank").scores(batch)
    assert places.sum(axis=1) == pytest.approx(-190)
    above = counts[:, :, None] > counts[:, None, :]
    assert (above == (places[:, :, None] > places[:, None, :])).all()


def test_methods_are_built_by_name_and_an_ensemble_shares_its_members():
    knn, full, mix, everything = build(["item-knn", "item-knn-full", "ensemble", "ensemble-full"], seed=3)
    assert (knn.label, full.label, full.train, mix.label, knn.seed) == (
        "item-knn",
        "item-knn-full",
        "full",
        "ensemble",
        3,
    )
    assert mix.members == [knn] and everything.members == [full]
    assert [member.label for member in build(["ensemble"])[0].members] == list(BASELINES)[3:]
    with pytest.raises(UnknownName, match="did you mean 'sasrec'"):
        build(["sasrek"])
