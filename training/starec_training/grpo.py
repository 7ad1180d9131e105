"""RL enhancement (4.2.2): GRPO on state snapshots, in rounds, by TRL's GRPOTrainer.

A round runs the agent graph with the current policy, turns what each node saw into rows, trains on them, and hands the
policy to the next round. The KL anchor is the SFT model in every round.
"""

from __future__ import annotations

import copy
import os
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from peft import LoraConfig, load_peft_weights, set_peft_model_state_dict
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOConfig

from starec_agents.agent import UserAgent
from starec_agents.llm import ChatModel, ScriptedChat, scripted_user
from starec_env.data.splits import Split
from starec_env.errors import InvalidOption, TrainingError, check_choice
from starec_env.types import Dataset, Id
from starec_training.checkpoints import (
    FINAL,
    Guard,
    StageConfig,
    card_of,
    check_savable,
    check_trainable,
    claim,
    device_settings,
    digest,
    load_policy,
    save_final,
)
from starec_training.collection import Collected
from starec_training.collection import Rounds as Rounds
from starec_training.dataset import (
    Rows,
    check_apart,
    kept_apart,
    to_dataset,
)
from starec_training.generation import ends_of, ranker
from starec_training.grouped import Rollout, share_prefixes
from starec_training.negatives import KINDS
from starec_training.rendering import fitting
from starec_training.rewards import (
    REWARDS,
    Ending,
    RankPrompts,
    RewardFunction,
    check_rewards,
    knowing,
    memory_reward,
    name_of,
    ranking_reward,
    reward_functions,
    served,
)
from starec_training.trainer import AgentGRPO
from starec_training.vllm_server import holds_policy, server_chat, watched

ALGORITHMS = ("grpo", "reinforce++")
MAX_PROMPT = 4096
"""Most tokens of a prompt (5.1.4)."""

BATCH = 64
"""Prompts of a step (5.1.4), read as VeRL counts them: 64 prompts of 8 completions are 512 completions."""


def batch_settings(
    prompts: int = BATCH, generations: int = 8, at_once: int = 8, processes: int | None = None
) -> dict[str, int]:
    """Fields of GRPOConfig for so many prompts a step, however many processes share them.

    Args:
        prompts: Of a step, on all processes together.
        generations: Completions of each.
        at_once: Completions that a process computes at a time; less memory, more time.
        processes: How many share the step; None: those of the launcher.

    Raises:
        InvalidOption: The completions don't divide.
    """
    processes = processes or int(os.environ.get("WORLD_SIZE", "1"))
    steps, left = divmod(prompts * generations, at_once * processes)
    if left or not steps:
        raise InvalidOption(
            f"{prompts} prompts of {generations} completions a step don't divide among {processes} processes of "
            f"{at_once} at a time: change per_device_train_batch_size, or give gradient_accumulation_steps"
        )
    return {
        "num_generations": generations,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": steps,
    }


def paper_settings(**batch: Any) -> dict[str, Any]:
    """The paper's GRPO (5.1.4, equation 3) as fields of GRPOConfig; `batch` as of `batch_settings`.

    TRL's own defaults differ from equation 3 in loss_type, beta and use_bias_correction_kl; epsilon and num_iterations
    agree, and are named so that they stay. With one update a batch (num_iterations 1, and as many steps between
    generations as are accumulated) the ratio of equation 3 is 1, and its clip never acts.
    """
    return {
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "num_train_epochs": 1,
        **batch_settings(**batch),
        "num_iterations": 1,
        "epsilon": 0.2,
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


def paper_grpo(prompts: int = BATCH, **overrides: Any) -> GRPOConfig:
    """TRL's GRPOConfig with the paper's settings; any field can be overridden.

    Args:
        prompts: Of a step, on all processes together, unless gradient_accumulation_steps is among the overrides.
        overrides: Fields of GRPOConfig.
    """
    sizes = {"generations": "num_generations", "at_once": "per_device_train_batch_size"}
    batch = {name: overrides[known] for name, known in sizes.items() if known in overrides}
    batch = {} if "gradient_accumulation_steps" in overrides else {"prompts": prompts, **batch}
    return GRPOConfig(**{**paper_settings(**batch), **overrides})


def train_grpo(
    model: str | Path,
    rows: Rows,
    config: GRPOConfig,
    *,
    start: str | Path | None = None,
    adapter: LoraConfig | None = None,
    algorithm: str = "grpo",
    reward: str = "position",
    reward_funcs: Sequence[str | RewardFunction] = (),
    rank: RankPrompts | None = None,
    follow_up_tokens: int | None = None,
    max_prompt: int = MAX_PROMPT,
    heldout: Collection[Id] = (),
    split: Split | None = None,
    minutes: float | None = None,
    rollout: Rollout | None = None,
    frozen: Sequence[str] = (),
    refill: int = 0,
) -> Path | None:
    """One round of reinforcement training. A killed or stopped round goes on from its last checkpoint.

    Args:
        model: The anchor: the SFT model's folder. An adapter's folder trains that adapter, with a frozen copy of it as
            the reference; a whole model trains all weights, with the folder loaded again as the reference.
        rows: State snapshots, as `run_rows` makes them.
        config: `paper_grpo(...)`, or any GRPOConfig. beta=0 trains without an anchor. Its reward_weights are of
            rankings, memory updates, and `reward_funcs` in their order.
        start: Weights to start from instead of the anchor's, of the same kind: the last round's result.
        adapter: Train a new LoRA on a whole model, which is then the reference.
        algorithm: "grpo", or "reinforce++" (Table 5).
        reward: Of rankings and memory updates: "position" (the paper's), "ndcg", or "none": own functions alone pay.
        reward_funcs: Further functions with TRL's signature, or MODULE:FUNCTION; see `rewards.reward_functions`.
        rank: Ranks the follow-ups of memory updates, e.g. `served(...)`; None asks the model being trained, or in
            vLLM's server mode the server that holds it.
        follow_up_tokens: Most tokens of such a follow-up; None: as of any completion.
        max_prompt: Longer prompts are dropped and counted.
        heldout: Users kept for testing.
        split: Who trains and who is tested; it goes on the model's card.
        minutes: Stop with a checkpoint after so long.
        rollout: Draws the answers in TRL's place, e.g. `grouped.scores_only(...)`.
        frozen: Parts of parameters' names that aren't trained, e.g. "embed_tokens": a score is a token, and noise on
            its vector costs the greedy answer more than the policy gains.
        refill: Most further rounds of generation in a step, in which groups of equal rewards, which teach nothing, are
            replaced by groups of other prompts (DAPO's dynamic sampling, see `trainer.AgentGRPO`). 0 is equation 3.

    Returns:
        The folder of the trained policy, or None if the time ran out before the end.

    Raises:
        TrainingError: The rows, the model or the folder can't be used; says why.
        EndpointError: The server that ranks follow-ups, or holds the policy, died; call again when it is back.
    """
    out, functions = Path(config.output_dir), reward_functions(reward_funcs)
    known: dict[str, Any] = {"follow_up_tokens": follow_up_tokens, "max_prompt": max_prompt, "adapter": adapter}
    known |= {"start": None if start is None else str(start), "frozen": tuple(frozen)}
    known |= {"algorithm": algorithm, "reward": reward, "reward_funcs": functions, "refill": refill}
    stage = stage_of(model, rows, config, heldout=heldout, split=split, **known)
    switches = config.chat_template_kwargs or {}
    checkpoint = claim(out, stage)
    if (out / FINAL).exists():
        return out / FINAL
    most = follow_up_tokens or config.max_completion_length
    if rank is None and holds_policy(config):
        rank = served(server_chat(config), temperature=0.0, max_tokens=most)
    adapts = start is not None and (Path(start) / "adapter_config.json").exists()
    policy, tokenizer = load_policy(model if adapts or start is None else start, switches, anchor=model)
    for name, weight in policy.named_parameters():
        weight.requires_grad_(weight.requires_grad and not any(part in name for part in frozen))
    if adapter is None and not config.use_vllm:
        share_prefixes(policy)
    rows = whole_batches(fitting(rows, tokenizer, max_prompt=max_prompt), config)
    pays = REWARDS.get(reward)
    follow = rank or ranker(
        lambda: trainer.accelerator.unwrap_model(trainer.model),
        tokenizer,
        max_tokens=most,
        batch_size=config.per_device_train_batch_size,
        repetition_penalty=config.repetition_penalty,
    )
    ending = Ending.of(tokenizer, ends_of(policy, tokenizer))
    ours = [] if pays is None else [ranking_reward(pays), memory_reward(follow, pays)]
    config.logging_first_step = True  # whose KL is checked
    own_start = start is None and checkpoint is None
    trainer = _trainer_class(algorithm)(
        model=policy,
        args=config,
        reward_funcs=[*(knowing(ending, function) for function in ours), *functions],
        train_dataset=to_dataset(rows).remove_columns("completion"),
        processing_class=tokenizer,
        peft_config=adapter,
        rollout_func=rollout,
        callbacks=[Guard(minutes, most_kl=most_kl(config) if own_start else None, groups=algorithm == "grpo")],
    )
    trainer.refill = refill
    sharded = trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled()
    if sharded and rank is None and pays and any(row.task == "reflect" for row in rows):
        raise TrainingError(
            "the model is sharded, so no process can rank follow-ups alone: give `rank` a server that holds the policy"
        )
    check_trainable(trainer.model)
    check_savable(trainer.accelerator)
    if adapts:
        with _gathered(trainer.model):
            set_peft_model_state_dict(trainer.model, load_peft_weights(str(start)), adapter_name="default")
    trainer.accelerator.print(str(rows))
    with watched(config):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if holds_policy(config) and trainer.is_world_process_zero():
        trainer.vllm_generation.vllm_client.close_communicator()  # the next round opens its own, at the same port
    return save_final(trainer, tokenizer, out, card_of(stage, rows, split, heldout))


def most_kl(config: Any) -> float:
    """Most KL to the anchor that rounding explains where the policy is the anchor: 0 but for half precision."""
    return 1e-3 if config.bf16 or config.fp16 else 1e-6


def stage_of(
    model: str | Path,
    rows: Rows,
    config: GRPOConfig,
    *,
    algorithm: str = "grpo",
    reward: str = "position",
    reward_funcs: Sequence[str | RewardFunction] = (),
    heldout: Collection[Id] = (),
    split: Split | None = None,
    refill: int = 0,
    **known: Any,
) -> StageConfig:
    """What `train_grpo` with these arguments is; `known` are further fields of StageConfig.

    Raises:
        InvalidOption: An algorithm, reward, weight or function can't be used.
        TrainingError: A held-out user is among the rows.
    """
    names = _check_rewards(algorithm, reward, reward_funcs, config)
    check_refill(refill, algorithm, config)
    check_apart((row.snapshot.user_id for row in rows), [*heldout, *kept_apart(split)])
    known |= {"reward": reward, "reward_funcs": names, "refill": refill or None}
    known |= {"chat_template": config.chat_template_kwargs or {}}
    return StageConfig.of(algorithm, model, config, rows, **known)


def _check_rewards(
    algorithm: str, reward: str, functions: Sequence[str | RewardFunction], config: GRPOConfig
) -> tuple[str, ...]:
    """The names of reward functions of one's own; raises what is wrong with these options."""
    check_choice("algorithm", algorithm, ALGORITHMS)
    check_rewards(reward, functions, config.reward_weights)
    return tuple(map(name_of, reward_functions(functions)))


def check_refill(rounds: int, algorithm: str, config: GRPOConfig) -> None:
    """Raise InvalidOption unless groups without spread can be replaced in each process."""
    if rounds < 0 or (rounds and algorithm != "grpo"):
        raise InvalidOption(
            f"refill={rounds} with algorithm {algorithm!r}: wanted 0 or more, and more than 0 with grpo alone: "
            "where rewards are normalised over the whole batch, a group of equal ones teaches too"
        )
    held = config.per_device_train_batch_size * config.steps_per_generation
    if rounds and held % config.num_generations:
        raise InvalidOption(
            f"refill replaces whole groups of a process, and {held} completions a generation aren't groups of "
            f"{config.num_generations}: change per_device_train_batch_size, or num_generations"
        )


def whole_batches(rows: Rows, config: GRPOConfig) -> Rows:
    """The rows, which those that fill no last batch are counted in; TRL leaves others out in each epoch."""
    prompts = config.generation_batch_size // config.num_generations
    if len(rows) < prompts:
        raise TrainingError(
            f"{len(rows)} rows don't fill one batch of {prompts} prompts: collect more, or lower "
            "gradient_accumulation_steps or per_device_train_batch_size"
        )
    left = {f"left over from batches of {prompts} prompts": len(rows) % prompts}
    return Rows(rows.rows, rows.dropped + Counter(left))


def _gathered(model: Any) -> AbstractContextManager[Any]:
    """Within it, the adapter's weights are whole in every process, and what the first writes holds in all."""
    if not is_deepspeed_zero3_enabled():
        return nullcontext()
    import deepspeed  # type: ignore[import-not-found]

    adapter = [value for name, value in model.named_parameters() if ".default." in name]
    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(adapter, modifier_rank=0)
    return gathered


def _trainer_class(algorithm: str) -> type[AgentGRPO]:
    if algorithm == "grpo":
        return AgentGRPO
    from starec_training.reinforce_pp import AgentReinforcePP

    return AgentReinforcePP


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
    split = options.pop("split", None)
    stage = rounds_stage(model, dataset, train_users, config, rounds, heldout=heldout, split=split, **options)
    split = split or Split.of(dataset, train=train_users, test=list(heldout))
    if llm is None and holds_policy(config):
        server_chat(config)  # raises if it can't be asked, before time is wasted
    claim(config.output_dir, stage)
    began = time.monotonic()
    policy: Path | None = None
    collect = Collected(dataset, train_users, config, rounds, llm, heldout)
    for number in range(rounds.rounds):
        folder = Path(config.output_dir) / f"round-{number}"
        rows = collect.chosen(collect.rows(folder, policy or model, number), number)
        own = copy.copy(config)
        own.output_dir, own.seed = str(folder / "train"), config.seed + number
        left = None if minutes is None else minutes - (time.monotonic() - began) / 60
        policy = train_grpo(model, rows, own, start=policy, heldout=heldout, split=split, minutes=left, **options)
        if policy is None:
            return None
    return policy


_USUAL = {"algorithm": "grpo", "reward": "position", "refill": 0}


def rounds_stage(
    model: str | Path,
    dataset: Dataset,
    train_users: Sequence[Id],
    config: GRPOConfig,
    rounds: Rounds,
    *,
    heldout: Collection[Id] = (),
    split: Split | None = None,
    **options: Any,
) -> StageConfig:
    """What `train_rounds` with these arguments is; raises what is wrong with them that can be seen beforehand."""
    if rounds.rounds < 1 or not rounds.candidates or not rounds.hard:
        raise InvalidOption("at least one round, a number of candidates and a share of hard negatives are needed")
    check_choice("hard_kind", rounds.hard_kind, KINDS)
    check_apart(train_users, [*heldout, *kept_apart(split)])
    algorithm, reward, refill = (options.get(name, usual) for name, usual in _USUAL.items())
    check_refill(refill, algorithm, config)
    names = _check_rewards(algorithm, reward, options.get("reward_funcs", ()), config)
    agent = dict(UserAgent(ScriptedChat(scripted_user()), **rounds.agent).settings)  # raises if it can't be made
    free = ("rounds", "batch_size", "agent")  # more rounds may follow
    known: dict[str, Any] = {name: options.get(name) for name in ("adapter", "follow_up_tokens", "max_prompt")}
    known |= {"reward": f"{algorithm} {reward}", "reward_funcs": names, "refill": refill or None}
    known |= {"rounds": {name: value for name, value in vars(rounds).items() if name not in free} | {"agent": agent}}
    known |= {"dataset": dataset.hash, "train_users": digest(train_users)}
    return StageConfig.of("rounds", model, config, **known)
