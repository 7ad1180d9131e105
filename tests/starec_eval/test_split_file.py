"""One split file decides who is tested; a model that was trained on a test user is refused."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_endpoint import FakeEndpoint, scripted

from starec_agents.serving.card import NANO, ModelCard
from starec_env.data.spec import DataSpec
from starec_env.data.splits import Split, make_split
from starec_env.errors import DataError, InvalidOption
from starec_env.reading import READINGS
from starec_eval.commands import eval_command
from starec_eval.protocol import Protocol


def starec_eval(*args: object, code: int = 0) -> None:
    result = CliRunner().invoke(eval_command, [*map(str, args), "--quiet"], standalone_mode=False)
    if result.exception:
        raise result.exception
    assert result.return_value == code


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def split() -> Split:
    return make_split(DataSpec(), READINGS["paper"], test=12, validation=9, train=30)


def test_the_split_says_reading_users_and_what_baselines_learn_from(split: Split, tmp_path: Path) -> None:
    split.save(tmp_path / "split.json")
    for part, users in (("test", split.test), ("validation", split.validation)):
        out = tmp_path / part
        starec_eval("--split-file", tmp_path / "split.json", "--part", part, "--methods", "pop,item-knn", "--out", out)
        found = results(out)
        assert found["test_users"] == len(users) and found["train_users"] == 30
        assert found["split"] == split.hash and found["reading"]["negatives"] == "target"
    protocol = Protocol(split.spec().read(), split=split)
    assert set(protocol.cases.user_ids) == set(split.test)
    assert set(protocol.dataset.user_ids[protocol.train_users].tolist()) == set(split.train)


@pytest.mark.parametrize(
    "option", [("--users", 5), ("--reading", "default"), ("--min-interactions", 5), ("--set", "full=whole")]
)
def test_what_a_split_decides_cant_be_said_beside_it(split: Split, tmp_path: Path, option: tuple) -> None:
    split.save(tmp_path / "split.json")
    with pytest.raises(InvalidOption, match=f"{option[0]} has no effect with --split-file"):
        starec_eval("--split-file", tmp_path / "split.json", "--methods", "pop", *option)


def test_a_split_of_other_data_is_refused(split: Split, tmp_path: Path) -> None:
    split.model_copy(update={"data_hash": "0" * 16}).save(tmp_path / "split.json")
    with pytest.raises(DataError, match="the split is of other data"):
        starec_eval("--split-file", tmp_path / "split.json", "--methods", "pop")


def test_a_model_that_was_trained_on_a_test_user_is_asked_nothing(split: Split, tmp_path: Path) -> None:
    trained = Split(dataset="ml-latest-small", train=split.test[:2], validation=split.validation, test=split.train)
    ModelCard(stage="grpo", base_model="m", split=trained).save(tmp_path)
    split.save(tmp_path / "split.json")
    with FakeEndpoint(scripted(), models={"mine": str(tmp_path), NANO: "", str(tmp_path): ""}) as server:
        asked = ("--split-file", tmp_path / "split.json", "--methods", "rank-only", "--base-url", server.url)
        for named in (("--model", tmp_path), ("--model", "mine", "--model-card", tmp_path)):
            with pytest.raises(InvalidOption, match="2 of 12 users are among those .* was trained on.*--split-file"):
                starec_eval(*asked, *named)
        starec_eval(*asked, "--model", "mine", "--out", tmp_path / "by-root", code=3)
        assert "2 of 12 users" in results(tmp_path / "by-root")["rows"][0]["error"]
        with pytest.raises(InvalidOption, match="was trained on"):
            starec_eval("--users", 50, *asked[2:], "--model", NANO)
        assert server.requests == 0
        starec_eval(*asked, "--part", "validation", "--model", "mine")
