"""What a group of answers shares is computed once, and nothing else changes."""

from copy import deepcopy

import pytest

pytest.importorskip("trl", reason="needs the 'train' extra")

import torch  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM  # noqa: E402

from starec_training.grouped import share_prefixes, shared_prefix  # noqa: E402

SIZES = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "pad_token_id": 0}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2}


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Three prompts of 20 tokens, one padded on the left, with four answers of 7 each, one padded on the right."""
    torch.manual_seed(0)
    prompts = torch.randint(1, 100, (3, 20)).repeat_interleave(4, 0)
    ids = torch.cat([prompts, torch.randint(1, 100, (12, 7))], 1)
    mask = torch.ones_like(ids)
    mask[4:8, :5] = mask[3, -2:] = 0
    return ids * mask, mask


@pytest.mark.parametrize(
    ("config", "kind"), [(LlamaConfig, LlamaForCausalLM), (Qwen2Config, Qwen2ForCausalLM)], ids=["llama", "qwen2"]
)
def test_hidden_states_gradients_and_generations_are_those_of_rows_computed_one_by_one(config, kind):
    plain = kind(config(**SIZES))
    sharing = deepcopy(plain)
    share_prefixes(sharing)
    ids, mask = batch()
    known = mask.bool()
    for model in (plain, sharing):
        model(input_ids=ids, attention_mask=mask, use_cache=False).logits[known].square().mean().backward()
    one, other = (
        model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state for model in (plain, sharing)
    )
    assert torch.allclose(one[known], other[known], atol=3e-6)
    for mine, theirs in zip(plain.parameters(), sharing.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, atol=3e-6)
    asked = {"input_ids": ids[:, :20], "attention_mask": mask[:, :20], "do_sample": False, "max_new_tokens": 6}
    assert torch.equal(plain.generate(**asked), sharing.generate(**asked))


def test_the_prompt_of_a_group_is_read_once(monkeypatch: pytest.MonkeyPatch):
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    read = []
    embed = model.model.embed_tokens.forward
    monkeypatch.setattr(model.model.embed_tokens, "forward", lambda ids: read.append(ids.numel()) or embed(ids))
    share_prefixes(model)
    ids, mask = batch()
    model(input_ids=ids, attention_mask=mask, use_cache=False)
    assert sum(read) == 3 * 20 + 12 * 7 < ids.numel()


def test_rows_that_share_nothing_are_computed_as_they_are():
    width, first, owner = shared_prefix(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert width == 0 or len(first) == len(owner) == 2
    width, first, owner = shared_prefix(torch.tensor([[1, 2, 3], [1, 2, 4], [1, 2, 3]]))
    assert (width, first.tolist(), owner.tolist()) in [(2, [0], [0, 0, 0]), (3, [0, 1], [0, 1, 0])]
