"""Chat templates of several manners: one rendering for all, whole thoughts trained, ends known, faults named early."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from starec_env.errors import InvalidOption, TrainingError
from starec_training.checkpoints import load_policy
from starec_training.dataset import Row, Rows
from starec_training.generation import ends_of, generate
from starec_training.grpo import paper_grpo, train_grpo
from starec_training.rendering import Template, encode, fitting, settle
from starec_training.rewards import memory_reward
from starec_training.sft import paper_sft, tokens, train_sft

SAID = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
OPENS = SAID.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}") + (
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
"""It drops the thought of what was said, and opens one where an answer is to follow, as DeepSeek-R1's does."""
SWITCH = SAID + (
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Its switch closes the thought at once, as Qwen3's does."""
PLAIN = SAID + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + PLAIN
DROPS = PLAIN.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
THOUGHT = "<think>\nThey took three dramas.\n</think>\nA B C D"


@pytest.fixture
def tokenizer(tiny: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny)


def templated(tokenizer: Any, template: str, **switches: Any) -> Any:
    tokenizer.chat_template = template
    settle(tokenizer, switches)
    return tokenizer


def with_template(tiny: Path, folder: Path, template: str) -> Path:
    for file in tiny.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.parametrize("template", [REFUSES, DROPS], ids=["refuses", "drops"])
def test_a_system_message_that_a_template_has_no_role_for_begins_the_users(tokenizer: Any, template: str) -> None:
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Rank."}]
    text = tokenizer.decode(encode(templated(tokenizer, template), prompt))
    assert text == "<|user|>Be brief.\n\nRank.<|end|><|assistant|>"
    text = tokenizer.decode(encode(templated(tokenizer, PLAIN), prompt))
    assert text == "<|system|>Be brief.<|end|><|user|>Rank.<|end|><|assistant|>"


def test_a_template_that_leaves_out_what_the_user_says_is_refused(tokenizer: Any) -> None:
    with pytest.raises(TrainingError, match="leaves 'Question.' out"):
        templated(tokenizer, "{{ messages[0].role }} Answer.")
    with pytest.raises(InvalidOption, match="'enable thinking' is no variable"):
        templated(tokenizer, PLAIN, **{"enable thinking": False})


def test_a_switch_becomes_the_templates_default_and_is_saved_with_the_tokenizer(tokenizer: Any, tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "Rank."}]
    assert not tokenizer.decode(encode(templated(tokenizer, SWITCH), prompt)).endswith("</think>\n\n")
    templated(tokenizer, SWITCH, enable_thinking=False).save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.decode(encode(again, prompt)).endswith("<|assistant|><think>\n\n</think>\n\n")
    template = again.chat_template
    settle(again, {"enable_thinking": False})
    assert again.chat_template == template
    asked = again.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True, enable_thinking=True)
    assert asked.endswith("<|assistant|>")


@pytest.mark.parametrize(
    ("template", "switches", "text", "learned"),
    [
        (PLAIN, {}, THOUGHT, THOUGHT + "<|end|>"),
        (OPENS, {}, THOUGHT, "They took three dramas.\n</think>\nA B C D<|end|>"),
        (OPENS, {}, "They took three dramas.\n</think>\nA B C D", "They took three dramas.\n</think>\nA B C D<|end|>"),
        (OPENS, {}, "A B C D", "</think>\n\nA B C D<|end|>"),
        (SWITCH, {"enable_thinking": False}, "A B C D", "A B C D<|end|>"),
    ],
)
def test_an_answer_is_learned_as_it_is_to_follow_the_prompt(
    tokenizer: Any, taught: Rows, template: str, switches: dict[str, Any], text: str, learned: str
) -> None:
    row = taught.rows[0].model_copy(update={"completion": text})
    example = tokens([row], templated(tokenizer, template, **switches))[0]
    places = example["completion_mask"].index(1)
    assert example["input_ids"][:places] == encode(tokenizer, row.prompt)
    assert tokenizer.decode(example["input_ids"][places:]) == learned


def test_thoughts_that_the_template_has_closed_are_refused(tokenizer: Any, taught: Rows) -> None:
    row = taught.rows[0].model_copy(update={"completion": THOUGHT})
    templated(tokenizer, SWITCH, enable_thinking=False)
    with pytest.raises(TrainingError, match="switch its thinking on"):
        fitting(Rows([row]), tokenizer, max_length=999)


def test_the_token_that_ends_a_turn_ends_generation_though_eos_is_another(
    tiny: Path, taught: Rows, tmp_path: Path
) -> None:
    made = AutoTokenizer.from_pretrained(with_template(tiny, tmp_path, PLAIN), eos_token="<|pad|>")
    made.save_pretrained(tmp_path)
    policy, tokenizer = load_policy(tmp_path)
    end, eos = tokenizer.convert_tokens_to_ids("<|end|>"), tokenizer.eos_token_id
    assert Template.of(tokenizer).end == (end,) != (eos,)
    assert set(ends_of(policy, tokenizer)) == {end, eos}
    policy.save_pretrained(tmp_path / "saved")
    assert set(type(policy).from_pretrained(tmp_path / "saved").generation_config.eos_token_id) == {end, eos}
    assert Template.of(templated(tokenizer, "{% for m in messages %}{{ m.content }}\n{% endfor %}")).end == (eos,)


def test_what_a_models_generation_config_says_of_sampling_changes_nothing(
    student: Path, taught: Rows, tmp_path: Path
) -> None:
    prompts = [row.prompt for row in taught.rows[:4]]
    policy, tokenizer = load_policy(student)
    plain = [[a.token_ids for a in generate(policy, tokenizer, prompts, max_tokens=20, temperature=t)] for t in (0, 1)]
    hidden = {"repetition_penalty": 3.0, "no_repeat_ngram_size": 1, "top_k": 2, "do_sample": True, "min_new_tokens": 20}
    for name, value in hidden.items():
        setattr(policy.generation_config, name, value)
    again = [[a.token_ids for a in generate(policy, tokenizer, prompts, max_tokens=20, temperature=t)] for t in (0, 1)]
    assert again == plain
    assert policy.generation_config.repetition_penalty == 3.0  # its own, as it was
    policy.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_policy(tmp_path)[0].generation_config.repetition_penalty in (None, 1.0)  # nor for TRL's groups


@pytest.mark.parametrize("sampling", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=["top_k", "top_p", "min_p"])
def test_samples_are_cut_as_trl_cuts_them(student: Path, taught: Rows, sampling: dict[str, Any]) -> None:
    loaded, prompts = load_policy(student), [row.prompt for row in taught.rows[:4]]
    greedy = [answer.token_ids for answer in generate(*loaded, prompts, max_tokens=8)]
    free = generate(*loaded, prompts, max_tokens=8, temperature=5.0)
    cut = generate(*loaded, prompts, max_tokens=8, temperature=5.0, **sampling)
    assert [answer.token_ids for answer in free] != [answer.token_ids for answer in cut] == greedy


def test_groups_collection_and_follow_ups_meet_the_same_prompt(
    student: Path, taught: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from starec_training import generation, grpo

    folder = tmp_path / "model"
    folder.mkdir()
    met: dict[str, list[str]] = {"groups": [], "follow-ups": []}
    real = grpo.AgentGRPO._tokenize_prompts, generation._encode

    def groups(self: Any, prompts: Any, *rest: Any) -> Any:
        found = real[0](self, prompts, *rest)
        met["groups"] += map(self.processing_class.decode, found[0])
        return found

    def follow_ups(tokenizer: Any, prompt: Any) -> list[int]:
        met["follow-ups"].append(tokenizer.decode(found := real[1](tokenizer, prompt)))
        return found

    def with_profiles(rank: Any, reward: Any) -> Any:  # which this policy can't write
        text = [{"role": "assistant", "content": "Updated User description: likes crime."}]
        pays = memory_reward(rank, reward)
        return lambda *, completions, completion_ids, **trl: pays(completions=[text] * len(completions), **trl)

    monkeypatch.setattr(grpo, "memory_reward", with_profiles)
    monkeypatch.setattr(grpo.AgentGRPO, "_tokenize_prompts", groups)
    monkeypatch.setattr(generation, "_encode", follow_ups)
    settings = {"num_generations": 2, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "bf16": False}
    config = paper_grpo(
        output_dir=str(tmp_path / "out"), max_steps=1, max_completion_length=60, report_to="none", disable_tqdm=True,
        chat_template_kwargs={"enable_thinking": False}, **settings,
    )  # fmt: skip
    updates = Rows([row for row in taught if row.task == "reflect"][:4])
    final = train_grpo(with_template(student, folder, SWITCH), updates, config, follow_up_tokens=4)
    assert final and met["groups"] and met["follow-ups"]
    assert all(text.endswith("</think>\n\n") for texts in met.values() for text in texts)
    saved = AutoTokenizer.from_pretrained(final)
    assert saved.decode(encode(saved, updates.rows[0].prompt)).endswith("</think>\n\n")


def test_prompts_over_the_limit_are_dropped_and_counted(taught: Rows, tokenizer: Any) -> None:
    lengths = sorted(len(encode(tokenizer, row.prompt)) for row in taught)
    limit = lengths[len(lengths) // 2]
    kept = fitting(taught, tokenizer, max_prompt=limit)
    assert 0 < len(kept) < len(taught)
    assert kept.dropped[f"prompt over {limit} tokens"] == len(taught) - len(kept)
    whole = len(tokens(taught.rows[:1], tokenizer)[0]["input_ids"])
    assert len(fitting(Rows(taught.rows[:1]), tokenizer, max_length=whole)) == 1
    with pytest.raises(TrainingError, match="no row is left"):
        fitting(Rows(taught.rows[:1]), tokenizer, max_length=whole - 1)


def test_a_tokenizer_without_a_chat_template_is_refused(taught: Rows) -> None:
    with pytest.raises(TrainingError, match="no chat template"):
        fitting(taught, object(), max_prompt=10)


def test_sft_keeps_a_thought_that_the_template_drops_and_its_switches(tiny: Path, taught: Rows, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    rows = [
        Row.model_validate({**row.model_dump(), "completion": f"<think>x</think>{row.completion}"}) for row in taught
    ]
    config = paper_sft(output_dir=str(tmp_path / "out"), max_steps=1, bf16=False, disable_tqdm=True)
    final = train_sft(with_template(tiny, folder, OPENS), Rows(rows[:8]), config, chat_template_kwargs={"depth": 2})
    assert final is not None
    assert "{% set depth = 2 %}" in AutoTokenizer.from_pretrained(final).chat_template
