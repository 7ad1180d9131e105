"""`starec/Recommend-v0`: a recommender before simulated users."""

from dataclasses import replace
from itertools import pairwise

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from small_twin import small_twin

from starec_env.errors import InvalidOption, InvalidSlate, UnknownName
from starec_env.recommend.calibrate import returning
from starec_env.recommend.env import RecommendEnv
from starec_env.recommend.logged import Mixed, Replay
from starec_env.recommend.met import Met
from starec_env.recommend.responses import Responses
from starec_env.recommend.sequence import SequenceUser
from starec_env.recommend.slates import Slates
from starec_env.recommend.traits import traits_of
from starec_env.recommend.twin import Twin, seen
from starec_env.recommend.vector_env import RecommendVectorEnv
from starec_env.recommend.wrappers import (
    BiasedFeedback,
    DelayedFeedback,
    Drift,
    MissingFeedback,
    NoisyFeedback,
    PickItem,
    TopK,
)
from starec_env.splitmix import seed_word

K, N = 4, 6


@pytest.fixture(scope="module")
def twin() -> Twin:
    return small_twin()


def made(twin: Twin, **options) -> RecommendEnv:
    options = {"responder": twin, "horizon": 12, "max_history": 8, **options}
    return RecommendEnv(twin.dataset, slate_size=K, **options)


def vector(twin: Twin, n: int = N, **options) -> RecommendVectorEnv:
    options = {"horizon": 12, "max_history": 8, **options}
    return RecommendVectorEnv(n, twin.dataset, responder=twin, slate_size=K, **options)


def episode(env: RecommendEnv, rng: np.random.Generator, **reset):
    observation, info = env.reset(**reset)
    found = [(observation, info)]
    over = False
    while not over:
        slate = rng.choice(env.dataset.n_items, K, replace=False)
        observation, reward, left, late, info = env.step(slate)
        over = left or late
        found.append((slate, observation, reward, left, late, info))
    return found


def test_gymnasium_has_no_complaint(twin):
    check_env(made(twin, render_mode="ansi"), skip_render_check=False)


def test_it_is_made_by_name_and_its_spec_makes_it_again(twin):
    env = gymnasium.make("starec/Recommend-v0", dataset=twin.dataset, responder=twin, slate_size=3)
    assert env.unwrapped.slate_size == 3
    assert gymnasium.make(env.spec).unwrapped.responder is twin
    many = gymnasium.make_vec(
        "starec/Recommend-v0", 5, "vector_entry_point", dataset=twin.dataset, responder=twin, slate_size=3
    )
    observation, _ = many.reset(seed=1)
    assert observation["slate"].shape == (5, 3) and observation in many.observation_space


def test_observations_lie_in_their_space_and_say_what_happened(twin):
    env = made(twin)
    items = set()
    for seed in range(6):
        found = episode(env, np.random.default_rng(seed), seed=seed)
        assert found[0][0] in env.observation_space
        before = found[0][0]
        for slate, observation, reward, left, _late, info in found[1:]:
            assert observation in env.observation_space
            assert (observation["slate"] == slate).all() and observation["step"] == before["step"] + 1
            taken = int(observation["taken"])
            rewards = info["rewards"]
            assert rewards["clicks"] == (taken >= 0) and reward == rewards["likes"] and rewards["stay"] == (not left)
            if taken >= 0:
                item = info["item"]
                items.add(item)
                known = observation["history"][observation["history"] >= 0]
                last = len(known) - 1
                assert known[-1] == item == slate[taken] and info["seen"][taken]
                assert observation["places"][last] == taken and observation["ages"][last] == 1
                assert observation["ratings"][last] == rewards["stars"]
                assert rewards["likes"] == (rewards["stars"] > twin.dataset.liked_above)
                assert not env.action_masks()[item]
            else:
                assert info["item"] == -1 and rewards["stars"] == rewards["likes"] == 0
                assert (observation["history"] == before["history"]).all()
            before = observation
    assert len(items) > 5


def test_answers_are_a_function_of_seed_user_visit_and_step(twin):
    env, other = made(twin), made(twin)
    for seed in (3, 4):
        assert str(episode(env, np.random.default_rng(0), seed=seed)) == str(
            episode(other, np.random.default_rng(0), seed=seed)
        )
    user = {"user_id": twin.dataset.user(2).id}
    first = str(episode(env, np.random.default_rng(0), seed=5, options=user))
    again = str(episode(env, np.random.default_rng(0), options=user))  # another visit: other answers
    assert first != again
    assert str(episode(env, np.random.default_rng(0), seed=5, options=user)) == first
    assert str(episode(env, np.random.default_rng(0), options=user)) == again


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_gymnasiums_own_vectors_step_it(mode, twin):
    options = {"dataset": twin.dataset, "responder": twin, "slate_size": K}
    many = gymnasium.make_vec("starec/Recommend-v0", 2, vectorization_mode=mode, **options)
    many.reset(seed=[5, 5])
    single = RecommendEnv(**options)
    single.reset(seed=5)
    over = False
    for seed in range(12):
        slate = np.random.default_rng(seed).choice(twin.dataset.n_items, K, replace=False)
        _, rewards, left, late, info = many.step(np.stack([slate, slate]))
        if over:
            single.reset()
            over = False
            continue
        _, reward, *over, known = single.step(slate)
        over = any(over)
        assert rewards.tolist() == [reward] * 2 and (left | late).tolist() == [over] * 2
        assert info["item"].tolist() == [known["item"]] * 2
    many.close()


def test_what_was_met_is_never_taken(twin):
    env = made(twin)
    env.reset(seed=0, options={"user_id": twin.dataset.user(0).id})
    met = np.flatnonzero(~env.action_masks())[:K]
    for _ in range(12):
        *_, left, late, info = env.step(met)
        assert info["item"] == -1 and info["rewards"]["clicks"] == 0
        if left or late:
            break


def test_the_vector_environment_equals_the_single_one_step_for_step(twin):
    many = vector(twin)
    singles = [made(twin) for _ in range(N)]
    rng = np.random.default_rng(7)
    observation, info = many.reset(seed=11)
    order = []
    for i, env in enumerate(singles):
        env.reset(seed=11)
        order = env._rotation.order
        alone, known = env.reset(seed=11, options={"user_id": twin.dataset.user(int(order[i])).id})
        assert_row(observation, alone, i)
        assert info["user_id"][i] == known["user_id"]
        assert {name: info[name][i] for name in known["traits"]} == known["traits"] and len(known["traits"]) == 4
    over, visited = np.zeros(N, bool), np.arange(N)
    for _ in range(40):
        slates = np.stack([rng.choice(twin.dataset.n_items, K, replace=False) for _ in range(N)])
        observation, rewards, left, late, info = many.step(slates)
        for i, env in enumerate(singles):
            if over[i]:
                visited[i] += N
                alone, _ = env.reset(options={"user_id": twin.dataset.user(int(order[visited[i] % len(order)])).id})
                assert rewards[i] == 0 and not left[i] and not late[i] and not info["_item"][i]
            else:
                alone, reward, gone, cut, known = env.step(slates[i])
                assert (rewards[i], left[i], late[i]) == (reward, gone, cut)
                assert {name: info[name][i] for name in known["rewards"]} == known["rewards"]
                assert info["item"][i] == known["item"]
                assert (info["seen"][i] == known["seen"]).all() and info["_seen"][i]
            assert_row(observation, alone, i)
        over = left | late
    assert 2 * N <= visited.max() < twin.dataset.n_users  # visits ended, others began, and nobody came twice


def assert_row(observation, alone, i):
    for name, value in alone.items():
        assert np.array_equal(observation[name][i], value), name


@pytest.mark.parametrize(
    ("slate", "why"),
    [
        ([0, 1, 2], "it has shape \\(3,\\)"),
        ([0, 1, 2, 2], "item 2 is in it more than once"),
        ([0, 1, 2, 10**6], "there is no item 1000000"),
        ([0, 1, 2, -1], "there is no item -1"),
        ([0, 1, 2, 3.5], "it is of type float64"),
        ("abcd", "it is of type"),
        (None, "it is of type object"),
        ([[0, 1], [2]], "its rows aren't equally long"),
    ],
)
def test_what_is_no_slate_is_refused_and_the_step_can_be_taken_again(slate, why, twin):
    env = made(twin)
    env.reset(seed=0)
    with pytest.raises(InvalidSlate, match=f"is no slate, as {why}.*wanted {K} distinct catalogue indices"):
        env.step(slate)
    env.step([0, 1, 2, 3])
    many = vector(twin)
    many.reset(seed=0)
    if isinstance(slate, list) and len(slate) == K:
        rows = [[0, 1, 2, 3]] * 2 + [slate] + [[0, 1, 2, 3]] * (N - 3)
        with pytest.raises(InvalidSlate, match=why if "type" in why else f"environment 2: .*{why}"):
            many.step(rows)
    many.step([[0, 1, 2, 3]] * N)


def test_only_allowed_items_are_shown(twin):
    allowed = [item.id for item in twin.dataset.items[5:12]]
    env = made(twin, candidates=allowed)
    env.reset(seed=0)
    with pytest.raises(InvalidSlate, match="item 4 isn't among the candidates allowed"):
        env.step([5, 6, 7, 4])
    assert set(np.flatnonzero(env.action_masks())) <= set(range(5, 12))
    assert {*env.action_space.sample()} <= {*range(5, 12)}
    mask = np.zeros(twin.dataset.n_items, bool)
    mask[5:12] = True
    assert made(twin, candidates=mask).action_space == env.action_space != made(twin).action_space


def test_options_that_cannot_be_are_refused(twin):
    with pytest.raises(InvalidOption, match="slate_size is 4, but only 3 items may be shown"):
        made(twin, candidates=[item.id for item in twin.dataset.items[:3]])
    with pytest.raises(InvalidOption, match="slate_size is 100000, but only"):
        RecommendEnv(twin.dataset, responder=twin, slate_size=100_000)
    with pytest.raises(InvalidOption, match="did you mean 'likes'"):
        made(twin, reward="like")
    with pytest.raises(UnknownName, match="did you mean 'horizon'"):
        made(twin, horizont=3)
    with pytest.raises(UnknownName):
        made(twin, users=["nobody"])
    other = replace(twin.dataset, ratings=np.minimum(twin.dataset.ratings, 4))
    with pytest.raises(InvalidOption, match=f"hash {twin.dataset.hash}.*not of.*hash {other.hash}"):
        RecommendEnv(other, responder=twin)
    with pytest.raises(ResetNeeded):
        made(twin).step([0, 1, 2, 3])


def test_the_horizon_truncates_and_leaving_terminates(twin):
    ends = set()
    env = made(twin, horizon=3)
    for seed in range(12):
        *_, (_, observation, _, left, late, info) = episode(env, np.random.default_rng(seed), seed=seed)
        assert left != late and info["left"] == left and observation["step"] <= 3
        ends.add("left" if left else "late")
        with pytest.raises(ResetNeeded):
            env.step([0, 1, 2, 3])
    assert ends == {"left", "late"}


def test_one_item_is_recommended_by_its_index(twin):
    env = RecommendEnv(twin.dataset, responder=twin, slate_size=1, reward="clicks")
    env.reset(seed=0)
    observation, *_ = env.step(3)
    assert observation["slate"].tolist() == [3]
    assert isinstance(env.action_space, Slates) and 3 not in Slates(2, 1) and [1] in Slates(2, 1)


def test_rendering_shows_titles_and_nothing_that_a_terminal_obeys(twin):
    env = made(twin, render_mode="ansi")
    env.reset(seed=0)
    env.step([0, 1, 2, 3])
    text = env.render()
    assert all(title.title in text for title in twin.dataset.items[:4]) and "History" in text


def test_met_items_are_the_same_in_bytes_and_in_bits(monkeypatch):
    rng = np.random.default_rng(0)
    rows, items = rng.integers(5, size=40), rng.integers(30, size=40)
    tables = []
    for most in (1 << 28, 0):
        monkeypatch.setattr("starec_env.recommend.met._MOST_BYTES", most)
        met = Met(5, 30)
        met.add(rows, items)
        met.clear(np.array([2]))
        tables.append(met.has(np.arange(5), np.tile(np.arange(30), (5, 1))))
    assert (tables[0] == tables[1]).all() and tables[0].any() and not tables[0][2].any()


def test_chances_of_answers_are_the_twins(twin):
    n, k = 4000, 5
    visits = twin.open(n, 1)
    rows, users = np.arange(n), np.full(n, 1)
    visits.begin(rows, users, np.arange(n))
    unmet = np.setdiff1d(np.arange(twin.dataset.n_items), twin.dataset.item_indices[: twin.dataset.indptr[2]])[:k]
    slate = np.tile(unmet, (n, 1))
    all_seen = replace(twin, calibration=replace(twin.calibration, look=1.0))
    sure = all_seen.open(n, 1)
    sure.begin(rows, users, np.arange(n))
    given = sure.respond(rows, slate)
    assert given.seen.all()
    state = twin.start[np.array([1])]
    z = twin.utilities(state, unmet[None])
    p = float(twin.p_take(state, z)[0])
    assert abs((given.taken >= 0).mean() - p) < 4 * np.sqrt(p * (1 - p) / n)
    which = np.exp(z[0] - z.max()) / np.exp(z[0] - z.max()).sum()
    shares = np.bincount(given.taken[given.taken >= 0], minlength=k) / (given.taken >= 0).sum()
    assert np.abs(shares - which).max() < 4 * np.sqrt(0.25 / (given.taken >= 0).sum())
    looks = visits.respond(rows, slate).seen.mean(axis=0)
    assert np.abs(looks - twin.calibration.look ** np.arange(k)).max() < 0.03
    stars = given.stars[given.taken >= 0]
    assert set(stars) <= set(twin.calibration.levels) and np.isnan(given.stars[given.taken < 0]).all()
    wanted = (twin.mean_stars(state, unmet[None])[0] * which).sum()
    assert abs(stars.mean() - wanted) < 4 * stars.std() / np.sqrt(len(stars))
    assert abs(given.left.mean() - twin.calibration.leave[0]) < 0.08


def test_who_liked_a_visit_comes_back_within_a_day_the_likelier(twin):
    n, log = 4000, twin.dataset
    rows = np.arange(n)
    shares = []
    for mood in (-1, 0, 1):
        visits = twin.open(n, 1)
        visits.begin(rows, np.full(n, 1), rows)
        visits._mood[:] = mood
        odds = twin.returning / (1 - twin.returning) * np.exp(twin.calibration.mood_leaves * mood)
        p = odds / (1 + odds)
        shares.append(visits.returns(rows).mean())
        assert abs(shares[-1] - p) < 4 * np.sqrt(p * (1 - p) / n)
    assert shares[0] < shares[1] < shares[2]
    users, _, seen_rows = seen(log, twin.stops)
    times = log.timestamps[seen_rows]
    pairs = [later - earlier for earlier, later in pairwise(times.tolist()) if 1800 < later - earlier < 10**6]
    assert twin.returning == pytest.approx(np.mean([pause <= 86400 for pause in pairs]), abs=0.02)
    assert returning(users, times // 86400 * 86400) == returning(users[:50], times[:50]) == 0.2  # declared
    env, paid = made(twin, reward="return", horizon=4), []
    for seed in range(40):
        *before, (*_, reward, left, late, info) = episode(env, np.random.default_rng(seed), seed=seed)
        assert all(step[2] == 0 for step in before[1:]) and info["rewards"]["return"] == reward and (left or late)
        paid.append(reward)
    assert {*paid} == {0.0, 1.0}
    with pytest.raises(InvalidOption, match="reward='return' needs users who come back or don't"):
        made(twin, responder=Replay(log), reward="return")
    env = made(twin, responder=Replay(log), horizon=1)
    env.reset(seed=0)
    assert np.isnan(env.step([0, 1, 2, 3])[4]["rewards"]["return"])


def test_replay_takes_what_the_user_took_next_and_nothing_else(twin):
    log = twin.dataset
    replay = Replay(log)
    visits = replay.open(2)
    visits.begin(np.array([0, 1]), np.array([3, 5]), np.array([0, 0]))
    later = [log.item_indices[replay.stops[user] : log.indptr[user + 1]] for user in (3, 5)]
    known = log.item_indices[log.indptr[3] : replay.stops[3]]
    slates = np.array([[known[0], later[0][2], later[0][1], known[1]], [*later[1][:4]]])
    given = visits.respond(np.array([0, 1]), slates)
    assert given.taken.tolist() == [2, 0] and given.seen.all() and not given.left.any()
    assert given.stars.tolist() == [log.ratings[replay.stops[3] + 1], log.ratings[replay.stops[5]]]
    again = visits.respond(np.array([0, 1]), slates)
    assert again.taken.tolist() == [1, 1]
    env = RecommendEnv(log, responder=replay, slate_size=K)
    env.reset(seed=0, options={"user_id": log.user(3).id})
    for item in later[0][:-1]:
        *_, left, _, info = env.step([item, *known[:3]])
        assert info["item"] == item and not left
    *_, left, _, info = env.step([later[0][-1], *known[:3]])
    assert left and info["item"] == later[0][-1]
    with pytest.raises(InvalidOption, match="stops has shape"):
        Replay(log, np.zeros(3, np.int64))


def test_mixed_users_answer_as_their_kind_does_and_stay_so(twin):
    other = SequenceUser.fit(twin.dataset)
    mixed = Mixed(twin, other, 0.5)
    n = twin.dataset.n_users
    rows = users = np.arange(n)
    slates = np.stack([np.random.default_rng(u).choice(twin.dataset.n_items, K, replace=False) for u in range(n)])
    given = []
    for kind in (mixed, twin, other, Mixed(twin, other, 1.0), Mixed(twin, other, 0.0)):
        visits = kind.open(n, 3)
        visits.begin(rows, users, np.zeros(n, np.int64))
        given.append([visits.respond(rows, slates) for _ in range(3)])
    as_first, as_second = (
        np.all([m.taken == k.taken for m, k in zip(given[0], given[which], strict=True)], axis=0) for which in (1, 2)
    )
    assert (as_first | as_second).all() and 0.2 < as_first.mean() < 1 and not as_first.all() and not as_second.all()
    for whole, part in ((3, 1), (4, 2)):
        assert all(np.array_equal(a.taken, b.taken) for a, b in zip(given[whole], given[part], strict=True))
    with pytest.raises(InvalidOption, match="share=2"):
        Mixed(twin, other, 2)
    with pytest.raises(InvalidOption, match="histories end elsewhere"):
        Mixed(twin, Replay(twin.dataset), 0.5)


def test_by_steps_the_answer_of_one_kind_is_the_other_kinds_own(twin):
    other = SequenceUser.fit(twin.dataset)
    n = twin.dataset.n_users
    rows = users = np.arange(n)
    slates = np.random.default_rng(0).permuted(np.tile(np.arange(twin.dataset.n_items), (n, 1)), axis=1)[:, :K]

    def visits_of(kind, seed=3):
        visits = kind.open(n, seed)
        visits.begin(rows, users, np.zeros(n, np.int64))
        return visits

    whole, half = visits_of(twin), visits_of(Mixed(twin, twin, 0.5, by="steps"))
    for _ in range(12):  # the same kind twice: each goes on from the other's answers as from its own
        one, two = whole.respond(rows, slates), half.respond(rows, slates)
        assert all(np.array_equal(value, vars(two)[name], equal_nan=True) for name, value in vars(one).items())
    mixed, first = Mixed(twin, other, 0.5, by="steps"), []
    for seed in (3, 3, 4):
        visits, alone = visits_of(mixed, seed), (visits_of(twin, seed), visits_of(other, seed))
        met, of_twin = [set() for _ in users], []
        for _ in range(12):
            given = visits.respond(rows, slates)
            by_kind = [kind.respond(rows, slates) for kind in alone]
            of_twin.append(given.taken == by_kind[0].taken)
            for user in np.flatnonzero(given.taken >= 0):
                item = slates[user, given.taken[user]]
                assert item not in met[user]  # whoever took it first, it is met
                met[user].add(item)
        first.append(np.array(of_twin))
        assert len({*map(len, met)}) > 2
    assert (first[0] == first[1]).all() and (first[0] != first[2]).any()
    # A user of one row is stepped as one among many.
    single = mixed.open(1, 3)
    many = visits_of(mixed)
    single.begin(np.zeros(1, np.int64), users[5:6], np.zeros(1, np.int64))
    for _ in range(40):
        assert single.respond(np.zeros(1, np.int64), slates[5:6]).taken[0] == many.respond(rows, slates).taken[5]
    replay = Replay(twin.dataset, twin.stops)
    log = visits_of(Mixed(twin, replay, 0.0, by="steps"))
    later = np.array([twin.dataset.item_indices[stop] for stop in twin.stops])
    rest = np.stack([np.setdiff1d(np.arange(twin.dataset.n_items), [item])[: K - 1] for item in later])
    assert (log.respond(rows, np.column_stack([later, rest])).taken == 0).all()
    with pytest.raises(InvalidOption, match="did you mean 'steps'"):
        Mixed(twin, other, 0.5, by="step")

    class Deaf:
        dataset, stops = twin.dataset, twin.stops

        def open(self, n, seed=0):
            return object()

    with pytest.raises(InvalidOption, match="object can't go on from another's answers.*mix by users"):
        Mixed(twin, Deaf(), 0.5, by="steps").open(1)


def test_the_second_kind_of_user_likes_what_its_neighbours_liked(twin):
    log = twin.dataset
    user = SequenceUser.fit(log)
    assert user.calibration.near > 0 and (user.stops == twin.stops).all()
    env = RecommendEnv(log, responder=user, slate_size=K)
    env.reset(seed=1)
    for _ in range(5):
        *_, left, late, _ = env.step(env.action_space.sample(mask=env.action_masks()))
        if left or late:
            env.reset()
    rows = np.flatnonzero(np.arange(log.n_interactions) - log.indptr[log.owner] >= 15)
    mean, like = user.rate(log, rows)
    assert ((mean >= 1) & (mean <= 5)).all()  # that of a user, whose taste for one half of the items it can't know
    assert ((like >= 0) & (like <= 1)).all() and set(user.draw_stars(log, rows, 0).tolist()) <= {1, 2, 3, 4, 5}
    after = np.arange(log.n_interactions) >= user.stops[log.owner]
    changed = replace(log, ratings=np.where(after, 6 - log.ratings, log.ratings).astype(np.float32))
    again = SequenceUser.fit(changed, stops=user.stops)  # sees nothing of what is held out
    assert np.array_equal(again.item_stars, user.item_stars) and again.calibration.near == user.calibration.near


# Wrappers -------------------------------------------------------------------------------------------------------------


def played(env, seed=0, steps=30):
    rng, found = np.random.default_rng(seed), [env.reset(seed=seed)]
    for _ in range(steps):
        action = rng.choice(env.unwrapped.dataset.n_items, K, replace=False)
        found.append(env.step(action))
        if found[-1][2] or found[-1][3]:
            found.append(env.reset())
    return found


def test_top_k_shows_the_highest_scores_not_met(twin):
    env = TopK(made(twin))
    env.reset(seed=0)
    scores = np.linspace(1, 0, twin.dataset.n_items)
    may = np.flatnonzero(env.unwrapped.action_masks())
    observation, *_ = env.step(scores)
    assert observation["slate"].tolist() == may[:K].tolist()
    with pytest.raises(InvalidSlate, match="wanted 40 numbers, none NaN"):
        env.step(scores * np.nan)
    assert env.action_space.shape == (twin.dataset.n_items,)


def test_one_item_is_picked_under_a_mask(twin):
    env = PickItem(RecommendEnv(twin.dataset, responder=twin, slate_size=1))
    env.reset(seed=0)
    item = int(np.flatnonzero(env.action_masks())[0])
    observation, *_ = env.step(item)
    assert observation["slate"].tolist() == [item] and env.action_space.n == twin.dataset.n_items
    with pytest.raises(InvalidOption, match="slate_size is 4"):
        PickItem(made(twin))


def test_delayed_feedback_comes_later_and_is_all_paid(twin):
    plain, late = made(twin), DelayedFeedback(made(twin), 2)
    truth, seen = played(plain), played(late)
    sums = [0.0, 0.0]
    for at, (a, b) in enumerate(zip(truth, seen, strict=True)):
        if len(a) == 2:
            begun = at
            assert sums[0] == sums[1]
            continue
        sums = [sums[0] + a[1], sums[1] + b[1]]
        before = truth[max(begun, at - 2)][0]
        assert all(np.array_equal(b[0][name], before[name]) for name in ("history", "ratings", "taken", "slate"))
        assert b[0]["step"] == a[0]["step"]
    assert sums[0] > 0


def test_missing_noisy_and_biased_ratings_are_what_is_seen_and_rewarded(twin):
    truth = played(made(twin, reward="stars"))
    for wrapper, good in (
        (lambda env: MissingFeedback(env, 1.0), lambda said, real: said == 0),
        (lambda env: BiasedFeedback(env, 1), lambda said, real: said == min(5, real + 1)),
        (lambda env: NoisyFeedback(env, 1.0), lambda said, real: said in (1, 2, 3, 4, 5)),
        (lambda env: NoisyFeedback(env, 0.0), lambda said, real: said == real),
    ):
        found = played(wrapper(made(twin, reward="stars")))
        taken = 0
        for a, b in zip(truth, found, strict=True):
            if len(a) > 2 and a[4]["item"] >= 0:
                taken += 1
                real = a[4]["rewards"]["stars"]
                assert b[4]["rewards"] == a[4]["rewards"] and good(b[1], real)
                last = int((b[0]["history"] >= 0).sum()) - 1
                assert b[0]["ratings"][last] == b[1] == np.nan_to_num(b[4]["reported"])
        assert taken > 3
    likes = played(BiasedFeedback(made(twin, reward="likes"), 5))
    assert all(step[1] == step[4]["rewards"]["clicks"] for step in likes if len(step) > 2)
    with pytest.raises(InvalidOption, match="chance=2"):
        NoisyFeedback(made(twin), 2)


def test_after_a_drift_users_take_items_for_one_another(twin):
    env = Drift(made(twin), visits=1, share=1.0)
    plain = made(twin)
    slate = np.arange(K)
    for drifted in (False, True):
        env.reset(seed=4)
        plain.reset(seed=4)
        assert env.drifted == drifted
        there, *_, info = env.step(slate)
        swapped = env.get_wrapper_attr("_answered_as")[slate] if drifted else slate
        here, *_, known = plain.step(swapped)
        assert there["slate"].tolist() == slate.tolist() and int(there["taken"]) == int(here["taken"])
        assert info["rewards"] == known["rewards"]
        if info["item"] >= 0:
            assert info["item"] == slate[int(there["taken"])] and info["item"] in there["history"]


WRAPPERS = {
    TopK: {},
    PickItem: {},
    DelayedFeedback: {"steps": 1},
    NoisyFeedback: {"chance": 0.5},
    MissingFeedback: {"chance": 0.5},
    BiasedFeedback: {"shift": 1.0},
    Drift: {"visits": 1},
}


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda wrapper: wrapper.__name__)
def test_the_native_vector_form_is_refused_with_the_way_that_works(wrapper, twin):
    with pytest.raises(InvalidOption, match='RecommendVectorEnv steps many users at once.*"sync"'):
        wrapper(vector(twin), **WRAPPERS[wrapper])
    k = 1 if wrapper is PickItem else K
    options = {"dataset": twin.dataset, "responder": twin, "slate_size": k}
    wrappers = [lambda env: wrapper(env, **WRAPPERS[wrapper])]
    many = gymnasium.make_vec("starec/Recommend-v0", 2, vectorization_mode="sync", wrappers=wrappers, **options)
    many.reset(seed=0)
    many.action_space.seed(0)
    infos = [many.step(many.action_space.sample())[4] for _ in range(20)]
    assert len({*np.concatenate([info["item"] for info in infos if "item" in info]).tolist()}) > 1


def test_wrappers_are_for_recommenders_alone(twin):
    with pytest.raises(InvalidOption, match="this wraps starec/Recommend-v0"):
        TopK(gymnasium.make("CartPole-v1"))


def test_traits_are_those_of_the_rows_that_a_recommender_knows(twin):
    log, env = twin.dataset, made(twin)
    known = traits_of(log, twin.stops)
    for user in range(4):
        _, info = env.reset(seed=0, options={"user_id": log.user(user).id})
        assert info["traits"] == {name: ranks[user] for name, ranks in vars(known).items()}
    liked = np.array([log.liked[log.indptr[u] : twin.stops[u]].mean() for u in range(log.n_users)])
    assert known.pickiness[liked.argmin()] > known.pickiness[liked.argmax()]


@pytest.mark.parametrize("wrong", [True, 2.7, float("nan"), None, "3"])
def test_a_pick_that_is_no_index_is_refused_and_not_rounded(wrong, twin):
    env = PickItem(RecommendEnv(twin.dataset, responder=twin, slate_size=1))
    env.reset(seed=0)
    with pytest.raises(InvalidSlate):
        env.step(wrong)
    assert env.step(np.int64(3))[0]["slate"].tolist() == [3]


def test_true_is_no_item_even_among_indices(twin):
    env = made(twin)
    env.reset(seed=0)
    with pytest.raises(InvalidSlate, match="a truth value is no index"):
        env.step([5, True, 7, 8])


def test_a_mask_of_another_length_is_not_repeated(twin):
    with pytest.raises(ValueError, match=r"shape \(1,\): wanted \(40,\)"):
        made(twin).action_space.sample(mask=np.ones(1, np.int8))


def test_wrappers_in_an_order_that_would_change_what_they_mean_are_refused(twin):
    with pytest.raises(InvalidOption, match="put DelayedFeedback around NoisyFeedback"):
        NoisyFeedback(DelayedFeedback(made(twin), 2), 0.5)
    with pytest.raises(InvalidOption, match="put TopK around Drift"):
        Drift(TopK(made(twin)), visits=0)
    with pytest.raises(ResetNeeded):
        TopK(Drift(made(twin), visits=0)).step(np.zeros(twin.dataset.n_items))


class Silent:
    """Users who take the first item of every slate, rate nothing and stay."""

    def __init__(self, twin: Twin) -> None:
        self.dataset, self.stops = twin.dataset, twin.stops

    def open(self, n: int, seed: int = 0) -> "Silent":
        return self

    def begin(self, rows, users, visits, anew=False) -> None:
        pass

    def respond(self, rows, slates) -> Responses:
        n, no = len(rows), np.zeros(len(rows), bool)
        seen = np.ones(slates.shape, bool)
        return Responses(seen, np.zeros(n, np.int64), np.full(n, np.nan, np.float32), no, no)


def test_who_gave_no_stars_is_not_reported_to_have_given_any(twin):
    for wrap in (lambda env: BiasedFeedback(env, 1), lambda env: NoisyFeedback(env, 1.0)):
        env = wrap(RecommendEnv(twin.dataset, responder=Silent(twin), slate_size=K, reward="stars"))
        env.reset(seed=0)
        observation, reward, *_, info = env.step([0, 1, 2, 3])
        assert np.isnan(info["reported"]) and reward == 0 == info["rewards"]["stars"]
        assert observation["taken"] == 0 and observation["ratings"][(observation["history"] >= 0).sum() - 1] == 0


def test_stops_that_are_not_the_users_own_rows_are_refused(twin):
    log = twin.dataset
    for wrong in (np.full(log.n_users, 5), log.indptr[1:] + 3, log.indptr[1:] - 2.5, log.indptr[1:2]):
        for make in (
            Replay,
            lambda data, stops: Twin.fit(data, stops=stops),
            lambda d, s: SequenceUser.fit(d, stops=s),
        ):
            with pytest.raises(InvalidOption, match=r"stops has .* wanted a row"):
                make(log, wrong)
    silent = Silent(twin)
    silent.stops = log.indptr[1:] + 3
    with pytest.raises(InvalidOption, match=r"stops has 27 for user 0: wanted a row of the data set from 0 to 24"):
        RecommendEnv(log, responder=silent)
    with pytest.raises(InvalidOption, match="a int is no responder, it lacks dataset, stops, open"):
        RecommendEnv(log, responder=3)


def test_seeds_beyond_64_bits_are_seeds_of_their_own(twin):
    assert seed_word(5) == 5 and len({int(seed_word(seed)) for seed in (5, 5 + 2**64, 5 + 2**65, 5 + 2**128)}) == 4
    slates = np.tile(np.arange(40), (80, 1))
    who = np.arange(80)
    answers = []
    for seed in (5, 5 + 2**64):
        visits = twin.open(80, seed)
        visits.begin(who, who, np.zeros(80, np.int64))
        answers.append(visits.respond(who, slates).taken)
    assert (answers[0] != answers[1]).sum() > 20


def test_where_all_visits_are_over_nobody_is_asked(twin):
    mixed = Mixed(twin, Replay(twin.dataset, twin.stops), 0.5)
    envs = RecommendVectorEnv(3, twin.dataset, responder=mixed, slate_size=K, horizon=1)
    envs.reset(seed=0)
    slates = np.tile(np.arange(K), (3, 1))
    envs.step(slates)
    observation, rewards, *_ = envs.step(slates)
    assert (observation["step"] == 0).all() and (rewards == 0).all()
    observation, rewards, over, late, _ = envs.step(slates)
    assert (observation["step"] == 1).all() and (over | late).all()
