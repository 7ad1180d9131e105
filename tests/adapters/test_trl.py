"""TRL's `environment_factory` with TRL's own trainer: `make test-adapters`."""

from pathlib import Path

import pytest
from adapters.common import BOTH, MISSING, directly

from starec_agents import scripted_user
from starec_agents.adapters import Episodes
from starec_agents.adapters.trl_tools import UserTools

pytestmark = pytest.mark.adapters
trl = pytest.importorskip("trl", reason="make test-adapters installs TRL")


@pytest.mark.parametrize(("env", "agent"), BOTH)
def test_the_tool_goes_through_an_episode_of_any_graph(env, agent):
    class Tools(UserTools):
        episodes = Episodes(env=env, agent=agent, turns=2)

    say, environment, prompts = scripted_user(), Tools(), []
    environment.reset(user_id=7)
    assert environment.get_reward() == MISSING[env]
    shown = environment.reset(user_id=42)
    while request := environment._player.episode.request:
        prompts.append(list(map(dict, request.messages)))
        assert shown.endswith(request.messages[-1]["content"])
        shown = environment.answer(say(request.messages, {}))
    expected = directly(Tools.episodes, 42)
    assert prompts == expected.prompts
    assert shown == environment.answer("more") == "That was the last task."
    assert environment.get_reward() == expected.mean(2, MISSING[env])


def tiny_model(texts):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    marks = "<|endoftext|> <|im_start|> <|im_end|> <tool_call> </tool_call> <tool_response> </tool_response>".split()
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1200, special_tokens=[*marks, "<think>", "</think>"], initial_alphabet=letters, show_progress=False
    )
    raw.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token=marks[0], eos_token=marks[2])
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16384,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config), tokenizer


def test_a_grpo_step_calls_the_tool_and_takes_the_reward(tmp_path, monkeypatch):
    import json

    from datasets import Dataset

    class Tools(UserTools):
        episodes = Episodes(turns=1, answer_format="labels")

    prompt = Tools().reset(user_id=1)
    model, tokenizer = tiny_model([prompt, "tool_call name arguments answer text"])
    rows = [
        {"prompt": [{"role": "user", "content": "Answer each task by the tool.\n\n"}], "user_id": u} for u in (1, 2)
    ]
    settings = trl.GRPOConfig(
        str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=1500,
        max_steps=1,
        max_tool_calling_iterations=3,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=1,
    )
    trainer = trl.GRPOTrainer(
        model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        environment_factory=Tools,
    )  # fmt: skip
    # A random model of this size writes no tool call, so what it says is scripted: all else is TRL's.
    real, said = trainer._generate_single_turn, []

    def scripted(prompt_ids, *args, **options):
        answers = ["B A C", "Updated User description: likes films.", "done"]
        call = {"name": "answer", "arguments": {"text": answers[len(said)]}}
        text = "done" if len(said) == 2 else f"<tool_call>\n{json.dumps(call)}\n</tool_call>"
        said.append(text)
        made = real(prompt_ids, *args, **options)
        ids = [tokenizer(f"{text}<|im_end|>", add_special_tokens=False)["input_ids"] for _ in prompt_ids]
        return (ids, [[-1.0] * len(one) for one in ids], *made[2:])

    monkeypatch.setattr(trainer, "_generate_single_turn", scripted)
    trainer.train()
    (log,) = [log for log in trainer.state.log_history if "reward" in log]
    environments = trainer._environment_pool[None]
    assert len(said) == 3 and all(one._player.episode.ended for one in environments)
    assert log["tools/call_frequency"] == 2 and log["tools/failure_frequency"] == 0
    rewards = [one.get_reward() for one in environments]
    assert log["reward"] == pytest.approx(sum(rewards) / len(rewards))
