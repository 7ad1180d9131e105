"""Weights of a small Llama out of a GGUF file, as safetensors: one file ships, and the other is made when it is needed.

Needs NumPy alone, as neither llama.cpp's nor vLLM's users have the gguf package.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from starec_env.errors import EndpointError

LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Parts of a layer in GGUF by their names in transformers."""
WHOLE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
"""Tensors that belong to no layer; the head is tied to the embeddings."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DTYPES: dict[int, Any] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}

Array = np.ndarray[Any, Any]


def gguf_to_safetensors(source: str | Path, target: str | Path) -> None:
    """Write the weights of a Llama with tied embeddings as float16 safetensors, under transformers' names.

    Args:
        source: A GGUF file with tensors in float32 or float16.
        target: The .safetensors file.

    Raises:
        EndpointError: It is no GGUF of version 3, or holds another kind of tensor.
    """
    metadata, tensors = read_gguf(source)
    heads = int(metadata["llama.attention.head_count"])
    layers = range(int(metadata["llama.block_count"]))
    names = WHOLE | {
        f"model.layers.{number}.{ours}.weight": f"blk.{number}.{theirs}.weight"
        for number in layers
        for ours, theirs in LAYER.items()
    }
    turned = {ours: _halves(tensors[theirs], heads) if _is_rotary(theirs) else tensors[theirs]
              for ours, theirs in names.items()}  # fmt: skip
    _write_safetensors({name: turned[name].astype("<f2") for name in sorted(turned)}, Path(target))


def read_gguf(path: str | Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """The metadata of a GGUF file by key, and its tensors by name, rows first.

    Raises:
        EndpointError: It is no GGUF of version 3, or holds tensors that are neither float32 nor float16.
    """
    with Path(path).open("rb") as file:
        if file.read(8) != b"GGUF" + struct.pack("<I", 3):
            raise EndpointError(f"{path} isn't a GGUF file of version 3: install the package again")
        n_tensors, n_keys = _unpack(file, "QQ")
        metadata = dict(_pair(file) for _ in range(n_keys))
        infos = [_tensor_info(file) for _ in range(n_tensors)]
        aligned = int(metadata.get("general.alignment", 32))
        begin = -(-file.tell() // aligned) * aligned
        return metadata, {name: _tensor(file, begin + offset, shape, kind) for name, shape, kind, offset in infos}


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))


def _string(file: BinaryIO) -> str:
    (length,) = _unpack(file, "Q")
    return file.read(length).decode("utf-8")


def _pair(file: BinaryIO) -> tuple[str, Any]:
    key = _string(file)
    (kind,) = _unpack(file, "I")
    return key, _value(file, kind)


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        of, length = _unpack(file, "IQ")
        return [_value(file, of) for _ in range(length)]
    return _unpack(file, _SCALARS[kind])[0]


def _tensor_info(file: BinaryIO) -> tuple[str, tuple[int, ...], int, int]:
    name = _string(file)
    (n_dimensions,) = _unpack(file, "I")
    shape = _unpack(file, f"{n_dimensions}Q")
    kind, offset = _unpack(file, "IQ")
    if kind not in _DTYPES:
        raise EndpointError(f"the tensor {name} is of GGUF's type {kind}, wanted float32 (0) or float16 (1)")
    return name, shape[::-1], kind, offset


def _tensor(file: BinaryIO, begin: int, shape: tuple[int, ...], kind: int) -> Array:
    file.seek(begin)
    data = file.read(int(np.prod(shape)) * _DTYPES[kind].itemsize)
    return np.frombuffer(data, _DTYPES[kind]).reshape(shape)


def _is_rotary(name: str) -> bool:
    return "attn_q." in name or "attn_k." in name


def _halves(weight: Array, heads: int) -> Array:
    # transformers turns rows of a head together that are half a head apart, llama.cpp neighbouring ones.
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _write_safetensors(tensors: dict[str, Array], path: Path) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in tensors.items():
        header[name] = {"dtype": "F16", "shape": array.shape, "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            file.write(array.tobytes())
