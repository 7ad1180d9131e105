"""A policy in this process: batched generation, as a function and as the chat model that the agent graph asks."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from starec_agents.llm import Completion
from starec_agents.llm.base import Usage
from starec_env.errors import EndpointError
from starec_training.precision import bfloat16_is_quicker
from starec_training.rendering import Prompt, check_chat_template
from starec_training.rendering import encode as _encode
from starec_training.rewards import RankPrompts, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

_SAMPLING = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_QUIET = 0.01


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int = 512,
    temperature: float = 0.0,
    batch_size: int = 32,
    seeds: Sequence[Any] | None = None,
    **sampling: Any,
) -> list[Completion]:
    """Answer prompts by a model of transformers, batched by length, with a key-value cache.

    A sample is a function of its prompt and seed, whatever else is in the batch; only rounding differs with that, which
    may tip a near tie. No collective is called, so processes that hold whole copies of the model (no sharding) may call
    it independently.

    Args:
        model: A causal language model, unwrapped.
        tokenizer: Its tokenizer, with a chat template.
        prompts: Conversations to answer.
        max_tokens: Most tokens of an answer.
        temperature: 0 takes the likeliest token.
        batch_size: Prompts at a time.
        seeds: Of the sampling, one a prompt: anything with a repr. None: 0 for all, so equal prompts get one answer.
        sampling: top_p, top_k, min_p and repetition_penalty, as GRPOConfig has them. What the model's own
            generation_config says of sampling never applies: TRL's groups are drawn without it too.

    Returns:
        Completions in the order of the prompts, with usage and token ids.
    """
    ids = [_encode(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda place: -len(ids[place]))
    seeds = [0] * len(ids) if seeds is None else seeds
    answers: list[Completion | None] = [None] * len(ids)
    ends = ends_of(model, tokenizer)
    with _generating(model):
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            drawn_by = [(seeds[place], ids[place]) for place in places]
            chosen = [*_warpers(temperature, **sampling), *_gumbel(model.device, temperature, drawn_by)]
            began = time.perf_counter()
            batch = _generate(
                model, tokenizer, [ids[place] for place in places], max_new_tokens=max_tokens, logits_processor=chosen
            )
            latency = time.perf_counter() - began
            for place, tokens in zip(places, batch, strict=True):
                answers[place] = Completion(
                    text=tokenizer.decode(tokens, skip_special_tokens=True),
                    finish_reason="stop" if tokens[-1] in ends else "length",
                    usage=Usage(prompt_tokens=len(ids[place]), completion_tokens=len(tokens)),
                    latency=latency,
                    token_ids=tuple(tokens),
                )
    return [answer for answer in answers if answer is not None]


def _warpers(
    temperature: float,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
) -> list[Any]:
    """What changes the scores before one is drawn, in the order of transformers' own sampling."""
    from transformers import generation as known

    found: list[Any] = []
    if repetition_penalty != 1:
        found.append(known.RepetitionPenaltyLogitsProcessor(repetition_penalty))
    if temperature:
        found += [lambda _, scores: scores.float() / temperature]
        found += [known.TopKLogitsWarper(top_k)] if top_k else []
        found += [known.TopPLogitsWarper(top_p)] if top_p < 1 else []
        found += [known.MinPLogitsWarper(min_p)] if min_p else []
    return found


def _gumbel(device: Any, temperature: float, drawn_by: Sequence[Any]) -> list[Any]:
    """Sampling as a choice of the largest score, after Gumbel noise from each row's own generator (Gumbel 1954)."""
    import torch

    if not temperature:
        return []
    digests = [blake2b(repr(each).encode(), digest_size=7).digest() for each in drawn_by]
    generators = [torch.Generator(device).manual_seed(int.from_bytes(digest)) for digest in digests]

    def noisy(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        waits = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(waits, generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() - waits.log()

    return [noisy]


@contextmanager
def _generating(model: Any) -> Iterator[None]:
    import torch

    training, declared, kind = model.training, model.generation_config, model.device.type
    model.eval()
    model.generation_config = plain(declared, declared.eos_token_id)  # transformers fills what is left out from it
    quick = kind != "cpu" and bfloat16_is_quicker(kind)
    try:
        with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=quick):
            yield
    finally:
        model.train(training)
        model.generation_config = declared


def plain(declared: Any, ends: Any) -> Any:
    """A model's GenerationConfig without what it says of sampling: its special tokens, and these ends."""
    from transformers import GenerationConfig

    return GenerationConfig(bos_token_id=declared.bos_token_id, pad_token_id=declared.pad_token_id, eos_token_id=ends)


def _generate(model: Any, tokenizer: Any, batch: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
    import torch

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    longest = max(map(len, batch))
    inputs = torch.tensor([[pad] * (longest - len(ids)) + list(ids) for ids in batch], device=model.device)
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in batch], device=model.device)
    ends = ends_of(model, tokenizer)
    output = model.generate(input_ids=inputs, attention_mask=mask, pad_token_id=pad, eos_token_id=ends, **options)
    found = []
    for tokens in output[:, longest:].tolist():
        stop = next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))
        found.append(tokens[:stop])
    return found


def ends_of(model: Any, tokenizer: Any) -> list[int]:
    """Every end that the model declares, e.g. of a turn, and the tokenizer's: as TRL does."""
    declared = model.generation_config.eos_token_id
    ends = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return sorted({*ends, tokenizer.eos_token_id})


def outside_loop(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call what starts an event loop of its own, in a thread of its own where one is running already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return function(*args, **options)
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(function, *args, **options).result()


_ends = ends_of  # its name in the first edition, for one release


def ranker(policy: Callable[[], Any], tokenizer: Any, **options: Any) -> RankPrompts:
    """The follow-up ranker of `memory_reward` that asks the model being trained, as it is at that moment.

    Args:
        policy: Gives the unwrapped model.
        tokenizer: Its tokenizer.
        options: Of `generate`; at the default temperature 0 a follow-up adds no noise of its own.
    """
    return lambda prompts: [whole(answer) for answer in generate(policy(), tokenizer, prompts, **options)]


@dataclass(frozen=True, eq=False)
class _Request:
    prompt: Prompt
    options: dict[str, Any]
    seed: tuple[int, int]
    future: asyncio.Future[Completion]


class LocalChat:
    """A model in this process as a ChatModel: requests that wait together are answered in one batch.

    Args:
        network: A causal language model of transformers.
        tokenizer: Its tokenizer, with a chat template.
        model: Name that runs record.
        batch_size: Most requests at a time.
        seed: Of the sampling, with how often the same prompt was asked before: so a resumed run draws what an unbroken
            one draws, and repeated requests still differ.
        sampling: Defaults of what `generate` takes; a request's own go before. Others can't be served here and are
            ignored.
    """

    def __init__(
        self,
        network: Any,
        tokenizer: Any,
        *,
        model: str = "local",
        batch_size: int = 32,
        seed: int = 0,
        **sampling: Any,
    ) -> None:
        check_chat_template(tokenizer)
        self.network, self.tokenizer, self.model = network, tokenizer, model
        self.batch_size, self.seed, self.sampling = batch_size, seed, sampling
        self.batches = 0
        self._asked: Counter[str] = Counter()
        self._waiting: list[_Request] = []
        self._worker: asyncio.Task[None] | None = None

    async def complete(self, messages: Prompt, **sampling: Any) -> Completion:
        """Answer a prompt; see ChatModel."""
        known = {name: value for name, value in sampling.items() if name in _SAMPLING}
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._asked[key := repr(messages)] += 1
        self._waiting.append(_Request(messages, {**self.sampling, **known}, (self.seed, self._asked[key]), future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            await self._gathered()
            options = self._waiting[0].options
            batch = [request for request in self._waiting if request.options == options][: self.batch_size]
            self._waiting = [request for request in self._waiting if not any(request is taken for taken in batch)]
            await asyncio.to_thread(self._answer, batch, options)

    async def _gathered(self) -> None:
        # Users whose answers came together ask again together: wait until no more of them do.
        count = 0
        while count < len(self._waiting) < self.batch_size:
            count = len(self._waiting)
            await asyncio.sleep(_QUIET)

    def _answer(self, batch: Sequence[_Request], options: dict[str, Any]) -> None:
        self.batches += 1
        loop = batch[0].future.get_loop()
        try:
            answers = generate(
                self.network,
                self.tokenizer,
                [request.prompt for request in batch],
                batch_size=self.batch_size,
                seeds=[request.seed for request in batch],
                **options,
            )
        except Exception as error:
            fault = EndpointError(f"the local model failed: {type(error).__name__}: {error}")
            for request in batch:
                loop.call_soon_threadsafe(_settle, request.future, fault)
            return
        for request, answer in zip(batch, answers, strict=True):
            loop.call_soon_threadsafe(_settle, request.future, answer.model_copy(update={"model": self.model}))


def _settle(future: asyncio.Future[Completion], result: Completion | Exception) -> None:
    if future.done():  # the user gave up waiting
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
