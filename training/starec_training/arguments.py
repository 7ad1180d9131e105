"""What can be said to `starec train teach|sft|grpo` beside the fields of TRL's configs."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from starec_env.data.options import HELP
from starec_env.metrics import ndcg
from starec_env.replay.rewards import LIKED_CUTOFF

TEACHERS = ("rules", "llm")


_SPLIT = "Who trains and who is tested, of which data: from starec data split."
_DRY_RUN = "Check all, say what would be done, and stop before it."


@dataclass
class DataArguments:
    """Which data, users, turns and prompts; the first eight are the fields of `DataSpec`."""

    dataset: str = field(default="ml-latest-small", metadata={"help": HELP["dataset"]})
    data_dir: str | None = field(default=None, metadata={"help": HELP["data_dir"]})
    columns: str | None = field(default=None, metadata={"help": HELP["columns"]})
    items: str | None = field(default=None, metadata={"help": HELP["items"]})
    domain: str | None = field(default=None, metadata={"help": HELP["domain"]})
    liked_above: float | None = field(default=None, metadata={"help": HELP["liked_above"]})
    min_interactions: int = field(default=10, metadata={"help": HELP["min_interactions"]})
    max_length: int = field(default=40, metadata={"help": HELP["max_length"]})
    split_file: str | None = field(default=None, metadata={"help": _SPLIT})
    reading: str = field(default="default", metadata={"help": "How to read what the paper leaves open."})
    set: list[str] = field(default_factory=list, metadata={"help": "NAME=VALUE: change settings of the reading."})
    users_file: str | None = field(default=None, metadata={"help": "users.json of an earlier stage: the same users."})
    heldout: str | None = field(
        default=None,
        metadata={
            "help": "Users kept for testing: a file with an id a line, or the candidates.parquet of an "
            "evaluation. Without it, half of all users."
        },
    )
    n_train: int | None = field(default=None, metadata={"help": "Most training users, sampled  [default: all others]"})
    turns: int | None = field(default=None, metadata={"help": "The last so many turns of each user."})
    answer_format: str = field(default="paper", metadata={"help": "paper, labels or scores"})
    structured: bool = field(default=False, metadata={"help": "With compact, labels' old name: scores."})
    max_history: int = field(default=40, metadata={"help": "Interactions shown in prompts."})
    sample_seed: int = field(default=0, metadata={"help": "Of users, negatives and prompts."})


@dataclass
class TeachArguments(DataArguments):
    """The teacher's trajectories as screened rows: OUT/rows.jsonl, with users.json and report.json."""

    out: str = field(default="runs/taught", metadata={"help": "Folder of the rows."})
    dry_run: bool = field(default=False, metadata={"help": _DRY_RUN})
    split_file: str | None = field(default=None, metadata={"help": "A file of `starec data split`: who trains."})
    teacher: str = field(default="rules", metadata={"help": "rules (no LLM), or llm (with --base-url)"})
    thinks: bool = field(default=False, metadata={"help": "labels: the rule-based teacher gives its thought too."})
    n_candidates: int = field(default=20, metadata={"help": "Items to rank."})
    follow_ups: int = field(default=1, metadata={"help": "Next turns by which a memory update is judged."})
    min_ndcg: float = field(default=float(ndcg(LIKED_CUTOFF, 10)), metadata={"help": "Least NDCG@10 of a ranking."})
    min_gain: float = field(default=0.0, metadata={"help": "llm: a memory update must gain more NDCG@10 than this."})
    samples: int = field(default=4, metadata={"help": "llm: answers to a prompt at a time; the best is kept."})
    rethinks: int = field(default=2, metadata={"help": "llm: most times that a fault is named and asked again."})
    base_url: str | None = field(default=None, metadata={"help": "llm: e.g. http://localhost:8000/v1"})
    model: str | None = field(default=None, metadata={"help": "llm: the model's name there."})
    api_key_env: str = field(default="OPENAI_API_KEY", metadata={"help": "llm: variable that holds the API key."})
    header: list[str] = field(
        default_factory=list,
        metadata={"help": "llm: a request header, NAME=VALUE; env:VARIABLE as a value.", "action": "extend"},
    )
    temperature: float = field(default=0.6, metadata={"help": "llm: DeepSeek-R1's card asks for 0.5 to 0.7."})
    top_p: float = field(default=0.95, metadata={"help": "llm: as DeepSeek-R1's card."})
    max_tokens: int = field(default=16384, metadata={"help": "llm: of an answer; the paper's longest sequence."})
    extra_body: str | None = field(default=None, metadata={"help": 'llm: more request fields, as JSON: {"top_k": 20}'})
    timeout: float = field(default=1800.0, metadata={"help": "llm: seconds; 16,384 tokens at 10 a second take 1,640."})
    max_retries: int = field(default=2, metadata={"help": "llm: for faults that pass."})
    max_wait: float = field(default=1800.0, metadata={"help": "llm: seconds for rate limits, per call."})
    concurrency: int = field(default=64, metadata={"help": "Users in flight, and requests."})
    sample_seed: int = field(default=0, metadata={"help": "Of users, negatives and requests.", "aliases": ["--seed"]})


@dataclass
class ModelArguments:
    """What is trained."""

    model: str = field(default="smollm2", metadata={"help": "A folder (also an adapter's), a hub id, or smollm2."})
    lora_rank: int = field(default=0, metadata={"help": "Rank of a new LoRA; 0 trains what the model has trainable."})
    lora_alpha: int | None = field(default=None, metadata={"help": "[default: twice the rank]"})
    minutes: float | None = field(default=None, metadata={"help": "Stop with a checkpoint after so long."})
    dry_run: bool = field(default=False, metadata={"help": _DRY_RUN})


@dataclass
class BatchArguments:
    """What of TRL's options says how many prompts a step has, and so what follows from our own."""

    num_generations: int = 8
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int | None = None


@dataclass
class SftArguments(ModelArguments):
    """Supervised training on a teacher's rows; fields of TRL's SFTConfig follow."""

    rows: list[str] = field(default_factory=list, metadata={"help": "Folders of `teach`, or JSONL files."})
    users_file: str | None = field(default=None, metadata={"help": "users.json whose held-out users must not occur."})
    split_file: str | None = field(default=None, metadata={"help": "A split whose other users must not occur."})
    size: str = field(default="0.5B", metadata={"help": "0.5B, 1.5B or 7B: the paper's settings for it."})
    eval_users: int = field(default=0, metadata={"help": "Users of the rows kept apart, to watch for overfit."})
    template_switches: str | None = field(
        default=None, metadata={"help": "The chat template's, as JSON: '{\"enable_thinking\": false}'"}
    )


@dataclass
class GrpoArguments(ModelArguments, DataArguments):
    """Reinforcement training in rounds; fields of TRL's GRPOConfig follow."""

    rows: str | None = field(default=None, metadata={"help": "Train once on these rows instead of collecting."})
    rounds: int = field(default=1, metadata={"help": "Times to collect and train."})
    round_users: int | None = field(default=None, metadata={"help": "Users sampled each round  [default: all]"})
    n_candidates: list[int] = field(default_factory=lambda: [20], metadata={"help": "Of each round: 5 10 20"})
    hard: list[float] = field(
        default_factory=lambda: [0.0], metadata={"help": "Share of hard negatives of each round: 0 0.5 1"}
    )
    hard_kind: str = field(default="popular", metadata={"help": "popular, or near (to the target)"})
    prompts: int | None = field(default=None, metadata={"help": "Most prompts a round."})
    collect_batch: int = field(default=32, metadata={"help": "Prompts at a time when the policy here is asked."})
    tasks: list[str] = field(default_factory=lambda: ["rank", "reflect"], metadata={"help": "Which tasks train."})
    follow_ups: int = field(default=1, metadata={"help": "Next turns that pay a memory update."})
    algorithm: str = field(default="grpo", metadata={"help": "grpo or reinforce++"})
    reward: str = field(default="position", metadata={"help": "position (the paper's), ndcg, or none: own ones alone"})
    reward_funcs: list[str] = field(
        default_factory=list, metadata={"help": "Further ones, MODULE:FUNCTION with TRL's signature."}
    )
    refill: int = field(
        default=0, metadata={"help": "Most rounds a step of drawing groups again that earn one reward each."}
    )
    max_prompt: int = field(default=4096, metadata={"help": "Longer prompts are dropped and counted."})
    follow_up_tokens: int | None = field(default=None, metadata={"help": "Most tokens of a follow-up ranking."})
    prompts_per_step: int = field(default=64, metadata={"help": "On all processes together."})
    agent: str = field(default="starec", metadata={"help": "The graph that collects: as simulate's --agent."})
    rehearsal: bool = field(default=False, metadata={"help": "Go on where no answer of a round can be read."})


OF_LLM = (
    "base_url", "model", "api_key_env", "header", "temperature", "top_p", "max_tokens", "extra_body", "timeout",
    "max_retries", "max_wait", "rethinks", "samples", "min_gain",
)  # fmt: skip


OF_SPLIT = ("columns", "domain", "liked_above", "min_interactions", "max_length", "users_file", "heldout")


PACE = (
    "out", "dry_run", "split_file", "users_file", "heldout", "data_dir", "api_key_env", "header", "timeout",
    "max_retries", "max_wait", "concurrency",
)  # fmt: skip
"""What may change when a teacher goes on: where and how fast, and whom the files name is compared as the split."""


OF_ROUNDS = tuple(
    each.name
    for each in fields(GrpoArguments)
    if each.name
    not in {
        "rows",
        "users_file",
        "split_file",
        "algorithm",
        "reward",
        "reward_funcs",
        "refill",
        "max_prompt",
        "follow_up_tokens",
        "prompts_per_step",
    }
    and each.name not in {own.name for own in fields(ModelArguments)}
)
