"""RL enhancement (4.2.2): GRPO on state snapshots, in rounds, by TRL's GRPOTrainer.

A round runs the agent graph with the current policy, turns what each node saw into rows, trains on them, and hands the
policy to the next round. The KL anchor is the SFT model in every round.
"""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from peft import LoraConfig, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_model
from trl import GRPOConfig, GRPOTrainer

from starec_agents.agent import UserAgent
from starec_agents.llm import ChatModel
from starec_agents.runs.config import Purpose
from starec_agents.runs.population import run_population
from starec_agents.runs.records import Turns
from starec_env.errors import InvalidOption, TrainingError, check_choice
from starec_env.replay.stream import Stream
from starec_env.types import Dataset, Id
from starec_training.checkpoints import FINAL, Guard, check_trainable, claim, device_settings, digest, load_policy
from starec_training.dataset import (
    Rows,
    check_apart,
    fitting,
    read_rows,
    read_snapshot,
    run_rows,
    to_dataset,
    with_turns,
    write_rows,
)
from starec_training.features import Evidence
from starec_training.generation import LocalChat, ends_of, ranker
from starec_training.grouped import Rollout, share_prefixes
from starec_training.negatives import KINDS, HarderTurns
from starec_training.rewards import REWARDS, Ending, RankPrompts, memory_reward, ranking_reward, served
from starec_training.sft import finish
from starec_training.vllm_server import hand_over, holds_policy, server_chat, watched

ALGORITHMS = ("grpo", "reinforce++")
MAX_PROMPT = 4096
"""Most tokens of a prompt (5.1.4)."""

Key = tuple[str, Id, int]
T = TypeVar("T")


def paper_settings() -> dict[str, Any]:
    """The paper's GRPO (5.1.4, equation 3) as fields of GRPOConfig.

    The batch of 64 is read as prompts, as VeRL counts it: 64 prompts of 8 completions are 512 completions a step on
    one process (8 at a time, 64 times). For the other reading, 64 completions, set gradient_accumulation_steps=8.
    TRL's own defaults differ from equation 3 in loss_type, beta and use_bias_correction_kl.
    """
    return {
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "num_train_epochs": 1,
        "num_generations": 8,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 64,
        "beta": 1e-3,
        "loss_type": "grpo",
        "scale_rewards": "group",
        "use_bias_correction_kl": False,
        "max_completion_length": 16384,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "vllm_max_model_length": MAX_PROMPT + 16384,
        "vllm_importance_sampling_mode": "token_truncate",
        "logging_steps": 1,
        "save_steps": 10,
        "save_total_limit": 2,
        "log_completions": True,
        "num_completions_to_print": 0,
        **device_settings(),
    }


def paper_grpo(**overrides: Any) -> GRPOConfig:
    """TRL's GRPOConfig with the paper's settings; any field can be overridden."""
    return GRPOConfig(**{**paper_settings(), **overrides})


class AgentGRPO(GRPOTrainer):  # type: ignore[misc]
    """GRPOTrainer that checks each group, and records which prompts had spread: `spread.jsonl` in its folder."""

    gathered_rewards: torch.Tensor
    """(completions of all processes, reward functions) of the last batch; NaN where a function doesn't apply."""

    def _calculate_rewards(self, inputs: list[dict[str, Any]], *args: Any, **options: Any) -> torch.Tensor:
        found: torch.Tensor = super()._calculate_rewards(inputs, *args, **options)
        self.gathered_rewards = found
        keys: list[Key] = gather_object([read_snapshot(row["snapshot"]).key for row in inputs])
        if torch.isnan(found).all(1).any():
            raise TrainingError("a completion has no reward: each task needs a reward function that returns a number")
        size = self.num_generations if self.model.training else self.num_generations_eval
        groups = [keys[start : start + size] for start in range(0, len(keys), size)]
        if any(len(set(group)) > 1 for group in groups):
            raise TrainingError(f"a group mixes prompts: {next(g for g in groups if len(set(g)) > 1)}")
        if self.accelerator.is_main_process and self.model.training:
            rewards = found.nansum(1).view(-1, size)
            with open(Path(self.args.output_dir) / "spread.jsonl", "a", encoding="utf-8") as file:
                for group, values in zip(groups, rewards.tolist(), strict=True):
                    file.write(json.dumps([*group[0], max(values) - min(values)]) + "\n")
        return found


def without_spread(folder: str | Path) -> set[Key]:
    """Prompts whose last group in a training's folder earned one reward alone, and so taught nothing."""
    path = Path(folder) / "spread.jsonl"
    last: dict[Key, float] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        task, user_id, turn, spread = json.loads(line)
        last[task, user_id, turn] = spread
    return {key for key, spread in last.items() if spread == 0}


def train_grpo(
    model: str | Path,
    rows: Rows,
    config: GRPOConfig,
    *,
    start: str | Path | None = None,
    adapter: LoraConfig | None = None,
    algorithm: str = "grpo",
    reward: str = "position",
    rank: RankPrompts | None = None,
    follow_up_tokens: int | None = None,
    max_prompt: int = MAX_PROMPT,
    heldout: Collection[Id] = (),
    minutes: float | None = None,
    rollout: Rollout | None = None,
    frozen: Sequence[str] = (),
) -> Path | None:
    """One round of reinforcement training. A killed or stopped round goes on from its last checkpoint.

    Args:
        model: The anchor: the SFT model's folder. An adapter's folder trains that adapter, with a frozen copy of it as
            the reference; a whole model trains all weights, with the folder loaded again as the reference.
        rows: State snapshots, as `run_rows` makes them.
        config: `paper_grpo(...)`, or any GRPOConfig. beta=0 trains without an anchor.
        start: Weights to start from instead of the anchor's, of the same kind: the last round's result.
        adapter: Train a new LoRA on a whole model, which is then the reference.
        algorithm: "grpo", or "reinforce++" (Table 5).
        reward: "position" (the paper's) or "ndcg".
        rank: Ranks the follow-ups of memory updates, e.g. `served(...)`; None asks the model being trained, or in
            vLLM's server mode the server that holds it.
        follow_up_tokens: Most tokens of such a follow-up; None: as of any completion.
        max_prompt: Longer prompts are dropped and counted.
        heldout: Users kept for testing.
        minutes: Stop with a checkpoint after so long.
        rollout: Draws the answers in TRL's place, e.g. `grouped.scores_only(...)`.
        frozen: Parts of parameters' names that aren't trained, e.g. "embed_tokens": a score is a token, and noise on
            its vector costs the greedy answer more than the policy gains.

    Returns:
        The folder of the trained policy, or None if the time ran out before the end.

    Raises:
        TrainingError: The rows, the model or the folder can't be used; says why.
        EndpointError: The server that ranks follow-ups, or holds the policy, died; call again when it is back.
    """
    check_choice("algorithm", algorithm, ALGORITHMS)
    check_choice("reward", reward, list(REWARDS))
    check_apart((row.snapshot.user_id for row in rows), heldout)
    out = Path(config.output_dir)
    names = ("learning_rate", "beta", "loss_type", "num_generations", "generation_batch_size", "seed", "max_steps")
    settings: dict[str, Any] = {"stage": algorithm, "model": str(model), "start": str(start), "reward": reward}
    settings |= {"lora": adapter.r if adapter else 0, **{name: getattr(config, name) for name in names}}
    checkpoint = claim(out, settings, rows)
    if (out / FINAL).exists():
        return out / FINAL
    most = follow_up_tokens or config.max_completion_length
    if rank is None and holds_policy(config):
        rank = served(server_chat(config), temperature=0.0, max_tokens=most)
    policy, tokenizer = load_policy(model)
    for name, weight in policy.named_parameters():
        weight.requires_grad_(weight.requires_grad and not any(part in name for part in frozen))
    if adapter is None and not config.use_vllm:
        share_prefixes(policy)
    rows = fitting(rows, tokenizer, max_prompt=max_prompt)
    prompts = config.generation_batch_size // config.num_generations
    if len(rows) < prompts:
        raise TrainingError(
            f"{len(rows)} rows don't fill one batch of {prompts} prompts: collect more, or lower "
            "gradient_accumulation_steps or per_device_train_batch_size"
        )
    worth = REWARDS[reward]
    follow = rank or ranker(
        lambda: trainer.accelerator.unwrap_model(trainer.model),
        tokenizer,
        max_tokens=most,
        batch_size=config.per_device_train_batch_size,
    )
    ending = Ending.of(tokenizer, ends_of(policy, tokenizer), **(config.chat_template_kwargs or {}))
    trainer = _trainer_class(algorithm)(
        model=policy,
        args=config,
        reward_funcs=[ranking_reward(worth, ending), memory_reward(follow, worth, ending)],
        train_dataset=to_dataset(rows).remove_columns("completion"),
        processing_class=tokenizer,
        peft_config=adapter,
        rollout_func=rollout,
        callbacks=[Guard(minutes, anchored=start is None and checkpoint is None)],
    )
    sharded = trainer.is_fsdp_enabled or (trainer.is_deepspeed_enabled and config.deepspeed_plugin.zero_stage == 3)
    if sharded and rank is None and any(row.task == "reflect" for row in rows):
        raise TrainingError(
            "the model is sharded, so no process can rank follow-ups alone: give `rank` a server that holds the policy"
        )
    check_trainable(trainer.model)
    if start is not None:
        _load_weights(trainer.model, Path(start))
    trainer.accelerator.print(str(rows))
    with watched(config):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if holds_policy(config) and trainer.is_world_process_zero():
        trainer.vllm_generation.vllm_client.close_communicator()  # the next round opens its own, at the same port
    return finish(trainer, tokenizer, out)


def _trainer_class(algorithm: str) -> type[AgentGRPO]:
    if algorithm == "grpo":
        return AgentGRPO
    from starec_training.reinforce_pp import AgentReinforcePP

    return AgentReinforcePP


def _load_weights(model: Any, folder: Path) -> None:
    # After the trainer was made: its reference is a copy of the anchor, and only the policy takes the new weights.
    if hasattr(model, "peft_config"):
        set_peft_model_state_dict(model, load_peft_weights(str(folder)), adapter_name="default")
    else:
        load_model(model, folder / "model.safetensors")


@dataclass(frozen=True)
class Rounds:
    """How training data are collected, round by round."""

    rounds: int = 1
    users: int | Sequence[Id] | None = None
    """Training users of each round: ids, or how many to sample (another sample each round); None takes all."""
    turns: int | None = None
    """The last so many turns of each user."""
    candidates: Sequence[int] = (20,)
    """Candidates of each round's lists; the last holds for further rounds. Growing numbers make a curriculum."""
    hard: Sequence[float] = (0.0,)
    """Share of each round's negatives that are harder than the environment's, likewise; growing shares make another."""
    hard_kind: str = "popular"
    """What the harder ones are like: popular, or near to the target (`negatives.HarderTurns`)."""
    prompts: int | None = None
    """Most prompts a round, sampled; None takes all."""
    tasks: Sequence[str] = ("rank", "reflect")
    """Which of the two tasks train."""
    follow_ups: int = 1
    """Next turns that pay a memory update."""
    agent: dict[str, Any] = field(default_factory=dict)
    """Options of UserAgent: graph, answer_format, structured, max_history."""
    batch_size: int = 32
    """Prompts at a time of a policy in this process."""
    seed: int = 0


def train_rounds(
    model: str | Path,
    dataset: Dataset,
    train_users: Sequence[Id],
    config: GRPOConfig,
    rounds: Rounds,
    *,
    heldout: Collection[Id] = (),
    llm: ChatModel | None = None,
    minutes: float | None = None,
    **options: Any,
) -> Path | None:
    """Collect with the current policy through the agent graph, train, and collect again (4.2.2).

    Each round has its folder in config.output_dir: `population` (a run like any other), `rows.jsonl` and `train`. All
    are kept, and a killed training goes on where it was. Under a launcher of several processes, each collects from its
    share of the users.

    Args:
        model: The anchor, as for `train_grpo`.
        dataset: The prepared data set.
        train_users: Ids of the users to learn from.
        config: `paper_grpo(...)`; its output_dir holds the rounds.
        rounds: How to collect.
        heldout: Users kept for testing; none may be a training user.
        llm: Answers the agent graph in the policy's place; None asks the policy in this process, or in vLLM's server
            mode the server, which gets the policy's weights first.
        minutes: Stop with a checkpoint after so long; a collection is not stopped, but goes on when it was killed.
        options: Of `train_grpo`: adapter, algorithm, reward, rank and so on.

    Returns:
        The folder of the last round's policy, or None if the time ran out.
    """
    if rounds.rounds < 1 or not rounds.candidates or not rounds.hard:
        raise InvalidOption("at least one round, a number of candidates and a share of hard negatives are needed")
    check_choice("hard_kind", rounds.hard_kind, KINDS)
    check_apart(train_users, heldout)
    if llm is None and holds_policy(config):
        server_chat(config)  # raises if it can't be asked, before time is wasted
    told = {"stage": "rounds", "model": str(model), "dataset": dataset.hash, "train_users": digest(train_users)}
    told |= {name: value for name, value in vars(rounds).items() if name not in ("rounds", "batch_size", "agent")}
    claim(config.output_dir, told, Rows())
    began = time.monotonic()
    policy: Path | None = None
    for number in range(rounds.rounds):
        folder = Path(config.output_dir) / f"round-{number}"
        rows = _collected(folder, policy or model, dataset, train_users, config, rounds, number, llm, heldout)
        previous = Path(config.output_dir) / f"round-{number - 1}"
        rows = _worth_training(rows, previous / "train", rounds, number)
        own = copy.copy(config)
        own.output_dir, own.seed = str(folder / "train"), config.seed + number
        left = None if minutes is None else minutes - (time.monotonic() - began) / 60
        policy = train_grpo(model, rows, own, start=policy, heldout=heldout, minutes=left, **options)
        if policy is None:
            return None
    return policy


def _collected(
    folder: Path,
    policy: str | Path,
    dataset: Dataset,
    train_users: Sequence[Id],
    config: GRPOConfig,
    rounds: Rounds,
    number: int,
    llm: ChatModel | None,
    heldout: Collection[Id],
) -> Rows:
    state = PartialState()
    mine = folder / f"population-{state.process_index}" if state.num_processes > 1 else folder / "population"
    parts = [folder / f"rows-{place}.jsonl" for place in range(state.num_processes)]
    todo = not all(part.exists() for part in parts)
    state.wait_for_everyone()
    if todo and llm is None and holds_policy(config):
        if state.is_main_process:
            hand_over(config, policy)
        state.wait_for_everyone()
        llm = server_chat(config)
    if not parts[state.process_index].exists():
        seed, n_candidates = rounds.seed + number, _of_round(rounds.candidates, number)
        settings: dict[str, Any] = {"turns": rounds.turns, "n_candidates": n_candidates, "seed": seed, "split": "train"}
        users = _users(with_turns(dataset, train_users, **settings), rounds, number)
        sampling = {"temperature": config.temperature, "max_tokens": config.max_completion_length}
        uniform = Stream(dataset, **settings)
        stream: Turns | None = None
        if hard := _of_round(rounds.hard, number):
            stream = HarderTurns(uniform, Evidence(dataset, train_users), rounds.hard_kind, hard)
        if llm is None:
            network, tokenizer = load_policy(policy)
            network.to(state.device)
            llm = LocalChat(network, tokenizer, model=f"round {number}", batch_size=rounds.batch_size, seed=seed)
        run_population(
            dataset,
            UserAgent.factory(llm, **rounds.agent, **sampling),
            out=mine,
            users=users[state.process_index :: state.num_processes],
            **settings,
            stream=stream,
            purpose=Purpose(hard=hard, hard_kind=rounds.hard_kind) if hard else None,
            concurrency=max(64, 2 * rounds.batch_size),
            resume=(mine / "run.json").exists(),
            progress=state.is_main_process,
        )
        rows = run_rows(mine, dataset, heldout=heldout, follow_ups=rounds.follow_ups, stream=stream)
        write_rows(parts[state.process_index], rows)
    state.wait_for_everyone()
    return Rows([row for part in parts for row in read_rows(part)])


def _of_round(values: Sequence[T], number: int) -> T:
    return values[min(number, len(values) - 1)]


def _users(train_users: Sequence[Id], rounds: Rounds, number: int) -> list[Id]:
    if isinstance(rounds.users, Sequence):
        return list(rounds.users)
    if rounds.users is not None and not 1 <= rounds.users <= len(train_users):
        raise InvalidOption(f"users={rounds.users}: there are {len(train_users)} training users")
    return random.Random(rounds.seed + number).sample(list(train_users), rounds.users or len(train_users))


def _worth_training(rows: Rows, previous: Path, rounds: Rounds, number: int) -> Rows:
    stuck = without_spread(previous)
    goes = {}
    for place, row in enumerate(rows):
        if row.task not in rounds.tasks:
            goes[place] = f"task {row.task} doesn't train"
        elif row.snapshot.key in stuck:
            goes[place] = "no spread in the last round"
    rows = rows.kept(goes)
    if rounds.prompts is not None and len(rows) > rounds.prompts:
        places = random.Random(rounds.seed + number).sample(range(len(rows)), len(rows) - rounds.prompts)
        rows = rows.kept(dict.fromkeys(places, "over the round's number of prompts"))
    return rows
