"""Wrappers for RL libraries: plain actions and observations, and stable-baselines3 training on them."""

import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from support import make_dataset

from starec_env.errors import InvalidOption, InvalidRanking, UnknownName
from starec_env.replay.stream import Stream
from starec_env.types import Dataset, History, Item
from starec_env.wrappers import ItemFeatures, PickOne, ScoreActions, SlateActions, item_features

ENV = "starec/UserFeedback-v0"
Wrap = Callable[[gymnasium.Env[Any, Any]], gymnasium.Env[Any, Any]]
ACTIONS: dict[str, Wrap] = {"score": ScoreActions, "pick": PickOne, "slate": lambda env: SlateActions(env, 4)}


def make(dataset: Dataset, **options: Any) -> gymnasium.Env[Any, Any]:
    return gymnasium.make(ENV, dataset=dataset, **options)


@pytest.mark.parametrize("wrap", [*ACTIONS.values(), ItemFeatures], ids=[*ACTIONS, "features"])
def test_the_native_vector_form_is_refused_with_the_way_that_works(tiny_dataset: Dataset, wrap: Any) -> None:
    many = gymnasium.make_vec(ENV, 2, vectorization_mode="vector_entry_point", dataset=tiny_dataset)
    with pytest.raises(InvalidOption, match='UserFeedbackVectorEnv steps many users at once.*"sync"'):
        wrap(many)
    wrapped = gymnasium.make_vec(ENV, 2, vectorization_mode="sync", wrappers=[wrap], dataset=tiny_dataset)
    assert wrapped.reset(seed=0)[0] is not None


@pytest.mark.parametrize("observed", [False, True], ids=["indices", "features"])
@pytest.mark.parametrize("name", ACTIONS)
def test_gymnasiums_checker_finds_nothing(tiny_dataset: Dataset, name: str, observed: bool) -> None:
    env = ACTIONS[name](make(tiny_dataset))
    env = ItemFeatures(env) if observed else env
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*different from the unwrapped version")
        check_env(env, skip_render_check=True)
    for seed in range(3):
        observation, _ = env.reset(seed=seed)
        ended = False
        while not ended:
            assert observation in env.observation_space
            observation, _, ended, _, _ = env.step(env.action_space.sample())
        assert observation in env.observation_space


@pytest.mark.parametrize("name", ACTIONS)
def test_a_wrapped_environment_is_pickled_and_made_again_by_its_spec(name: str) -> None:
    env = ItemFeatures(ACTIONS[name](gymnasium.make(ENV, seed=5)), decay=0.9)
    env.reset()
    twin = pickle.loads(pickle.dumps(env))
    action = env.action_space.sample()
    (observation, *answer), (expected, *wanted) = env.step(action), twin.step(action)
    assert np.array_equal(observation, expected)
    assert answer == wanted
    if name != "slate":  # made by a lambda here
        assert env.spec is not None
        for spec in (env.spec, gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json())):
            again = gymnasium.make(spec)
            assert np.array_equal(again.reset(seed=5)[0], env.reset(seed=5)[0])


def test_gymnasiums_vectors_take_wrapped_environments(tiny_dataset: Dataset) -> None:
    makers = [lambda: PickOne(ItemFeatures(make(tiny_dataset)))] * 3
    envs = gymnasium.vector.SyncVectorEnv(makers)
    observations, _ = envs.reset(seed=0)
    for _ in range(12):
        assert observations in envs.observation_space
        observations, *_ = envs.step(envs.action_space.sample())
    settings: dict[str, Any] = {"vectorization_mode": "sync", "wrappers": [ItemFeatures, ScoreActions]}
    wrapped = gymnasium.make_vec(ENV, num_envs=2, dataset=tiny_dataset, **settings)
    assert wrapped.reset(seed=0)[0].shape == (2, observations.shape[1])


def test_scores_rank_from_the_highest_down_and_ties_as_shown(tiny_dataset: Dataset) -> None:
    env = ScoreActions(make(tiny_dataset))
    scores = np.zeros(20, np.float32)
    scores[[4, 9]], scores[2] = 0.5, -3
    order = env.action(scores).tolist()
    assert order[:4] == [4, 9, 0, 1]
    assert order[-1] == 2
    assert sorted(order) == list(range(20))
    assert env.action(np.arange(20)).tolist() == list(range(19, -1, -1))


def test_a_pick_is_worth_one_if_it_is_the_users_and_costs_one_else(tiny_dataset: Dataset) -> None:
    env = PickOne(make(tiny_dataset, seed=2, targets="liked"))
    stream = Stream(tiny_dataset, seed=2, split="train")
    user = int(stream.users[0])
    env.reset(options={"user_id": tiny_dataset.user(user).id})
    for at, turn in enumerate(stream.turns(user)):
        pick = np.int64(turn.target if at % 2 else (turn.target + 1) % 20)
        _, reward, _, _, info = env.step(pick)
        assert (reward, info["feedback"].rank) == ((1.0, 1) if at % 2 else (-1.0, None))
    masks = env.action_masks()
    assert (masks.shape, masks.dtype, masks.all()) == ((20,), np.bool_, True)
    assert np.array_equal(ItemFeatures(env).get_wrapper_attr("action_masks")(), masks)


def test_a_slate_keeps_the_first_of_repeated_places(tiny_dataset: Dataset) -> None:
    env = SlateActions(make(tiny_dataset), k=4)
    assert env.action(np.array([7, 3, 7, 0])) == [7, 3, 0]
    assert env.action_space.contains(np.array([7, 7, 7, 7]))
    assert env.action(np.array([7, 7, 7, 7])) == [7]


@pytest.mark.parametrize(
    ("wrap", "action", "message"),
    [
        (ScoreActions, np.zeros(19), "no scores: wanted 20 numbers"),
        (ScoreActions, np.full(20, np.nan), "none of them NaN"),
        (ScoreActions, ["a"] * 20, "no scores"),
        (PickOne, 20, "no candidate's position: wanted a whole number from 0 to 19"),
        (PickOne, -1, "no candidate's position"),
        (PickOne, 1.0, "no candidate's position"),
        (PickOne, [3], "no candidate's position"),
        (PickOne, None, "no candidate's position"),
        (ACTIONS["slate"], [1, 2, 3], "no slate: wanted 4 positions"),
        (ACTIONS["slate"], [1, 2, 3, 20], "20.* is no candidate's position"),
    ],
)
def test_an_action_that_is_none_is_refused_and_the_turn_goes_on(
    tiny_dataset: Dataset, wrap: Wrap, action: Any, message: str
) -> None:
    env = wrap(make(tiny_dataset))
    _, before = env.reset(seed=0)
    with pytest.raises(InvalidRanking, match=message):
        env.step(action)
    assert env.step(env.action_space.sample())[4]["turn"] == before["turn"] + 1


def test_wrappers_that_cannot_be_used_say_why(tiny_dataset: Dataset) -> None:
    env = make(tiny_dataset)
    for wrap in (ScoreActions, PickOne):
        with pytest.raises(InvalidOption, match="this wrapper needs Rankings"):
            wrap(PickOne(env))
    for k in (0, 21):
        with pytest.raises(InvalidOption, match=f"k is {k}: a slate has 1 to 20 places"):
            SlateActions(env, k)
    with pytest.raises(InvalidOption, match="k is 2.5: it must be a whole number"):
        SlateActions(env, 2.5)  # type: ignore[arg-type]
    for other in (gymnasium.make("CartPole-v1"), gymnasium.wrappers.FlattenObservation(env)):
        with pytest.raises(InvalidOption, match="this wrapper needs those of starec/UserFeedback-v0"):
            ItemFeatures(other)
    with pytest.raises(InvalidOption, match="5 are no users"):
        ItemFeatures(env, train_users=5)  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="one row for each of the 60 items"):
        ItemFeatures(env, np.zeros((59, 3)))
    with pytest.raises(InvalidOption, match="NaN or infinity"):
        ItemFeatures(env, np.full((60, 3), np.nan))
    for decay in (0.0, 1.5):
        with pytest.raises(InvalidOption, match="decay is"):
            ItemFeatures(env, decay=decay)
    with pytest.raises(UnknownName, match="no user 99"):
        ItemFeatures(env, train_users=[99])


def test_item_features_are_genres_and_a_standardised_year() -> None:
    items = [
        Item(1, "A", {"genres": "Crime, Drama", "year": "1990"}),
        Item(2, "B", {"genres": "Drama", "year": "2010"}),
        Item(3, "C", {"year": "unknown"}),
    ]
    dataset = replace(make_dataset(2, 3, 3), items=items)
    assert item_features(dataset).tolist() == [[1, 1, -1], [0, 1, 1], [0, 0, 0]]
    bare = replace(dataset, items=[Item(i, "x") for i in range(3)])
    assert item_features(bare).tolist() == [[0], [0], [0]]


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("some", [False, True], ids=["all users", "training users"])
@pytest.mark.parametrize("targets", ["liked", "all"])
def test_popularity_counts_others_training_interactions_alone(split: str, some: bool, targets: str) -> None:
    dataset = make_dataset(20, 60, 25)
    ratings = dataset.ratings.copy()
    if targets == "liked":
        ratings[: dataset.indptr[1]] = ratings[dataset.indptr[7] : dataset.indptr[8]] = 1  # two users have no turn
    dataset = replace(dataset, ratings=ratings)
    train = dataset.user_ids[:12].tolist() if some else None
    env = ItemFeatures(make(dataset, split=split, targets=targets), train_users=train)
    stream = Stream(dataset)
    met = {}
    for user in range(12 if some else 20):
        turns = stream.turns(user)
        known = turns[-1].query.history if turns else History(dataset, user, *dataset.indptr[user : user + 2].tolist())
        met[user] = {*known.item_indices.tolist()}
    counts = np.array([sum(item in items for items in met.values()) for item in range(60)])
    logs = np.log1p(counts)
    for user in stream.users.tolist():
        observation, info = env.reset(options={"user_id": dataset.user(user).id})
        ended = False
        while not ended:
            shown, _ = env.split(observation)
            for row, index in zip(shown, info["query"].candidates.indices.tolist(), strict=True):
                others = sum(index in items for other, items in met.items() if other != user)
                assert row[-2] == pytest.approx((np.log1p(others) - logs.mean()) / logs.std(), abs=1e-5)
            observation, _, ended, _, info = env.step([0])
    assert (observation[: -env.n_features] == 0).all()


@pytest.mark.parametrize("decay", [1.0, 0.7])
def test_the_profile_is_the_mean_of_liked_items_and_likeness_its_cosine(decay: float) -> None:
    dataset = make_dataset(20, 60, 25)
    matrix = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    env = ItemFeatures(make(dataset, min_history=0, max_history=9), matrix, decay=decay)
    for seed in range(6):
        observation, info = env.reset(seed=seed)
        ended = False
        while not ended:
            query = info["query"]
            shown, profile = env.split(observation)
            recent = query.history[-9:]
            liked = [dataset.item_index(event.item_id) for event in recent if event.liked]
            weights = [decay**age for age in range(len(liked))][::-1]
            assert np.array_equal(shown[:, :-2], matrix[query.candidates.indices])
            if liked:
                assert np.allclose(profile, np.average(matrix[liked], axis=0, weights=weights), atol=1e-5)
                a, b = profile - matrix.mean(axis=0), matrix[query.candidates.indices] - matrix.mean(axis=0)
                cosine = b @ a / np.linalg.norm(a) / np.linalg.norm(b, axis=1)
                assert np.allclose(shown[:, -1], cosine, atol=1e-5)
            else:
                assert not profile.any()
                assert not shown[:, -1].any()
            observation, _, ended, _, info = env.step([0])


@pytest.mark.parametrize("name", ACTIONS)
def test_stable_baselines3_trains_on_it_as_it_comes(name: str) -> None:
    sb3 = pytest.importorskip(
        "stable_baselines3", reason="stable-baselines3 isn't installed: pip install '.[examples]'"
    )
    from stable_baselines3.common.env_checker import check_env as check_for_sb3

    env = ACTIONS[name](ItemFeatures(gymnasium.make(ENV)))
    check_for_sb3(env)
    model = sb3.PPO("MlpPolicy", env, n_steps=64, batch_size=32, n_epochs=1, seed=0, device="cpu")
    model.learn(128)
    action, _ = model.predict(env.reset(seed=0)[0], deterministic=True)
    assert env.step(action)[4]["turn"] == 1


def test_maskable_ppo_trains_on_picks() -> None:
    contrib = pytest.importorskip("sb3_contrib", reason="sb3-contrib isn't installed: pip install '.[examples]'")
    env = PickOne(ItemFeatures(gymnasium.make(ENV)))
    model = contrib.MaskablePPO("MlpPolicy", env, n_steps=64, batch_size=32, n_epochs=1, seed=0, device="cpu")
    model.learn(128)
    action, _ = model.predict(env.reset(seed=0)[0], action_masks=env.action_masks())
    assert env.step(action)[4]["turn"] == 1


def test_the_example_learns_to_rank_far_better_than_chance_for_users_it_never_met() -> None:
    pytest.importorskip("sb3_contrib", reason="sb3-contrib isn't installed: pip install '.[examples]'")
    script = Path(__file__).parents[2] / "examples" / "ppo.py"
    command = [sys.executable, str(script), "--steps", "8192", "--points", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    scores = {name.strip(): float(score) for name, score in re.findall(r"^(.+): NDCG@10 +([\d.]+)", done.stdout, re.M)}
    assert scores["8,192 steps"] > scores["random"] + 15
