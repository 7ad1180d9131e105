"""The card of a trained model: whom it was trained on, found where it can be."""

import asyncio
from pathlib import Path

import pytest
from fake_endpoint import FakeEndpoint, scripted
from test_cli import starec

from starec_agents.llm.base import Endpoint
from starec_agents.llm.client import OpenAIChat
from starec_agents.runs.reading import read_steps
from starec_agents.serving.card import NANO, NANO_FOLDER, ModelCard, find_card, read_card, say_seen
from starec_env.data.spec import DataSpec
from starec_env.data.splits import Split, make_split
from starec_env.errors import DataError


def test_a_card_reads_back_and_counts_the_users_of_every_model_before_it(tmp_path: Path) -> None:
    taught = ModelCard(stage="sft", base_model="some/model", split=Split(dataset="d", train=(1, 2), validation=(3,)))
    taught.save(tmp_path)
    rl = ModelCard(stage="grpo", base_model=str(tmp_path), split=Split(dataset="d", train=("4",)), base=taught)
    assert read_card(tmp_path) == taught
    assert rl.seen("d", [5, 4, 3, "2", 1]) == ["4", "3", "2", "1"]
    assert rl.seen("d", [3, 5], choosing=True) == [] == rl.seen("other", [1, 2, 4])
    assert say_seen(rl, "m", "d", [4, 5]) == "1 of 2 users are among those that m was trained on"
    assert say_seen(rl, "m", "d", [5]) is None is say_seen(None, "m", "d", [1])


def test_a_card_that_names_no_data_set_may_mean_any() -> None:
    assert ModelCard(stage="sft", base_model="m", split=Split(train=(1,))).seen("any", [1, 2]) == ["1"]


def test_a_folder_without_a_card_has_none_and_what_is_no_card_is_refused(tmp_path: Path) -> None:
    assert read_card(tmp_path) is None is read_card(tmp_path / "nowhere") is find_card("owner/name", None, "")
    (tmp_path / "starec.json").write_text('{"stage": "sft"}')
    with pytest.raises(DataError, match="is no model card: base_model: Field required"):
        read_card(tmp_path)


def test_the_card_of_the_model_that_comes_with_the_package_is_found_by_its_name() -> None:
    card = find_card(None, NANO)
    assert card == read_card(NANO_FOLDER) and card is not None
    assert card.split.data_hash == DataSpec().load().hash
    card.split.load_dataset()


def test_a_server_that_says_where_its_model_lies_leads_to_the_card(tmp_path: Path) -> None:
    split = make_split(DataSpec(), test=5, train=3)
    ModelCard(stage="sft", base_model="m", split=split).save(tmp_path)
    with FakeEndpoint(scripted(), models={"mine": str(tmp_path), "other": "owner/name"}) as server:

        async def roots() -> dict[str, str]:
            async with OpenAIChat(Endpoint(base_url=server.url, model="mine")) as llm:
                assert await llm.check() == ["mine", "other"]
                return llm.roots

        assert asyncio.run(roots()) == {"mine": str(tmp_path), "other": "owner/name"}
        args = ["--turns", 1, "--base-url", server.url, "--agent", "rank-only", "--quiet"]
        done = starec("simulate", *args, "--model", "mine", "--users-file", "heldout", "--out", tmp_path / "run")
        assert done.returncode == 0, done.stderr
        assert {step.user_id for step in read_steps(tmp_path / "run")} == set(split.test)
        done = starec("simulate", *args, "--model", "other", "--users-file", "heldout", "--out", tmp_path / "no")
        assert done.returncode == 1 and "--model-card" in done.stderr
        whole = tmp_path / "split.json"
        split.save(whole)
        named = ["--split-file", whole, "--model", "other", "--model-card", tmp_path]
        done = starec("simulate", *args, *named, "--out", tmp_path / "by-split")
        assert done.returncode == 0, done.stderr
        assert {step.user_id for step in read_steps(tmp_path / "by-split")} == set(split.test)
