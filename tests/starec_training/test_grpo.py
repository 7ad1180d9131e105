"""GRPO on state snapshots: the anchor, the groups, both tasks, rounds, kills, two processes."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from fake_vllm import FakeVLLM
from peft import load_peft_weights
from safetensors.torch import load_file
from support_training import AGENT, ROOT, environment, kill_when_there, logged, losses
from trl import GRPOConfig
from trl.generation import vllm_client

from starec_agents import graphs
from starec_agents.llm import ScriptedChat
from starec_agents.llm.scripted import scripted_user
from starec_agents.runs.reading import read_steps
from starec_agents.serving.card import read_card
from starec_env.errors import EndpointError, InvalidOption, StarecWarning, TrainingError, UnknownName
from starec_env.types import Dataset, Id
from starec_training import grpo, vllm_server
from starec_training.checkpoints import StageConfig, claim, load_policy
from starec_training.collection import Collected, Rounds
from starec_training.dataset import Rows, read_rows, write_rows
from starec_training.grpo import batch_settings, paper_grpo, train_grpo, train_rounds
from starec_training.rewards import served
from starec_training.sft import lora, paper_sft, train_sft

SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-3, "max_steps": 2, "num_generations": 4, "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2, "max_completion_length": 40, "beta": 0.01, "disable_tqdm": True,
    "bf16": False,  # the same on every machine
}  # fmt: skip


def config(out: Path, **options: Any) -> GRPOConfig:
    return paper_grpo(**{"output_dir": str(out), **SETTINGS, **options})


@pytest.fixture(scope="module")
def adapter(student: Path, taught: Rows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SFT adapter: the anchor of the LoRA tests."""
    out = tmp_path_factory.mktemp("adapter")
    settings = paper_sft(output_dir=str(out), max_steps=3, learning_rate=3e-3, disable_tqdm=True, bf16=False)
    final = train_sft(student, taught, settings, adapter=lora(4))
    assert final is not None
    return final


def test_the_papers_settings_are_equation_3(tmp_path: Path) -> None:
    made = paper_grpo(output_dir=str(tmp_path))
    assert (made.loss_type, made.beta, made.learning_rate, made.num_generations) == ("grpo", 1e-3, 1e-6, 8)
    assert (made.scale_rewards, made.use_bias_correction_kl, made.num_train_epochs) == ("group", False, 1)
    assert (made.epsilon, made.epsilon_high, made.num_iterations) == (0.2, None, 1)
    assert made.generation_batch_size == 64 * 8
    assert made.steps_per_generation == made.gradient_accumulation_steps  # one update a batch: the ratio is 1
    assert (made.max_completion_length, made.vllm_max_model_length) == (16384, 20480)
    assert paper_grpo(output_dir=str(tmp_path), beta=0.5).beta == 0.5


@pytest.fixture
def caught(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The trainers that are made, to look inside."""
    made: list[Any] = []
    real = grpo.save_final
    monkeypatch.setattr(grpo, "save_final", lambda trainer, *rest: (made.append(trainer), real(trainer, *rest))[1])
    return made


@pytest.mark.parametrize("algorithm", ["grpo", "reinforce++"])
def test_an_adapter_trains_against_a_frozen_copy_of_itself(
    adapter: Path, taught: Rows, tmp_path: Path, caught: list[Any], algorithm: str
) -> None:
    final = train_grpo(adapter, taught, config(tmp_path), algorithm=algorithm)
    assert final is not None
    kl = logged(tmp_path, "kl")
    assert kl[0] == 0.0 != kl[1]
    anchor, policy = load_peft_weights(str(adapter)), load_peft_weights(str(final))
    assert set(anchor) == set(policy)
    assert any(not torch.equal(anchor[name], policy[name]) for name in anchor)
    reference = {name: value for name, value in caught[0].model.named_parameters() if ".ref." in name}
    assert len(reference) == len(anchor)
    for name, value in reference.items():
        assert torch.equal(value, anchor[name.replace(".ref.", ".")])
    assert not (final / "ref").exists()
    card = read_card(final)
    assert card is not None and card.stage == algorithm
    assert set(card.split.train) == {row.snapshot.user_id for row in taught}
    assert card.settings["trainer"]["beta"] == 0.01
    assert card.base is not None and card.base.stage == "sft"  # the anchor's own users count too


def test_all_weights_train_against_the_folder_they_came_from(
    student: Path, taught: Rows, tmp_path: Path, caught: list[Any]
) -> None:
    final = train_grpo(student, taught, config(tmp_path), reward="ndcg")
    assert final is not None
    kl = logged(tmp_path, "kl")
    assert kl[0] == 0.0 < kl[1]
    anchor = load_file(student / "model.safetensors")
    reference = caught[0].ref_model.state_dict()
    assert all(torch.equal(value, reference[name]) for name, value in anchor.items())
    moved = load_file(final / "model.safetensors")
    assert any(not torch.equal(value, moved[name]) for name, value in anchor.items())
    page = (ROOT / "docs" / "training.md").read_text().split("## The log")[1]
    names = re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| (`.+?`) \|", page, re.MULTILINE)))
    assert {"reward", "rank/ndcg@10", "memory/usable", "kl", "entropy", "frac_reward_zero_std"} <= set(names)
    assert [name for name in names if not logged(tmp_path, name)] == []


def test_a_group_holds_completions_of_one_prompt(adapter: Path, taught: Rows, tmp_path: Path) -> None:
    train_grpo(adapter, taught, config(tmp_path, max_steps=1))
    (table,) = (tmp_path / "completions").glob("*.parquet")
    kept = pd.read_parquet(table)
    assert len(kept) == 16
    assert list(Counter(kept["prompt"].map(str)).values()) == [4] * 4
    for start in range(0, 16, 4):
        group = kept[start : start + 4]
        assert group["prompt"].map(str).nunique() == 1
        assert abs(group["advantage"].sum()) < 1e-3
    assert ((kept["ranking"].isna()) != (kept["memory"].isna())).all()


def test_a_batch_that_mixes_prompts_stops(
    adapter: Path, taught: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mixed(grpo.AgentGRPO):
        def _calculate_rewards(self, inputs: list[Any], *args: Any, **options: Any) -> Any:
            return super()._calculate_rewards([*inputs[1:], inputs[0]], *args, **options)

    monkeypatch.setattr(grpo, "_trainer_class", lambda _: Mixed)
    with pytest.raises(TrainingError, match="mixes prompts"):
        train_grpo(adapter, taught, config(tmp_path))


def test_a_reward_server_that_dies_stops_training_and_a_live_one_lets_it_go_on(
    adapter: Path, taught: Rows, tmp_path: Path
) -> None:
    updates = Rows([row for row in taught if row.task == "reflect"])
    calls = 0

    def reply(*_: Any) -> str:
        nonlocal calls
        calls += 1
        if 4 < calls < 100:
            raise EndpointError("connection refused", "connection")
        return "A B C D"

    rank = served(ScriptedChat(reply))
    options = {"gradient_accumulation_steps": 1, "save_steps": 1, "num_generations": 2, "max_completion_length": 60}
    with pytest.raises(EndpointError, match="refused"):
        for _ in range(9):
            train_grpo(adapter, updates, config(tmp_path, max_steps=3, **options), rank=rank)
    calls = 1000
    assert train_grpo(adapter, updates, config(tmp_path, max_steps=3, **options), rank=rank) is not None


@pytest.mark.parametrize("refill", [0, 2])
def test_a_killed_training_resumes_to_the_same_losses(adapter: Path, taught: Rows, tmp_path: Path, refill: int) -> None:
    options = {"max_steps": 5, "save_steps": 1, "save_total_limit": None}
    train_grpo(adapter, taught, config(tmp_path / "whole", **options), refill=refill)
    write_rows(tmp_path / "rows.jsonl", taught)
    broken = tmp_path / "broken"
    settings = {**SETTINGS, **options, "save_total_limit": "null"}
    (tmp_path / "grpo.yaml").write_text("".join(f"{name}: {value}\n" for name, value in settings.items()))
    command = ["train", "grpo", "--config", str(tmp_path / "grpo.yaml"), "--model", str(adapter)]
    command += ["--rows", str(tmp_path / "rows.jsonl"), "--output_dir", str(broken), "--refill", str(refill)]
    kill_when_there(command, broken / "checkpoint-2" / "trainer_state.json")
    assert not (broken / "final").exists()
    assert train_grpo(adapter, taught, config(broken, **options), refill=refill) == broken / "final"
    assert losses(broken) == losses(tmp_path / "whole")
    assert logged(broken, "kl") == logged(tmp_path / "whole", "kl")
    replaced = logged(broken, "refill/replaced")
    assert replaced == logged(tmp_path / "whole", "refill/replaced")
    assert (sum(replaced[2:]) > 0) == bool(refill)  # after the kill too


@pytest.mark.filterwarnings("ignore:round 1. none of the policy's")  # such steps may unlearn the profile's format
@pytest.mark.parametrize("whole", [True, False], ids=["all weights", "adapter"])
def test_rounds_collect_with_the_policy_and_keep_the_anchor(
    student: Path, adapter: Path, films: Dataset, train_users: list[Id], tmp_path: Path, caught: list[Any], whole: bool
) -> None:
    anchor = student if whole else adapter
    rounds = Rounds(rounds=2, users=8, turns=3, candidates=(3, 4), prompts=30, agent=AGENT)
    final = train_rounds(anchor, films, train_users, config(tmp_path), rounds, heldout=[24])
    assert final == tmp_path / "round-1" / "train" / "final"
    for number, candidates in ((0, 3), (1, 4)):
        told = json.loads((tmp_path / f"round-{number}" / "population" / "run.json").read_text())
        assert (told["n_candidates"], told["split"], told["model"]) == (candidates, "train", f"round {number}")
    first, second = (logged(tmp_path / f"round-{number}" / "train", "kl") for number in (0, 1))
    assert first[0] == 0.0
    assert second[0] != 0.0  # the second round starts from the first's policy, and its reference is still the anchor
    if whole:
        reference = caught[1].ref_model.state_dict()
        assert all(torch.equal(v, reference[name]) for name, v in load_file(anchor / "model.safetensors").items())
    else:
        kept = {name: v for name, v in caught[1].model.named_parameters() if ".ref." in name}
        weights = load_peft_weights(str(anchor))
        assert all(torch.equal(v, weights[name.replace(".ref.", ".")]) for name, v in kept.items())
    before = (tmp_path / "round-0" / "rows-0.jsonl").stat().st_mtime_ns
    assert train_rounds(anchor, films, train_users, config(tmp_path), rounds) == final
    assert (tmp_path / "round-0" / "rows-0.jsonl").stat().st_mtime_ns == before


def test_a_server_that_holds_the_policy_answers_graph_and_follow_ups(
    adapter: Path, films: Dataset, train_users: list[Id], tmp_path: Path
) -> None:
    server = ScriptedChat(scripted_user())
    rounds = Rounds(users=6, turns=3, candidates=(4,), agent=AGENT)
    final = train_rounds(
        adapter, films, train_users, config(tmp_path, max_steps=1), rounds, llm=server, rank=served(server)
    )
    assert final is not None
    run = json.loads((tmp_path / "round-0" / "population" / "metrics.json").read_text())
    asked = sum(len(step.calls) for step in read_steps(tmp_path / "round-0" / "population"))
    assert run["valid_share"] == 1.0
    assert server.requests > asked == 2 * run["steps"]
    assert train_rounds(adapter, films, train_users, config(tmp_path / "late"), rounds, llm=server, minutes=0) is None


@pytest.mark.parametrize("whole", [True, False], ids=["all weights", "adapter"])
def test_in_server_mode_one_server_holds_the_policy_and_answers_graph_groups_and_follow_ups(
    student: Path, adapter: Path, films: Dataset, train_users: list[Id], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, whole: bool,
) -> None:  # fmt: skip
    rounds = Rounds(rounds=2, users=4, turns=3, candidates=(4,), agent=AGENT)
    with FakeVLLM(student, monkeypatch) as server:
        told = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": server.url, "bf16": False}
        final = train_rounds(
            student if whole else adapter, films, train_users, config(tmp_path, **told), rounds, follow_up_tokens=20
        )
    assert final is not None
    assert logged(tmp_path / "round-0" / "train", "kl")[0] == 0.0
    assert max(logged(tmp_path / "round-0" / "train", "sampling/sampling_logp_difference/max")) < 1e-3
    whats = [what for what, _ in server.log]
    assert list(dict.fromkeys(whats)) == ["update", "collect", "sample", "follow up"]
    assert whats.count("sample") == 4  # two steps of each round
    for folder, weights in ((student if whole else adapter, 0), (tmp_path / "round-0" / "train" / "final", -1)):
        network = load_policy(folder)[0]
        network = network if whole else network.merge_and_unload()
        assert server.asked("collect")[weights] == pytest.approx(server.fingerprint(network), rel=1e-9)
    met = 0.0
    for what, weights in server.log:  # follow-ups of a step meet the weights that its groups were drawn with
        met = weights if what == "sample" else met
        assert what != "follow up" or weights == met


def test_server_mode_without_its_server_or_library_stops_at_once(
    student: Path, films: Dataset, train_users: list[Id], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": "http://127.0.0.1:9", "bf16": False}
    with pytest.raises(TrainingError, match="pip install"):
        train_rounds(student, films, train_users, config(tmp_path, **told), Rounds(agent=AGENT))
    monkeypatch.setattr(vllm_server, "find_spec", lambda _: True)
    with pytest.raises(TrainingError, match="no vLLM server answers at http://127.0.0.1:9 .*vllm serve MODEL"):
        train_rounds(student, films, train_users, config(tmp_path, **told), Rounds(agent=AGENT))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("fails", "kind"), [("refuses", "server"), ("hangs up", "connection")])
def test_a_server_that_fails_in_the_middle_is_named_and_the_next_call_goes_on(
    student: Path, films: Dataset, train_users: list[Id], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    fails: str, kind: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(vllm_client, "Retry", lambda **_: 0)  # it would wait for a minute
    rounds = Rounds(users=4, turns=3, candidates=(4,), tasks=("rank",), agent=AGENT)

    def go_on(server: FakeVLLM) -> Path | None:
        told = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": server.url, "bf16": False}
        return train_rounds(student, films, train_users, config(tmp_path, save_steps=1, **told), rounds)

    with FakeVLLM(student, monkeypatch, fails) as server:
        with pytest.raises(EndpointError, match=f"vLLM server at {server.url} failed .*vllm serve") as caught:
            go_on(server)
        assert caught.value.kind == kind
    with FakeVLLM(student, monkeypatch) as server:
        assert go_on(server) is not None
        assert [what for what, _ in server.log] == ["update", "sample"]


def test_a_step_has_its_prompts_however_many_processes_share_them(tmp_path: Path) -> None:
    for processes, at_once in ((1, 8), (8, 8), (4, 16), (64, 8), (2, 64)):
        made = batch_settings(processes=processes, at_once=at_once)
        assert made["gradient_accumulation_steps"] * at_once * processes == 64 * 8
    assert batch_settings(16, 4, 8, processes=2)["gradient_accumulation_steps"] == 4
    with pytest.raises(InvalidOption, match="64 prompts of 8 completions a step don't divide among 3 processes"):
        batch_settings(processes=3)
    assert paper_grpo(output_dir=str(tmp_path), per_device_train_batch_size=64).generation_batch_size == 512
    assert paper_grpo(4, output_dir=str(tmp_path), num_generations=2).generation_batch_size == 8


def length_reward(*, completions: Any, **_: Any) -> list[float]:
    """A reward function of one's own, named on the command line."""
    return [float(len(completion[-1]["content"])) for completion in completions]


def test_own_reward_functions_join_ours_with_weights(student: Path, taught: Rows, tmp_path: Path) -> None:
    ranked = Rows([row for row in taught if row.task == "rank"])
    how = {"max_steps": 1, "reward_weights": [1.0, 1.0, 0.5]}
    final = train_grpo(student, ranked, config(tmp_path, **how), reward_funcs=[length_reward])
    assert final is not None
    ours, own = logged(tmp_path, "rewards/ranking/mean")[0], logged(tmp_path, "rewards/length_reward/mean")[0]
    assert logged(tmp_path, "reward")[0] == pytest.approx(ours + 0.5 * own, rel=1e-5)
    with pytest.raises(TrainingError, match="reward_funcs"):
        train_grpo(student, ranked, config(tmp_path, **how | {"reward_weights": None}))
    with pytest.raises(InvalidOption, match="2 weights for 3 functions.*ranking, memory, .*:length_reward"):
        train_grpo(student, ranked, config(tmp_path, reward_weights=[1, 1]), reward_funcs=[length_reward])
    with pytest.raises(InvalidOption, match="MODULE:FUNCTION"):
        train_grpo(student, ranked, config(tmp_path), reward_funcs=["nowhere:nothing"])
    with pytest.raises(InvalidOption, match="leaves nothing to train on"):
        train_grpo(student, ranked, config(tmp_path), reward="none")


def test_rows_that_fill_no_last_batch_are_counted(taught: Rows, tmp_path: Path) -> None:
    kept = grpo.whole_batches(Rows(taught.rows[:11]), config(tmp_path))  # batches of 4
    assert len(kept) == 11
    assert kept.dropped["left over from batches of 4 prompts"] == 3


@pytest.mark.parametrize(
    "changed",
    [
        {"config": {"temperature": 0.7}},
        {"config": {"max_completion_length": 41}},
        {"config": {"epsilon": 0.3}},
        {"config": {"warmup_steps": 1}},
        {"config": {"chat_template_kwargs": {"depth": 1}}},
        {"algorithm": "reinforce++"},
        {"reward": "ndcg"},
        {"reward_funcs": [length_reward]},
        {"max_prompt": 999},
        {"follow_up_tokens": 3},
        {"adapter": lora(2)},
        {"frozen": ["embed"]},
        {"start": "elsewhere"},
        {"rows": 9},
        {"model": "another"},
    ],
    ids=lambda changed: next(iter(changed.get("config", changed))),
)
def test_a_folder_of_other_settings_is_refused_before_anything_is_loaded(
    taught: Rows, tmp_path: Path, changed: dict[str, Any]
) -> None:
    (nothing := tmp_path / "nothing").mkdir()
    made = StageConfig.of("grpo", nothing, config(tmp_path), taught, reward="position", max_prompt=4096)
    claim(tmp_path, made)
    free = {"logging_steps": 5, "save_steps": 7, "report_to": "none"}
    options = {name: value for name, value in changed.items() if name not in ("config", "rows", "model")}
    rows = Rows(taught.rows[: changed.get("rows")])
    with pytest.raises(TrainingError, match="holds another run: its"):
        train_grpo(
            changed.get("model", nothing), rows, config(tmp_path, **free, **changed.get("config", {})), **options
        )
    with pytest.raises(TrainingError, match="can't load .*nothing"):  # the same settings: it goes on
        train_grpo(nothing, taught, config(tmp_path, **free))


def test_rounds_of_other_settings_are_refused(
    student: Path, films: Dataset, train_users: list[Id], tmp_path: Path
) -> None:
    def go(agent: dict[str, Any], *, beta: float = 0.01, **how: Any) -> None:
        rounds = Rounds(**{"users": 4, "turns": 3, "candidates": (4,), "agent": agent, **how})
        scripted = ScriptedChat(scripted_user())
        train_rounds(student, films, train_users, config(tmp_path, beta=beta, max_steps=1), rounds, llm=scripted)

    go(AGENT)
    go(AGENT, batch_size=5)
    for agent, how, named in (
        ({**AGENT, "max_history": 3}, {}, "rounds.agent.prompts"),  # whose hash the history is part of
        ({**AGENT, "graph": graphs.rank_only}, {}, "rounds.agent"),
        (AGENT, {"follow_ups": 2}, "follow_ups"),
        (AGENT, {"beta": 0.5}, "trainer.beta"),
    ):
        with pytest.raises(TrainingError, match=f"holds another run: .*{named}"):
            go(agent, **how)


def test_a_graph_without_reflection_trains_on_rankings_alone(
    student: Path, films: Dataset, train_users: list[Id], tmp_path: Path
) -> None:
    rounds = Rounds(users=4, turns=3, candidates=(4,), agent={**AGENT, "graph": graphs.rank_only})
    scripted = ScriptedChat(scripted_user())
    assert train_rounds(student, films, train_users, config(tmp_path, max_steps=1), rounds, llm=scripted)
    assert {row.task for row in read_rows(tmp_path / "round-0" / "rows-0.jsonl")} == {"rank"}


def test_lora_trains_under_gradient_checkpointing(student: Path, taught: Rows, tmp_path: Path) -> None:
    how = {"max_steps": 1, "gradient_checkpointing": True}
    final = train_grpo(student, taught, config(tmp_path, **how), adapter=lora(4), reward_funcs=[length_reward])
    assert final is not None
    assert sum(float(v.abs().sum()) for name, v in load_peft_weights(str(final)).items() if "lora_B" in name) > 0


def test_a_round_trains_on_its_tasks_and_number_of_prompts(taught: Rows, films: Dataset, tmp_path: Path) -> None:
    def chosen(rows: Rows, **how: Any) -> Rows:
        return Collected(films, [], config(tmp_path), Rounds(**how), None, ()).chosen(rows, 1)

    ranked = chosen(taught, tasks=["rank"], prompts=5)
    assert {row.task for row in ranked} == {"rank"}
    assert len(ranked) == 5
    assert ranked.dropped["task reflect doesn't train"] == sum(row.task == "reflect" for row in taught)
    assert len(chosen(taught)) == len(taught)


def test_a_round_whose_answers_cannot_be_read_stops_with_advice(taught: Rows, films: Dataset, tmp_path: Path) -> None:
    def chosen(cut: str, *tasks: str, spared: int = 0) -> Rows:
        rows = [row.model_copy(update={"lineage": {"cut_off": True}}) if row.task == cut else row for row in taught]
        spare = [row for row in taught if row.task == cut][:spared]
        how = Rounds(tasks=tasks or ("rank", "reflect"))
        return Collected(films, [], config(tmp_path), how, None, ()).chosen(Rows([*rows, *spare]), 3)

    for cut, tasks in (("rank", ()), ("reflect", ("reflect",))):
        with pytest.raises(TrainingError, match=rf"round 3: none of .* task '{cut}' .* were cut off.*starec train sft"):
            chosen(cut, *tasks)
        assert chosen(cut, *tasks, spared=1)
    with pytest.warns(StarecWarning, match="none of .* task 'reflect'"):
        assert chosen("reflect")


def test_bad_input_stops_before_time_is_wasted(
    student: Path, taught: Rows, films: Dataset, train_users: list[Id], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises((InvalidOption, UnknownName), match="reinforce"):
        train_grpo(student, taught, config(tmp_path), algorithm="reinforce")
    with pytest.raises((InvalidOption, UnknownName), match="ndcg"):
        train_grpo(student, taught, config(tmp_path), reward="ndgc")
    with pytest.raises(TrainingError, match="held-out"):
        train_grpo(student, taught, config(tmp_path), heldout=[taught.rows[0].snapshot.user_id])
    with pytest.raises(TrainingError, match="held-out"):
        train_rounds(student, films, train_users, config(tmp_path), Rounds(), heldout=train_users[:1])
    with pytest.raises(InvalidOption, match="users=99"):
        train_rounds(student, films, train_users, config(tmp_path), Rounds(users=99, agent=AGENT, candidates=(4,)))
    with pytest.raises(TrainingError, match="don't fill one batch of 4 prompts"):
        train_grpo(student, Rows(taught.rows[:3]), config(tmp_path / "few"))
    with pytest.raises(TrainingError, match="no row is left"):
        train_grpo(student, taught, config(tmp_path / "long"), max_prompt=10)

    def frozen(*how: Any, **known: Any) -> tuple[Any, Any]:
        policy, tokenizer = load_policy(*how, **known)
        return policy.requires_grad_(False), tokenizer

    monkeypatch.setattr(grpo, "load_policy", frozen)
    with pytest.raises(TrainingError, match="no parameter is trainable"):
        train_grpo(student, taught, config(tmp_path / "frozen"))


TWO = """
import json, os, sys, time
from pathlib import Path
from starec_env.cli import main
from starec_training.collection import Collected
from starec_training.collection import Rounds
from starec_training.grpo import batch_settings, paper_grpo, train_rounds
from starec_training.dataset import read_rows, write_rows
sys.path.insert(0, sys.argv[4])
from support import make_dataset

model, rows, out = Path(sys.argv[1]), read_rows(sys.argv[2]).rows, Path(sys.argv[3])
settings = json.loads(sys.argv[5]) | {"ddp_timeout": 120, "per_device_train_batch_size": 4}
updates, ranked = ([row for row in rows if row.task == task] for task in ("reflect", "rank"))
uneven = [row for pair in zip(updates, ranked) for row in pair][:6]  # every batch: one prompt of each task
if int(os.environ["RANK"]) == 0:
    write_rows(out / "uneven.jsonl", uneven)
once = settings | {"gradient_accumulation_steps": 1, "shuffle_dataset": False}
(out / f"{os.environ['RANK']}.yaml").write_text(json.dumps(once))
while not (out / "uneven.jsonl").exists():
    time.sleep(0.1)
try:
    command = ["grpo", "--config", str(out / f"{os.environ['RANK']}.yaml"), "--model", str(model)]
    main(["train", *command, "--rows", str(out / "uneven.jsonl"), "--output_dir", str(out / "rows")])
except SystemExit as stop:
    assert not stop.code, stop.code
films = make_dataset(n_users=24, n_items=40)
rounds = Rounds(users=8, turns=2, candidates=(4,), agent={"answer_format": "compact", "max_history": 2})
users = sorted({row.snapshot.user_id for row in rows})
assert train_rounds(model, films, users, paper_grpo(output_dir=str(out / "rounds"), **settings), rounds)
"""


def test_two_processes_pass_where_one_of_them_has_no_memory_rows(adapter: Path, taught: Rows, tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", taught)
    (tmp_path / "two.py").write_text(TWO)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    launch.append(str(tmp_path / "two.py"))
    arguments = [str(adapter), str(tmp_path / "rows.jsonl"), str(tmp_path), str(ROOT / "tests"), json.dumps(SETTINGS)]
    done = subprocess.run([*launch, *arguments], env=environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert logged(tmp_path / "rows", "kl")[0] == 0.0
    kept = pd.concat(map(pd.read_parquet, sorted((tmp_path / "rows" / "completions").glob("*.parquet"))))
    assert kept["ranking"].isna().tolist() == ([True] * 4 + [False] * 4) * 2  # one process had updates alone
    parts = [tmp_path / "rounds" / "round-0" / f"rows-{place}.jsonl" for place in (0, 1)]
    first, second = ({json.loads(line)["snapshot"]["user_id"] for line in part.open()} for part in parts)
    assert first and second and not first & second
