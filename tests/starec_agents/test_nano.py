"""The model that comes with the package: its parts fit together, and it ranks users it has never seen."""

import asyncio
import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from fake_endpoint import FakeEndpoint, scripted
from test_cli import starec

from starec_agents.agent import UserAgent
from starec_agents.agent_options import NANO_CALIBRATION
from starec_agents.calibration import Calibration
from starec_agents.llm.client import OpenAIChat
from starec_agents.responder import AgentResponder
from starec_agents.runs.reading import read_steps
from starec_agents.serving.gguf import read_gguf
from starec_agents.serving.serve import local_server
from starec_agents.serving.weights import NANO, find_folder, find_gguf, nano_users
from starec_env import load_dataset, prepare
from starec_env.errors import EndpointError
from starec_env.metrics import ndcg
from starec_env.replay.stream import Stream, judge


def test_llama_cpps_file_is_shipped_and_transformers_folder_is_made_of_it_once(tmp_path, monkeypatch):
    monkeypatch.setenv("STAREC_CACHE", str(tmp_path))
    folder = Path(find_folder(NANO, "python"))
    weights = folder / "model.safetensors"
    # of the file that was trained and measured, before it was made of the GGUF
    known = "5422509d1faf53c4351c4d953955c296ef961a982033214380f932a2c4ea025e"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == known
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "starec.json", "README.md"} <= set(
        os.listdir(folder)
    )
    assert not list(folder.glob("*.gguf")) and find_gguf(NANO).parent != folder
    weights.write_bytes(b"kept")
    assert Path(find_folder(NANO, "python")) == folder and weights.read_bytes() == b"kept"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_file_that_is_no_gguf_of_float16_is_refused(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + struct.pack("<I", 2))
    with pytest.raises(EndpointError, match="isn't a GGUF file of version 3"):
        read_gguf(broken)
    quantised = struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"a" + struct.pack("<IQIQ", 1, 8, 3, 0)
    broken.write_bytes(b"GGUF" + quantised)
    with pytest.raises(EndpointError, match="the tensor a is of GGUF's type 3, wanted float32"):
        read_gguf(broken)


def test_transformers_loads_what_llama_cpp_serves(tmp_path, monkeypatch):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    monkeypatch.setenv("STAREC_CACHE", str(tmp_path))
    folder = find_folder(NANO, "python")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    asked = [{"role": "user", "content": "User: Heat (1995) - liked"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**ids, max_new_tokens=12, do_sample=False)
    ours = tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    pytest.importorskip("xllamacpp")
    with local_server(NANO) as endpoint:

        async def ask():
            async with OpenAIChat(endpoint) as llm:
                return (await llm.complete(asked, temperature=0.0, max_tokens=12)).text

        assert asyncio.run(ask()).strip() == ours.strip() != ""


def test_its_users_are_in_one_part_each_and_all_of_the_prepared_data_set():
    users = nano_users()
    together = [user for part in users.values() for user in part]
    assert len(together) == len(set(together)) == 670
    assert set(together) == set(prepare(load_dataset("ml-latest-small")).user_ids.tolist())


def test_simulating_with_users_that_it_was_trained_on_is_said_and_the_others_can_be_picked(tmp_path):
    with FakeEndpoint(scripted(), models=(NANO, "other")) as server:

        def run(name, *more, model=NANO):
            args = ["--turns", 1, "--base-url", server.url, "--model", model, "--agent", "rank-only", "--quiet"]
            return starec("simulate", *args, "--out", tmp_path / name, *more)

        some = run("some", "--users", 20)
        ids = {step.user_id for step in read_steps(tmp_path / "some")}
        known = len(ids - set(nano_users()["test"]))
        wanted = (
            f"{known} of 20 users are among those that {NANO} was trained on: --users-file heldout takes the others"
        )
        assert wanted in some.stderr and 0 < known < 20
        table = starec("eval", "--run", tmp_path / "some", "--methods", "random", "--quiet")
        said = f"{known} of 20 users are among those that {NANO} was trained on: they are left out"
        assert said in " ".join(table.stdout.split())
        others = run("others", "--users-file", "heldout")
        assert others.returncode == 0 and "trained on" not in others.stderr
        unseen = {step.user_id for step in read_steps(tmp_path / "others")}
        assert unseen == set(nano_users()["test"])
        assert "trained on" not in run("apart", "--users", 3, model="other").stderr
        assert "trained on" in run("dry", "--users", 20, "--dry-run").stderr


def test_heldout_users_are_of_the_data_set_that_it_was_trained_on(tmp_path):
    rows = (f"{user},{(user * 7 + i) % 60},{1 + i % 5},{i}" for user in range(24) for i in range(30))
    (tmp_path / "mine.csv").write_text("\n".join(["user,item,rating,timestamp", *rows]))
    options = {"dataset": tmp_path / "mine.csv", "model": NANO, "out": tmp_path / "run", "users-file": "heldout"}
    args = [part for name, value in options.items() for part in (f"--{name}", value)]
    with FakeEndpoint(scripted(), models=(NANO,)) as server:
        done = starec("simulate", *args, "--base-url", server.url)
    assert done.returncode == 1 and "ml-latest-small" in done.stderr and not (tmp_path / "run").exists()


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


def test_served_by_llama_cpp_its_users_answer_slates_by_ranking_and_want_the_popular_ones_more():
    pytest.importorskip("xllamacpp")
    dataset, calibration = prepare(load_dataset("ml-latest-small")), Calibration.load(NANO_CALIBRATION)
    users, rows = np.array([dataset.user_index(user) for user in nano_users()["test"][:30]]), np.arange(30)
    counts, rng = np.bincount(dataset.item_indices, minlength=dataset.n_items), np.random.default_rng(0)
    anything = rng.random((30, dataset.n_items))
    for row, user in enumerate(users):
        anything[row, dataset.item_indices[dataset.indptr[user] : dataset.indptr[user + 1]]] = -1
    taken = {}
    with local_server(NANO) as endpoint:
        llm = OpenAIChat(endpoint)
        agent = UserAgent.factory(llm, answer_format="scores", max_history=12, temperature=0.0, max_tokens=160)
        agents = AgentResponder(agent, dataset, through="ranking", calibration=calibration)
        for name, scores in (("random", anything), ("popular", np.where(anything < 0, -1, counts))):
            visits = agents.open(30)
            visits.begin(rows, users, np.zeros(30, np.int64))
            answers = visits.respond(rows, np.argsort(-scores, axis=1)[:, :10])
            assert answers.problems == ("",) * 30
            taken[name] = (answers.taken >= 0).sum()
        visits = AgentResponder(agent, dataset).open(3)  # it was never taught to respond, but the schema holds it
        visits.begin(rows[:3], users[:3], np.zeros(3, np.int64))
        answered = visits.respond(rows[:3], np.argsort(-anything, axis=1)[:3, :5])
    assert taken["popular"] > taken["random"] > 3
    held = {"", "rates what it did not take", "does not rate what it took"}
    assert all(problem in held or problem.startswith("cut off") for problem in answered.problems)
