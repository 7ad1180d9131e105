"""The vector environment: the single one's turns and rewards, many at once."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from support import make_dataset

from starec_env.errors import InvalidOption, InvalidRanking, UnknownName
from starec_env.replay.stream import Stream
from starec_env.replay.vector_env import UserFeedbackVectorEnv
from starec_env.types import Dataset

ENV = "starec/UserFeedback-v0"


def many(n: int, dataset: Dataset | str, **options: Any) -> UserFeedbackVectorEnv:
    envs = gymnasium.make_vec(ENV, num_envs=n, vectorization_mode="vector_entry_point", dataset=dataset, **options)
    assert isinstance(envs, UserFeedbackVectorEnv)
    return envs


@pytest.mark.parametrize(
    "options",
    [{}, {"split": "test", "targets": "all", "seed": 3}, {"turns": 2, "max_history": 6, "n_candidates": 7}],
    ids=["default", "all", "short"],
)
def test_vector_and_single_agree_on_every_turn_of_fifty_users(options: dict[str, Any]) -> None:
    envs, single = many(50, "ml-latest-small", **options), gymnasium.make(ENV, **options)
    n, rng = options.get("n_candidates", 20), np.random.default_rng(0)
    users = [int(user_id) for user_id in envs.dataset.user_ids[rng.permutation(envs.stream.users)[:50]]]
    observations, infos = envs.reset(options={"user_ids": users})
    steps: list[tuple[Any, ...]] = [(observations, None, None, None, infos)]
    actions: list[Any] = []
    queries = [[envs.query(i)] for i in range(50)]
    feedbacks = [[envs.feedback(i)] for i in range(50)]
    while len(steps) <= max(envs.stream.end - envs.stream.begin):
        actions.append(rng.permuted(np.tile(np.arange(n), (50, 1)), axis=1))
        actions[-1][:, rng.integers(1, n + 1) :] = -1
        steps.append(envs.step(actions[-1]))
        for i in range(50):
            queries[i].append(envs.query(i))
            feedbacks[i].append(envs.feedback(i))
    for i, user in enumerate(users):
        answer = single.reset(options={"user_id": user})
        for at, (observations, rewards, ends, cuts, infos) in enumerate(steps):
            if at:
                action = actions[at - 1][i]
                observation, reward, ended, cut, info = single.step(action[action >= 0])
                assert (rewards[i], ends[i], cuts[i]) == (reward, ended, cut)
                answer = observation, info
                assert infos["rank"][i] == (info["feedback"].rank or 0)
                assert envs.dataset.items[infos["target"][i]].id == info["feedback"].item_id
                assert infos["liked"][i] == info["feedback"].liked
            assert all(np.array_equal(observations[key][i], value) for key, value in answer[0].items())
            assert queries[i][at] == answer[1]["query"]
            assert feedbacks[i][at] == answer[1]["feedback"]
            assert (infos["turn"][i], infos["user_id"][i]) == (answer[1]["turn"], user)
            if at and ends[i]:
                break
        else:
            pytest.fail(f"the stream of user {user} never ended")


def test_environment_i_takes_the_users_that_a_single_one_takes_at_i_and_every_n_th_on(tiny_dataset: Dataset) -> None:
    envs, single = many(3, tiny_dataset), gymnasium.make(ENV, dataset=tiny_dataset)
    observations, infos = envs.reset(seed=11)
    first = single.reset(seed=11)
    order = [first[1]["user_id"]] + [single.reset()[1]["user_id"] for _ in range(100)]
    taken: list[list[int]] = [[int(user)] for user in infos["user_id"]]
    ended = np.zeros(3, bool)
    for _ in range(60):
        was_ended = ended
        observations, rewards, ended, _, infos = envs.step(envs.action_space.sample())
        assert (rewards[was_ended] == 0).all()
        assert not (ended & was_ended).any()
        assert np.array_equal(infos["_rank"] if "_rank" in infos else np.zeros(3, bool), ~was_ended)
        for i in np.flatnonzero(was_ended):
            taken[i].append(int(infos["user_id"][i]))
            assert envs.feedback(int(i)) is None
            assert infos["turn"][i] == 0
    assert all(len(users) > 4 for users in taken)
    assert all(users == order[i::3][: len(users)] for i, users in enumerate(taken))


def test_it_begins_anew_when_gymnasiums_own_vector_of_environments_does(tiny_dataset: Dataset) -> None:
    envs = many(1, tiny_dataset)
    sync = gymnasium.make_vec(ENV, num_envs=1, vectorization_mode="sync", dataset=tiny_dataset)
    assert envs.metadata["autoreset_mode"] == sync.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert envs.action_space == sync.action_space
    assert envs.observation_space == sync.observation_space
    answers = [(envs.reset(seed=5), sync.reset(seed=5))]
    for _ in range(50):
        actions = envs.action_space.sample()
        answers.append((envs.step(actions), sync.step(actions)))
    assert sum(ours[2][0] for ours, _ in answers[1:]) > 4
    for ours, theirs in answers:
        assert all(np.array_equal(ours[0][key], theirs[0][key]) for key in ours[0])
        assert all(np.array_equal(a, b) for a, b in zip(ours[1:-1], theirs[1:-1], strict=True))
        assert all(ours[-1][key] == theirs[-1][key] for key in ("turn", "_turn", "user_id", "_user_id"))


def test_queries_and_feedback_are_the_single_environments_where_asked_for(tiny_dataset: Dataset) -> None:
    envs = many(4, tiny_dataset, queries=True)
    plain = many(4, tiny_dataset)
    _, infos = envs.reset(seed=2)
    plain.reset(seed=2)
    for _ in range(10):
        assert infos["query"].tolist() == [envs.query(i) for i in range(4)]
        assert infos["_query"].all()
        actions = envs.action_space.sample()
        *_, infos = envs.step(actions)
        *_, without = plain.step(actions)
        assert "query" not in without
        assert set(infos) - set(without) == {"query", "_query"}
        for i in range(4):
            if feedback := envs.feedback(i):
                assert infos["_predicted_liked"][i]
                assert (infos["predicted_liked"][i], infos["liked"][i]) == (feedback.predicted_liked, feedback.liked)
                assert tiny_dataset.items[infos["target"][i]].id == feedback.item_id


def test_a_seed_shows_the_same_turns_in_all_modes_where_users_are_named(tiny_dataset: Dataset) -> None:
    named = tiny_dataset.user_ids[Stream(tiny_dataset, split="train").users[:3]].tolist()
    envs = many(3, tiny_dataset, queries=True)
    envs.reset(seed=7, options={"user_ids": named})
    modes = [
        gymnasium.make_vec(ENV, num_envs=3, vectorization_mode=mode, dataset=tiny_dataset) for mode in ("sync", "async")
    ]
    for others in modes:
        others.reset(seed=[7, 7, 7], options={"user_id": named[1]})
    ended = False
    while not ended:
        actions = np.tile(np.random.default_rng(0).permutation(20), (3, 1))
        observations, rewards, ends, _, infos = envs.step(actions)
        for others in modes:
            theirs = others.step(actions)
            for i in range(3):
                assert all(np.array_equal(observations[key][1], theirs[0][key][i]) for key in observations)
                assert (rewards[1], ends[1]) == (theirs[1][i], theirs[2][i])
                assert infos["query"][1] == theirs[4]["query"][i]
                assert envs.feedback(1) == theirs[4]["feedback"][i]
        ended = bool(ends[1])
    for others in modes:
        others.close()


def test_gymnasiums_own_vectors_give_each_environment_a_seed_and_an_order_of_its_own(tiny_dataset: Dataset) -> None:
    sync = gymnasium.make_vec(ENV, num_envs=4, vectorization_mode="sync", dataset=tiny_dataset)
    users = sync.reset(seed=5)[1]["user_id"].tolist()
    singles = [gymnasium.make(ENV, dataset=tiny_dataset).reset(seed=5 + i)[1]["user_id"] for i in range(4)]
    assert users == singles
    envs = many(4, tiny_dataset)
    assert envs.reset(seed=5)[1]["user_id"][0] == users[0]
    assert len(set(envs.reset(seed=5)[1]["user_id"].tolist())) == 4


def test_a_seeds_candidates_are_the_streams_whether_kept_or_not(
    tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping = many(6, tiny_dataset)
    monkeypatch.setattr("starec_env.replay.vector_env._MOST_BYTES", 0)
    making = many(6, tiny_dataset)
    for seed in (1, 2, 1):
        answers = keeping.reset(seed=seed)[0], making.reset(seed=seed)[0]
        for _ in range(30):
            assert np.array_equal(answers[0]["candidates"], answers[1]["candidates"])
            actions = keeping.action_space.sample()
            ours, theirs = keeping.step(actions), making.step(actions)
            assert np.array_equal(ours[1], theirs[1])
            answers = ours[0], theirs[0]


def test_only_the_users_named_are_gone_through(tiny_dataset: Dataset) -> None:
    named = tiny_dataset.user_ids[Stream(tiny_dataset, split="train").users[:4]].tolist()
    envs = many(2, tiny_dataset, users=named)
    met = [user for _ in range(4) for user in envs.reset()[1]["user_id"].tolist()]
    assert sorted(met[:4]) == sorted(met[4:]) == named


def test_observations_belong_to_the_space_and_share_nothing(tiny_dataset: Dataset) -> None:
    envs, twin = many(5, tiny_dataset), many(5, tiny_dataset)
    observations, infos = envs.reset(seed=0)
    twin.reset(seed=0)
    for _ in range(12):
        assert observations in envs.observation_space
        for array in (*observations.values(), *infos.values()):
            array[:] = 0
        actions = envs.action_space.sample()
        observations, rewards, ended, cut, infos = envs.step(actions)
        expected = twin.step(actions)
        assert all(np.array_equal(observations[key], expected[0][key]) for key in observations)
        assert all(np.array_equal(infos[key], expected[4][key]) for key in infos)
        assert np.array_equal(rewards, expected[1])
        assert np.array_equal(ended, expected[2])
        rewards[:], ended[:], cut[:] = 7, True, True


def test_rankings_may_be_lists_and_partial(tiny_dataset: Dataset) -> None:
    lists, arrays = many(2, tiny_dataset), many(2, tiny_dataset)
    lists.reset(seed=0)
    arrays.reset(seed=0)
    padded = np.full((2, 20), -1)
    padded[0, :2] = [4, 2]
    a, b = lists.step([[4, 2], ()]), arrays.step(padded)
    assert a[1].tolist() == b[1].tolist()
    assert a[4]["rank"].tolist() == b[4]["rank"].tolist()


def test_an_invalid_ranking_names_the_environment_and_changes_nothing(tiny_dataset: Dataset) -> None:
    envs, twin = many(3, tiny_dataset), many(3, tiny_dataset)
    envs.reset(seed=0)
    twin.reset(seed=0)
    good = envs.action_space.sample()
    bad = good.copy()
    bad[1, 4] = bad[1, 5]
    with pytest.raises(InvalidRanking, match=r"environment 1: .* more than once"):
        envs.step(bad)
    ours, theirs = envs.step(good), twin.step(good)
    assert np.array_equal(ours[0]["candidates"], theirs[0]["candidates"])
    assert np.array_equal(ours[1], theirs[1])


def test_a_reset_without_a_seed_goes_on_to_the_next_users(tiny_dataset: Dataset) -> None:
    envs, single = many(2, tiny_dataset), gymnasium.make(ENV, dataset=tiny_dataset)
    order = [int(single.reset()[1]["user_id"]) for _ in range(6)]
    taken = [envs.reset()[1]["user_id"].tolist() for _ in range(3)]
    assert [user for users in taken for user in users] == order
    assert envs.reset(seed=0)[1]["user_id"].tolist() == order[:2]


def test_more_environments_than_users_share_them(tiny_dataset: Dataset) -> None:
    observations, infos = many(30, tiny_dataset).reset(seed=0)
    users = len(set(infos["user_id"].tolist()))
    assert infos["user_id"][:users].tolist() == infos["user_id"][users : 2 * users].tolist()
    assert np.array_equal(observations["candidates"][0], observations["candidates"][users])


def test_it_renders_every_turn_as_the_single_environment_does(tiny_dataset: Dataset) -> None:
    envs = many(2, tiny_dataset, render_mode="ansi")
    single = gymnasium.make(ENV, dataset=tiny_dataset, render_mode="ansi")
    envs.reset(options={"user_ids": [3, 7]})
    envs.step([[0, 1], [2]])
    single.reset(options={"user_id": 7})
    single.step([2])
    texts = envs.render()
    assert texts is not None
    assert texts[1] == single.render()
    assert many(2, tiny_dataset).render() is None
    with pytest.raises(ResetNeeded):
        many(2, tiny_dataset, render_mode="ansi").render()


def test_it_draws_every_turn_as_the_single_environment_does(tiny_dataset: Dataset) -> None:
    pytest.importorskip("PIL", reason="drawing needs Pillow, which the report extra brings")
    envs = many(2, tiny_dataset, render_mode="rgb_array")
    single = gymnasium.make(ENV, dataset=tiny_dataset, render_mode="rgb_array")
    envs.reset(options={"user_ids": [3, 7]})
    single.reset(options={"user_id": 7})
    pictures = envs.render()
    assert pictures is not None
    assert np.array_equal(pictures[1], single.render())


def test_what_cannot_be_reset_or_stepped_is_refused(tiny_dataset: Dataset) -> None:
    envs = many(2, tiny_dataset)
    with pytest.raises(ResetNeeded):
        envs.step(envs.action_space.sample())
    with pytest.raises(InvalidOption, match="user_ids names 1 users for 2 environments"):
        envs.reset(options={"user_ids": [1]})
    with pytest.raises(UnknownName, match="no user 99"):
        envs.reset(options={"user_ids": [1, 99]})
    with pytest.raises(UnknownName, match="did you mean 'user_ids'"):
        envs.reset(options={"user_id": 1})
    for ids in (5, "17", None, {1, 2}, []):
        with pytest.raises(InvalidOption, match="list of ids|user_ids is None"):
            envs.reset(options={"user_ids": ids})
    for user_id in (None, 1.0, [1]):
        with pytest.raises(InvalidOption, match="no user's id"):
            envs.reset(options={"user_ids": [2, user_id]})
    with pytest.raises(InvalidOption, match="give a dict"):
        envs.reset(options=[1, 2])  # type: ignore[arg-type]
    for n in (0, "2", None):
        with pytest.raises(InvalidOption, match=f"num_envs is {n!r}"):
            UserFeedbackVectorEnv(n, make_dataset())  # type: ignore[arg-type]
    envs.close()


def test_before_a_reset_there_is_nothing_to_ask_for(tiny_dataset: Dataset) -> None:
    envs = UserFeedbackVectorEnv(2, tiny_dataset)
    for asked in (envs.query, envs.feedback):
        with pytest.raises(ResetNeeded, match="call reset"):
            asked(0)
