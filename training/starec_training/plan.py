"""What `starec train ... --dry-run` says: the users, calls, tokens and steps of a stage, and the memory that it takes.

All that can be checked without a step is checked, as the stage itself would; no model is asked or loaded, and nothing
is written.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starec_agents.runs.plan import Plan, plan_text, plan_turns
from starec_env.data.splits import Split
from starec_env.errors import TrainingError
from starec_env.types import Dataset, Id
from starec_training.dataset import TASKS, Rows
from starec_training.rendering import encode, fitting

if TYPE_CHECKING:
    from starec_training.collection import Rounds

_GB = 1e9


def teaching(
    dataset: Dataset, split: Split, factory: Callable[[Any], Callable[[], Any]], llm: Any, given: Any
) -> list[str]:
    """What a teacher would step and ask.

    Args:
        dataset: The split's, as prepared.
        split: Who trains.
        factory: Makes the factory of the teacher's agents of its client.
        llm: The client; None for the teacher by rules.
        given: The command's options.
    """
    from starec_training.teaching import turns_of

    stream, users, _ = turns_of(
        dataset, split, turns=given.turns, n_candidates=given.n_candidates, seed=given.sample_seed
    )
    places = [dataset.user_index(user) for user in users]
    turns = int((stream.end - stream.begin)[places].sum())
    if llm is None:
        return [f"rule-based teacher: {len(users):,} users, {turns:,} turns; no model is asked"]
    plan = asyncio.run(plan_turns(factory, stream, places, turns, learn_last=True))
    options = {"concurrency": given.concurrency, "max_tokens": given.max_tokens}
    return [plan_text(f"teacher {given.model}", [plan], [], options), _screening(plan, given)]


def _screening(plan: Plan, given: Any) -> str:
    """How many calls screening adds to a population's: none of a prompt whose first answer is the best there can be."""
    updates = max(0.0, plan.calls - plan.turns)
    more = given.samples - 1 + given.rethinks * given.samples
    least, most = updates * given.follow_ups, plan.calls * more + updates * given.follow_ups * (2 + more)
    return (
        f"screening adds {least:,.0f} to {most:,.0f} calls: {given.samples} samples of a prompt, {given.rethinks} "
        f"rethinks, and {given.follow_ups} rankings with the old profile and with each new one"
    )


def supervised(model: str, rows: Rows, config: Any, **options: Any) -> list[str]:
    """What `train_sft` with these arguments would do; raises what it would raise before its first step."""
    from starec_training.checkpoints import check_claim, load_tokenizer
    from starec_training.rendering import Template
    from starec_training.sft import stage_of

    names = ("adapter", "eval_rows", "heldout", "split")
    adapter, eval_rows, heldout, split = (options.get(name) for name in names)
    switches = options.get("chat_template_kwargs") or {}
    checkpoint = check_claim(
        config.output_dir, stage_of(model, rows, config, adapter, eval_rows, heldout or (), split, switches)
    )
    tokenizer = load_tokenizer(model, switches)
    rows = fitting(rows, tokenizer, max_length=config.max_length)
    answer = Template.of(tokenizer).answer
    lengths = [len(encode(tokenizer, row.prompt)) + len(answer(tokenizer, row.completion)) for row in rows]
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps * _processes()
    steps = _steps(config, math.ceil(len(rows) / batch))
    return [
        f"sft: {rows}",
        f"tokens: {sum(lengths):,} an epoch, {max(lengths):,} of the longest row",
        f"steps: {steps:,} of {batch} rows",
        _memory(model, adapter, reference=False),
        *_resuming(checkpoint),
    ]


def reinforcement(model: str, rows: Rows, config: Any, **options: Any) -> list[str]:
    """What `train_grpo` with these arguments would do; raises what it would raise before its first step."""
    from starec_training.checkpoints import check_claim, load_tokenizer
    from starec_training.grpo import stage_of, whole_batches

    known = {name: value for name, value in options.items() if name != "minutes"}
    checkpoint = check_claim(config.output_dir, stage_of(model, rows, config, **known))
    tokenizer = load_tokenizer(model, config.chat_template_kwargs)
    rows = whole_batches(fitting(rows, tokenizer, max_prompt=options["max_prompt"]), config)
    return [
        f"{options['algorithm']}: {rows}",
        _updates(config, len(rows)),
        _memory(model, options.get("adapter"), reference=bool(config.beta)),
        *_resuming(checkpoint),
    ]


def in_rounds(
    model: str, dataset: Dataset, train_users: Sequence[Id], config: Any, rounds: Rounds, **options: Any
) -> list[str]:
    """What `train_rounds` with these arguments would do; raises what it would raise before it collects."""
    from starec_agents.agent import UserAgent
    from starec_training.checkpoints import check_claim, load_tokenizer
    from starec_training.collection import Collected
    from starec_training.grpo import rounds_stage
    from starec_training.vllm_server import holds_policy, server_chat

    check_claim(config.output_dir, rounds_stage(model, dataset, train_users, config, rounds, **options))
    load_tokenizer(model, config.chat_template_kwargs)
    if holds_policy(config):
        server_chat(config)
    collect = Collected(dataset, train_users, config, rounds, None, options["heldout"])

    def factory(llm: Any) -> Callable[[], Any]:
        return UserAgent.factory(llm, **rounds.agent)

    lines = []
    for number in range(rounds.rounds):
        stream, _ = collect.stream(number)
        users = [dataset.user_index(user) for user in collect.users(number)]
        turns = sum(len(stream.turns(user)) for user in users)
        plan = asyncio.run(plan_turns(factory, stream, users, turns, learn_last=True))
        asked = {"concurrency": 1, "max_tokens": config.max_completion_length}
        lines += [plan_text(f"round {number}", [plan], [], asked), _updates(config, _prompts(plan, rounds))]
    return [*lines, _memory(model, options.get("adapter"), reference=bool(config.beta))]


def _prompts(plan: Plan, rounds: Rounds) -> int:
    """Most prompts of a round: rankings, and memory updates that a turn follows."""
    rankings, updates = float(plan.turns), max(0.0, plan.calls - plan.turns - plan.users)
    both = zip(TASKS, (rankings, updates), strict=True)
    found = round(sum(count for task, count in both if task in rounds.tasks))
    return found if rounds.prompts is None else min(found, rounds.prompts)


def _updates(config: Any, prompts: int) -> str:
    """The steps of one round, and the tokens that it draws."""
    together = config.generation_batch_size // config.num_generations
    if prompts < together:
        raise TrainingError(f"some {prompts} prompts don't fill one batch of {together}: give more users or turns")
    each = config.num_iterations * config.steps_per_generation / config.gradient_accumulation_steps
    steps = _steps(config, prompts // together * each)
    drawn = math.ceil(steps / each) * config.generation_batch_size
    return (
        f"steps: at most {steps:,} of {together} prompts x {config.num_generations} answers; {drawn:,} answers of at "
        f"most {config.max_completion_length:,} tokens are drawn"
    )


def _steps(config: Any, an_epoch: float) -> int:
    return int(config.max_steps) if config.max_steps > 0 else math.ceil(an_epoch * config.num_train_epochs)


def _processes() -> int:
    from accelerate import PartialState

    return int(PartialState().num_processes)


def _memory(model: str, adapter: Any, *, reference: bool) -> str:
    """Bytes of weights, gradients, AdamW and the reference, all in float32: 16 or 20 a parameter, 4 below a LoRA."""
    from starec_training.checkpoints import count_parameters

    count = count_parameters(model)
    trained = adapter is None and not (Path(model) / "adapter_config.json").exists()
    each = (20 if reference else 16) if trained else 4
    of_what = "weights, gradients and AdamW" + (" and the reference" if reference else "")
    said = of_what if trained else "weights, and little more for the adapter"
    return f"model: {count / 1e6:,.1f} million parameters; {each * count / _GB:,.2f} GB of {said}, beside activations"


def _resuming(checkpoint: Path | None) -> list[str]:
    return [f"it goes on from {checkpoint}"] if checkpoint else []
