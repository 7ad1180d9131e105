"""Which precision a device computes in: chosen once, for all training, by timing."""

from __future__ import annotations

from functools import lru_cache
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@lru_cache(maxsize=4)
def bfloat16_is_quicker(device: str) -> bool:
    """Whether a product takes less time in bfloat16 than in float32 on a device, "cpu" or "cuda".

    A processor without instructions for bfloat16 takes tens of times as long in it.
    """
    import torch

    def seconds(dtype: torch.dtype) -> float:
        a = torch.ones((256, 256), dtype=dtype, device=device)
        times = []
        for _ in range(5):
            begun = perf_counter()
            (a @ a)[0, 0].item()
            times.append(perf_counter() - begun)
        return min(times)

    return seconds(torch.bfloat16) < seconds(torch.float32)
