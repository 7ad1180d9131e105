"""The single environment, through Gymnasium."""

import inspect
import pickle
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from support import make_dataset

from starec_env.errors import InvalidOption, InvalidRanking, MissingExtra, UnknownName
from starec_env.replay.env import EnvOptions, UserFeedbackEnv
from starec_env.replay.stream import Stream, judge
from starec_env.types import Dataset, Query, Ranking


def make(dataset: Dataset, **options: Any) -> gymnasium.Env[Any, Any]:
    return gymnasium.make("starec/UserFeedback-v0", dataset=dataset, **options)


def episode(env: gymnasium.Env[Any, Any], **reset: Any) -> list[tuple[Any, ...]]:
    """What one episode gave under a fixed way of ranking: reset's answer, then each step's."""
    answers: list[tuple[Any, ...]] = [env.reset(**reset)]
    rng = np.random.default_rng(0)
    ended = False
    while not ended:
        answers.append(env.step(rng.permutation(20)))
        ended = answers[-1][2]
    return answers


@pytest.mark.parametrize("options", [{}, {"split": "test", "targets": "all"}, {"turns": 1}, {"max_history": 3}])
def test_gymnasiums_checker_finds_nothing(tiny_dataset: Dataset, options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make(tiny_dataset, render_mode="ansi", **options)
        check_env(env.unwrapped)
        for seed in range(3):  # Gymnasium's passive checks, too
            for observation, *_ in episode(env, seed=seed):
                assert observation in env.observation_space


def test_another_process_finds_it_by_module_and_name_and_meets_the_same_user() -> None:
    code = (
        "import gymnasium as g; e = g.make('starec_env:starec/UserFeedback-v0'); o, i = e.reset(); print(i['user_id'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    env = gymnasium.make("starec/UserFeedback-v0")
    assert done.stdout.strip() == str(env.reset()[1]["user_id"])
    other = gymnasium.make("starec_env:starec/UserFeedback-v0", split="test")
    assert other.unwrapped.dataset is env.unwrapped.dataset  # type: ignore[attr-defined] # one load a process


def test_an_episode_steps_the_streams_turns_and_pays_as_the_judge_says(tiny_dataset: Dataset) -> None:
    env = make(tiny_dataset, split="test", seed=6)
    stream = Stream(tiny_dataset, seed=6, targets="all")
    for user in stream.users.tolist():
        turns = stream.turns(user)
        user_id = tiny_dataset.user(user).id
        observation, info = env.reset(options={"user_id": user_id})
        assert info["feedback"] is None
        rng = np.random.default_rng(user)
        for at, turn in enumerate(turns):
            assert info["query"] == turn.query
            assert (info["turn"], info["user_id"], int(observation["user"])) == (turn.number, user_id, user)
            past = turn.query.history
            assert observation["history"][: len(past)].tolist() == past.item_indices.tolist()
            assert observation["feedback"][: len(past)].tolist() == [int(event.liked) for event in past]
            assert (observation["history"][len(past) :] == -1).all()
            assert (observation["feedback"][len(past) :] == -1).all()
            assert np.array_equal(observation["candidates"], turn.query.candidates.indices)
            order = tuple(rng.permutation(20)[: rng.integers(21)].tolist())
            observation, reward, terminated, truncated, info = env.step(order)
            feedback, earned = judge(turn, Ranking(order=order))
            assert (info["feedback"], reward, terminated) == (feedback, earned, at == len(turns) - 1)
            assert truncated is False
        assert info["query"] is None
        assert info["turn"] == turns[-1].number + 1
        assert (observation["candidates"] == -1).all()
        length = len(turns[-1].query.history) + 1
        assert tiny_dataset.items[observation["history"][length - 1]] == turns[-1].target_item
        assert (observation["history"][length:] == -1).all()


def test_disliked_interactions_between_turns_enter_the_history(tiny_dataset: Dataset) -> None:
    disliked = 0
    env = make(tiny_dataset, split="test", targets="liked")
    for _ in range(12):
        (observation, _), *steps = episode(env)
        known = int((observation["history"] >= 0).sum())
        for observation, *_ in steps:
            now = int((observation["history"] >= 0).sum())
            news = observation["feedback"][known:now].tolist()
            assert news[0] == 1
            assert not any(news[1:])
            disliked, known = disliked + len(news) - 1, now
    assert disliked > 5


def test_a_long_history_is_cut_to_its_last_interactions(tiny_dataset: Dataset) -> None:
    short, full = make(tiny_dataset, max_history=4), make(tiny_dataset)
    for (a, *_), (b, *_) in zip(episode(short, seed=1), episode(full, seed=1), strict=True):
        known = b["history"][b["history"] >= 0]
        assert a["history"].tolist() == known[-4:].tolist()
        assert np.array_equal(a["candidates"], b["candidates"])


def test_each_reset_goes_to_another_user_until_all_were_met(tiny_dataset: Dataset) -> None:
    env = make(tiny_dataset)
    order = [env.reset(seed=3)[1]["user_id"]] + [env.reset()[1]["user_id"] for _ in range(23)]
    stream = Stream(tiny_dataset, split="train", targets="all")
    everyone = [tiny_dataset.user(int(user)).id for user in stream.users]
    n = len(everyone)
    assert sorted(order[:n]) == everyone != order[:n]
    assert order[n:] == order[: 24 - n]
    assert [make(tiny_dataset).reset(seed=seed)[1]["user_id"] for seed in range(8)] != [order[0]] * 8


def test_naming_a_user_takes_nobodys_turn_in_the_order(tiny_dataset: Dataset) -> None:
    env, twin = make(tiny_dataset, seed=1), make(tiny_dataset, seed=1)
    plain = [env.reset()[1]["user_id"] for _ in range(4)]
    assert twin.reset(options={"user_id": 7})[1]["user_id"] == 7
    assert [twin.reset()[1]["user_id"] for _ in range(4)] == plain


def test_the_seed_of_reset_counts_as_the_constructors(tiny_dataset: Dataset) -> None:
    def story(env: gymnasium.Env[Any, Any], **reset: Any) -> list[tuple[Query | None, Any]]:
        return [(answer[-1]["query"], answer[1]) for answer in (*episode(env, **reset)[1:], *episode(env)[1:])]

    used = make(tiny_dataset, seed=9)
    other = story(used)
    assert story(used, seed=5) == story(make(tiny_dataset, seed=5)) == story(make(tiny_dataset), seed=5) != other
    assert story(used, seed=9) == other


def test_candidates_depend_on_nothing_stepped_before(tiny_dataset: Dataset) -> None:
    wanderer, fresh = make(tiny_dataset), make(tiny_dataset)
    for _ in range(5):
        episode(wanderer)
    named = {"options": {"user_id": 4}}
    assert [s[-1]["query"] for s in episode(wanderer, **named)] == [s[-1]["query"] for s in episode(fresh, **named)]


def test_what_a_caller_does_to_an_observation_stays_there() -> None:
    dataset = make_dataset(length=30)
    env, twin = make(dataset), make(dataset)
    observation, _ = env.reset(seed=0)
    twin.reset(seed=0)
    for _ in range(3):
        for key in ("history", "feedback", "candidates"):
            observation[key][:] = 0
        observation, reward, _, _, info = env.step([0, 1, 2])
        expected = twin.step([0, 1, 2])
        assert all(np.array_equal(observation[key], expected[0][key]) for key in observation)
        assert (reward, info) == (expected[1], expected[4])


@pytest.mark.parametrize("action", [[0, 0], [20], [-1], [0.5], "0", None, 3, np.zeros((1, 2), int), [True]])
def test_an_invalid_action_is_refused_and_the_turn_still_stands(tiny_dataset: Dataset, action: Any) -> None:
    env, twin = make(tiny_dataset), make(tiny_dataset)
    env.reset(seed=0)
    twin.reset(seed=0)
    with pytest.raises(InvalidRanking, match="wanted at most 20 distinct positions"):
        env.step(action)
    assert env.step([3, 1])[1:] == twin.step([3, 1])[1:]


@given(st.lists(st.integers(-1, 20), max_size=22))
@settings(deadline=None, max_examples=50)
def test_a_step_takes_exactly_the_rankings_of_its_action_space(action: list[int]) -> None:
    env = UserFeedbackEnv(make_dataset())
    env.reset()
    if action in env.action_space:
        assert env.step(action)[4]["feedback"] is not None
    else:
        with pytest.raises(InvalidRanking):
            env.step(action)


def test_a_left_out_target_has_no_rank_and_costs_a_point(tiny_dataset: Dataset) -> None:
    env = make(tiny_dataset, targets="liked")
    env.reset(seed=0)
    _, reward, _, _, info = env.step([])
    assert (reward, info["feedback"].rank, info["feedback"].predicted_liked) == (-1.0, None, False)


def test_any_function_of_the_rank_can_be_the_reward(tiny_dataset: Dataset) -> None:
    env = make(tiny_dataset, targets="liked", reward=lambda rank: 1 / rank if rank else 0)
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.arange(20))
    assert reward == 1 / info["feedback"].rank


def test_a_disliked_target_is_a_turn_too_unless_liked_ones_alone_are_asked_for(tiny_dataset: Dataset) -> None:
    liked = [step[4]["feedback"].liked for step in episode(make(tiny_dataset, targets="liked"))[1:]]
    assert all(liked)
    steps = episode(make(tiny_dataset, split="test"))[1:]
    assert {step[4]["feedback"].liked for step in steps} == {True, False}
    assert all(step[1] == 0 for step in steps if not step[4]["feedback"].liked)


def test_stepping_beyond_the_end_or_before_the_start_needs_a_reset(tiny_dataset: Dataset) -> None:
    env = make(tiny_dataset)
    episode(env)
    with pytest.raises(ResetNeeded):
        env.step([0])
    bare = UserFeedbackEnv(tiny_dataset, render_mode="ansi")
    with pytest.raises(ResetNeeded):
        bare.step([0])
    with pytest.raises(ResetNeeded):
        bare.render()


def test_a_rendered_turn_can_be_read(tiny_dataset: Dataset) -> None:
    env = make(tiny_dataset, render_mode="ansi", targets="liked")
    _, info = env.reset(seed=0)
    text = env.render()
    assert isinstance(text, str)
    assert text.startswith(f"User {info['user_id']}, turn 0\nHistory, the last 5 of {len(info['query'].history)}:\n")
    assert all(f"{position}  {item.title}" in text for position, item in enumerate(info["query"].candidates))
    assert info["query"].history.items[-1].title in text
    _, reward, _, _, after = env.step([])
    title = tiny_dataset.items[tiny_dataset.item_index(after["feedback"].item_id)].title
    assert f"Just liked {title}, which was not ranked (reward {reward:+g})" in str(env.render())
    episode(env)
    assert str(env.render()).endswith("The stream has ended.")


def test_human_rendering_prints_every_turn_as_it_comes(
    tiny_dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    env, quiet = make(tiny_dataset, render_mode="human"), make(tiny_dataset, render_mode="ansi")
    env.reset(seed=0)
    quiet.reset(seed=0)
    assert capsys.readouterr().out == f"{quiet.render()}\n"
    env.step([1, 2])
    quiet.step([1, 2])
    assert capsys.readouterr().out == f"{quiet.render()}\n"
    assert env.render() is None


def test_rendering_without_a_mode_warns(tiny_dataset: Dataset) -> None:
    env = UserFeedbackEnv(tiny_dataset)
    env.reset()
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None


def test_a_picture_of_a_turn_has_one_size_and_shows_what_is_asked(tiny_dataset: Dataset) -> None:
    pytest.importorskip("PIL", reason="drawing needs Pillow, which the report extra brings")
    env = make(tiny_dataset, render_mode="rgb_array")
    env.reset(seed=0)
    first, again = env.render(), env.render()
    assert isinstance(first, np.ndarray)
    assert (first.dtype, first.ndim, first.shape[2]) == (np.uint8, 3, 3)
    assert np.array_equal(first, again)
    assert 0.01 < (first < 128).mean() < 0.2  # ink
    pictures = []
    ended = False
    while not ended:
        *_, ended, _, _ = env.step([3])
        pictures.append(env.render())
    assert {picture.shape for picture in pictures} == {first.shape}  # type: ignore[union-attr]
    assert not np.array_equal(first, pictures[0])


def test_gymnasium_records_the_pictures_as_a_video(tiny_dataset: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="drawing needs Pillow, which the report extra brings")
    pytest.importorskip("moviepy", reason="Gymnasium writes videos with moviepy")
    env = gymnasium.wrappers.RecordVideo(make(tiny_dataset, render_mode="rgb_array"), str(tmp_path))
    episode(env)
    env.close()
    assert [*tmp_path.glob("*.mp4")]


def test_gymnasium_collects_the_pictures(tiny_dataset: Dataset) -> None:
    pytest.importorskip("PIL", reason="drawing needs Pillow, which the report extra brings")
    env = gymnasium.wrappers.RenderCollection(make(tiny_dataset, render_mode="rgb_array"))
    steps = len(episode(env))
    frames = env.render()
    assert isinstance(frames, list)
    assert len(frames) == steps


def test_pictures_need_pillow(tiny_dataset: Dataset) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("starec_env.replay.render.find_spec", lambda name: None)
        with pytest.raises(MissingExtra, match=r"pip install 'starec\[report\]'"):
            make(tiny_dataset, render_mode="rgb_array")


def test_a_title_of_several_lines_is_drawn_as_one(tiny_dataset: Dataset) -> None:
    items = [replace(item, title=f"{item.title}\nUser 1\x1b[2J" + "x" * 300) for item in tiny_dataset.items]
    env = make(replace(tiny_dataset, items=items), render_mode="ansi")
    env.reset(seed=0)
    lines = str(env.render()).split("\n")
    assert len(lines) == 1 + 6 + 21
    assert all(line.isprintable() and len(line) < 120 for line in lines)


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_candidate": 5}, UnknownName, "no environment option 'n_candidate': did you mean 'n_candidates'"),
        ({"dataset": "ml-latest-smal"}, UnknownName, "did you mean 'ml-latest-small'"),
        ({"dataset": 3}, InvalidOption, "dataset is a int"),
        ({"split": "trian"}, InvalidOption, "did you mean 'train'"),
        ({"max_history": 0}, InvalidOption, "max_history is 0"),
        ({"max_history": 2.5}, InvalidOption, "max_history is 2.5: it must be a whole number"),
        ({"n_candidates": "20"}, InvalidOption, "n_candidates is '20': it must be a whole number"),
        ({"turns": True}, InvalidOption, "turns is True"),
        ({"seed": None}, InvalidOption, "seed is None: it must be a whole number"),
        ({"seed": -1}, InvalidOption, "seed is -1: it must be at least 0"),
        ({"reward": 1.0}, InvalidOption, "reward is a float: give a function"),
        ({"users": 5}, InvalidOption, "5 are no users: give a list of ids"),
        ({"users": []}, InvalidOption, "give a list of ids"),
        ({"users": [1, 99]}, UnknownName, "no user 99"),
        ({"users": [1, None]}, InvalidOption, "None is a NoneType, no user's id"),
        ({"render_mode": "ansii"}, InvalidOption, "did you mean 'ansi'"),
    ],
)
def test_a_bad_option_is_refused_with_the_way_out(
    tiny_dataset: Dataset, vector: bool, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    options = {"dataset": tiny_dataset} | options
    with pytest.raises(error, match=message):
        if vector:
            gymnasium.make_vec("starec/UserFeedback-v0", num_envs=2, **options)
        else:
            gymnasium.make("starec/UserFeedback-v0", **options)


def test_an_unknown_render_mode_is_refused(tiny_dataset: Dataset) -> None:
    with pytest.raises(InvalidOption, match="did you mean 'human'"):
        UserFeedbackEnv(tiny_dataset, render_mode="humane")


def test_an_unknown_user_or_reset_option_is_refused_with_what_there_is(tiny_dataset: Dataset) -> None:
    env = make(tiny_dataset)
    with pytest.raises(UnknownName, match="no user 121: the ids are 12 numbers from 1 to 12"):
        env.reset(options={"user_id": 121})
    with pytest.raises(UnknownName, match="did you mean 'user_id'"):
        env.reset(options={"userid": 1})


@pytest.mark.parametrize("user_id", [[5], 5.0, None, {"a": 1}, True, (5,), b"5", "--5", "5.0"])
def test_what_is_no_users_id_is_refused_in_words(tiny_dataset: Dataset, user_id: Any) -> None:
    env = make(tiny_dataset)
    with pytest.raises((InvalidOption, UnknownName), match="user"):
        env.reset(options={"user_id": user_id})


@pytest.mark.parametrize("options", [5, ["user_id"], "user_id"])
def test_options_of_a_reset_are_a_dict(tiny_dataset: Dataset, options: Any) -> None:
    with pytest.raises(InvalidOption, match="give a dict, e.g. {'user_id': ...}"):
        UserFeedbackEnv(tiny_dataset).reset(options=options)


def test_a_refused_reset_changes_nothing(tiny_dataset: Dataset) -> None:
    env, twin = make(tiny_dataset), make(tiny_dataset)
    env.reset(seed=1)
    twin.reset(seed=1)
    for options in ({"user_id": 99}, {"user": 1}, 5):
        with pytest.raises((InvalidOption, UnknownName)):
            env.reset(seed=2, options=options)  # type: ignore[arg-type]
    assert env.step([0])[1:] == twin.step([0])[1:]
    assert env.reset()[1] == twin.reset()[1]


def test_numpys_whole_numbers_are_ids_and_options_like_pythons(tiny_dataset: Dataset) -> None:
    env = make(tiny_dataset, seed=np.int64(3), turns=np.int32(2))
    assert env.reset(options={"user_id": np.int32(7)})[1]["user_id"] == 7


def test_both_environments_options_are_the_signatures(tiny_dataset: Dataset) -> None:
    own = {"dataset", "render_mode", "others"}
    assert set(inspect.signature(UserFeedbackEnv).parameters) - own == set(EnvOptions.__annotations__)


def test_only_the_users_named_are_gone_through(tiny_dataset: Dataset) -> None:
    named = tiny_dataset.user_ids[Stream(tiny_dataset, split="train").users[:4]].tolist()
    env = make(tiny_dataset, users=named[:0:-1], seed=4)
    met = [env.reset()[1]["user_id"] for _ in range(6)]
    assert sorted(met[:3]) == sorted(met[3:]) == named[1:]
    assert make(tiny_dataset, users=np.array(named[1:]), seed=4).reset()[1]["user_id"] == met[0]
    assert env.reset(options={"user_id": named[0]})[1]["user_id"] == named[0]


def test_a_user_without_a_turn_is_refused(tiny_dataset: Dataset) -> None:
    ratings = tiny_dataset.ratings.copy()
    ratings[: tiny_dataset.indptr[1]] = 1
    env = make(replace(tiny_dataset, ratings=ratings), targets="liked")
    with pytest.raises(InvalidOption, match="user 1 has no turn with these options"):
        env.reset(options={"user_id": 1})
    with pytest.raises(InvalidOption, match="user 1 has no turn with these options"):
        make(replace(tiny_dataset, ratings=ratings), users=[2, 1], targets="liked")


def test_user_ids_may_be_strings(tiny_dataset: Dataset) -> None:
    named = replace(tiny_dataset, user_ids=np.array([f"A{i}" for i in range(12)]))
    _, info = make(named).reset(options={"user_id": "A3"})
    assert info["user_id"] == "A3" == info["query"].user.id


def test_the_bundled_data_is_the_default() -> None:
    env = gymnasium.make("starec/UserFeedback-v0")
    _, info = env.reset(seed=0, options={"user_id": 42})
    assert info["user_id"] == 42
    assert len(info["query"].candidates) == 20
    assert any("(" in item.title for item in info["query"].candidates)


def test_a_steps_info_pickles_in_four_kib_and_is_equal_after() -> None:
    env = gymnasium.make("starec/UserFeedback-v0", split="test")
    longest = 0
    for _ in range(40):
        infos = [answer[-1] for answer in episode(env)]
        for info in infos:
            packed = pickle.dumps(info)
            assert len(packed) <= 4096
            assert pickle.loads(packed) == info
        longest = max(longest, *(len(info["query"].history) for info in infos[:-1]))
    assert longest >= 35


@pytest.mark.parametrize(
    "wrap",
    [
        gymnasium.wrappers.RecordEpisodeStatistics,
        lambda env: gymnasium.wrappers.TimeLimit(env, 2),
        gymnasium.wrappers.NormalizeReward,
        gymnasium.wrappers.FlattenObservation,
        lambda env: gymnasium.wrappers.TransformReward(env, lambda reward: 2 * reward),
    ],
)
def test_gymnasiums_wrappers_fit_and_the_spec_makes_it_again(wrap: Any, tiny_dataset: Dataset) -> None:
    env = wrap(make(tiny_dataset, turns=3))
    assert env.unwrapped.spec is not None
    observation, _ = env.reset(seed=1)
    for _ in range(3):
        assert observation in env.observation_space
        observation, _, ended, cut, _ = env.step(env.action_space.sample())
        if ended or cut:
            break
    assert ended or cut


def test_a_named_data_sets_spec_survives_pickle_and_json() -> None:
    env = gymnasium.make("starec/UserFeedback-v0", turns=2, users=[1, 42], seed=3)
    assert env.spec is not None
    for spec in (
        pickle.loads(pickle.dumps(env.spec)),
        gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json()),
    ):
        twin = gymnasium.make(spec)
        assert twin.reset()[1] == env.unwrapped.reset(seed=3)[1]
