"""A model as one GGUF file, for llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tokenizer import SPECIAL

from starec_agents.serving.gguf import LAYER, WHOLE
from starec_env.errors import MissingExtra


def write_gguf(model: Any, tokenizer: Any, path: str | Path, name: str, licence: str) -> None:
    """Write a Llama with tied embeddings and a tokenizer of `build_tokenizer` (weights in float16).

    Args:
        model: A `LlamaForCausalLM`.
        tokenizer: Its tokenizer, chat template included.
        path: The .gguf file.
        name: The model's name in the file.
        licence: Of the weights.

    Raises:
        MissingExtra: The gguf package isn't installed.
    """
    try:
        import gguf
    except ImportError:
        raise MissingExtra("writing a GGUF file", "train") from None
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_license(licence)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, tokenizer, gguf.TokenType)
    heads = config.num_attention_heads
    for key, value in model.state_dict().items():
        array = value.detach().float().numpy()
        if (place := _tensor(key)) is None:
            continue
        if "attn_q." in place or "attn_k." in place:
            array = _interleaved(array, heads)
        writer.add_tensor(place, array.astype(np.float16 if array.ndim > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensor(key: str) -> str | None:
    if key == "lm_head.weight":
        return None  # tied: llama.cpp takes the embeddings
    if key in WHOLE:
        return WHOLE[key]
    number, part = key.removeprefix("model.layers.").split(".", 1)
    return f"blk.{number}.{LAYER[part.removesuffix('.weight')]}.weight"


def _interleaved(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    # llama.cpp turns neighbouring rows of a head together, transformers rows half a head apart.
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _add_tokenizer(writer: Any, tokenizer: Any, kinds: Any) -> None:
    import json

    core = json.loads(tokenizer.backend_tokenizer.to_str())
    texts = [""] * len(tokenizer)
    for text, token in core["model"]["vocab"].items():
        texts[token] = text
    types = [kinds.NORMAL] * len(texts)
    for added in core["added_tokens"]:
        texts[added["id"]] = added["content"]
        types[added["id"]] = kinds.CONTROL if added["content"] in SPECIAL else kinds.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(texts)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in core["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    writer.add_chat_template(tokenizer.chat_template)
