"""The model that comes with the package: its parts fit together, and it ranks users it has never seen."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from starec_agents.agent import UserAgent
from starec_agents.llm.client import OpenAIChat
from starec_agents.serve import local_server
from starec_agents.weights import NANO, find_folder, find_gguf, nano_users
from starec_env import load_dataset, prepare
from starec_env.metrics import ndcg
from starec_env.replay.stream import Stream, judge


def test_it_is_shipped_in_both_formats_with_its_card_under_15_mb():
    folder = Path(find_folder(NANO, "python"))
    files = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "users.json", "README.md", f"{NANO}.gguf"} <= set(
        files
    )
    assert sum(files.values()) < 15e6
    assert find_gguf(NANO).parent == folder


def test_its_users_are_in_one_part_each_and_all_of_the_prepared_data_set():
    users = nano_users()
    together = [user for part in users.values() for user in part]
    assert len(together) == len(set(together)) == 670
    assert set(together) == set(prepare(load_dataset("ml-latest-small")).user_ids.tolist())


def test_served_by_llama_cpp_it_ranks_unseen_users_far_above_popularity_and_writes_memories():
    pytest.importorskip("xllamacpp")
    dataset, users = prepare(load_dataset("ml-latest-small")), nano_users()
    stream = Stream(dataset, turns=2)
    counts = np.zeros(dataset.n_items)
    for user in users["train"]:
        row = dataset.user_index(user)
        counts[dataset.item_indices[dataset.starts[row] : dataset.indptr[row + 1]]] += 1
    rankings, popular = [], []

    async def live(llm, user):
        agent = UserAgent(
            llm, answer_format="compact", structured=True, max_history=12, temperature=0.0, max_tokens=160
        )
        for turn in stream.turns(dataset.user_index(user)):
            ranking = await agent.arank(turn.query)
            rankings.append((ranking, turn.target))
            shown = counts[turn.query.candidates.indices]
            popular.append(ndcg(1 + int((shown > shown[turn.target]).sum()), 10))
            await agent.alearn(judge(turn, ranking)[0])
        return agent.memory

    async def everyone(endpoint):
        async with OpenAIChat(endpoint) as llm:
            return await asyncio.gather(*(live(llm, user) for user in users["test"]))

    with local_server(NANO) as endpoint:
        memories = asyncio.run(everyone(endpoint))
    assert all(ranking.valid for ranking, _ in rankings)
    mine = [ndcg(ranking.rank_of(target), 10) for ranking, target in rankings]
    assert np.mean(mine) > np.mean(popular) + 0.1
    assert all(memory.profile.startswith("Likes ") for memory in memories)
    assert len({memory.profile for memory in memories}) > len(memories) / 2
