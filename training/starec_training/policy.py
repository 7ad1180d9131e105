"""A policy in this process: batched generation, as a function and as the chat model that the agent graph asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from starec_agents.llm import Completion, Message
from starec_env.errors import EndpointError
from starec_env.types import Usage
from starec_training.rewards import RankPrompts
from starec_training.rows import check_chat_template

if TYPE_CHECKING:
    from collections.abc import Iterator

Prompt = Sequence[Message]
_QUIET = 0.01


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int = 512,
    temperature: float = 0.0,
    top_p: float = 1.0,
    batch_size: int = 32,
    seed: int | None = None,
) -> list[Completion]:
    """Answer prompts by a model of transformers, batched by length, with a key-value cache.

    The global random state is as before afterwards if a `seed` is given. No collective is called, so processes that
    hold whole copies of the model (no sharding) may call it independently.

    Args:
        model: A causal language model, unwrapped.
        tokenizer: Its tokenizer, with a chat template.
        prompts: Conversations to answer.
        max_tokens: Most tokens of an answer.
        temperature: 0 takes the likeliest token.
        top_p: Nucleus sampling.
        batch_size: Prompts at a time.
        seed: Of the sampling.

    Returns:
        Completions in the order of the prompts, with usage and token ids.
    """
    ids = [_encode(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda place: -len(ids[place]))
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        if temperature
        else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    )
    answers: list[Completion | None] = [None] * len(ids)
    with _generating(model, seed if temperature else None):
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            began = time.perf_counter()
            batch = _generate(model, tokenizer, [ids[place] for place in places], max_new_tokens=max_tokens, **sampling)
            latency = time.perf_counter() - began
            for place, tokens in zip(places, batch, strict=True):
                answers[place] = Completion(
                    text=tokenizer.decode(tokens, skip_special_tokens=True),
                    finish_reason="stop" if tokens[-1] in _ends(model, tokenizer) else "length",
                    usage=Usage(prompt_tokens=len(ids[place]), completion_tokens=len(tokens)),
                    latency=latency,
                    token_ids=tuple(tokens),
                )
    return [answer for answer in answers if answer is not None]


def _encode(tokenizer: Any, prompt: Prompt) -> list[int]:
    messages = [dict(message) for message in prompt]
    tokens: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return tokens


@contextmanager
def _generating(model: Any, seed: int | None) -> Iterator[None]:
    import torch

    training = model.training
    model.eval()
    gpu = model.device.type == "cuda"
    devices = [model.device] if gpu else []
    half = torch.autocast(model.device.type, torch.bfloat16, enabled=gpu)
    try:
        with torch.no_grad(), half, torch.random.fork_rng(devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            yield
    finally:
        model.train(training)


def _generate(model: Any, tokenizer: Any, batch: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
    import torch

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    longest = max(map(len, batch))
    inputs = torch.tensor([[pad] * (longest - len(ids)) + list(ids) for ids in batch], device=model.device)
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in batch], device=model.device)
    ends = _ends(model, tokenizer)
    output = model.generate(input_ids=inputs, attention_mask=mask, pad_token_id=pad, eos_token_id=ends, **options)
    found = []
    for tokens in output[:, longest:].tolist():
        stop = next((place + 1 for place, token in enumerate(tokens) if token in ends), len(tokens))
        found.append(tokens[:stop])
    return found


def _ends(model: Any, tokenizer: Any) -> list[int]:
    # Every end that the model declares, e.g. of a turn, and the tokenizer's: as TRL does.
    declared = model.generation_config.eos_token_id
    ends = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    return sorted({*ends, tokenizer.eos_token_id})


def ranker(policy: Callable[[], Any], tokenizer: Any, **options: Any) -> RankPrompts:
    """The follow-up ranker of `memory_reward` that asks the model being trained, as it is at that moment.

    Args:
        policy: Gives the unwrapped model.
        tokenizer: Its tokenizer.
        options: Of `generate`; at the default temperature 0 a follow-up adds no noise of its own.
    """
    return lambda prompts: [answer.text for answer in generate(policy(), tokenizer, prompts, **options)]


class LocalChat:
    """A model in this process as a ChatModel: requests that wait together are answered in one batch.

    Args:
        network: A causal language model of transformers.
        tokenizer: Its tokenizer, with a chat template.
        model: Name that runs record.
        batch_size: Most requests at a time.
        seed: Of the sampling, with the number of the batch; greedy answers don't depend on either.
        sampling: Defaults of max_tokens, temperature and top_p; a request's own go before. `schema` and `logprobs`
            can't be served here and are ignored.
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
        self._waiting: list[tuple[Prompt, dict[str, Any], asyncio.Future[Completion]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def complete(self, messages: Prompt, **sampling: Any) -> Completion:
        """Answer a prompt; see ChatModel."""
        known = {name: value for name, value in sampling.items() if name in ("max_tokens", "temperature", "top_p")}
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._waiting.append((messages, {**self.sampling, **known}, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            await self._gathered()
            options = self._waiting[0][1]
            batch = [request for request in self._waiting if request[1] == options][: self.batch_size]
            self._waiting = [request for request in self._waiting if not any(request is taken for taken in batch)]
            await asyncio.to_thread(self._answer, batch, options)

    async def _gathered(self) -> None:
        # Users whose answers came together ask again together: wait until no more of them do.
        count = 0
        while count < len(self._waiting) < self.batch_size:
            count = len(self._waiting)
            await asyncio.sleep(_QUIET)

    def _answer(self, batch: Sequence[tuple[Prompt, Any, asyncio.Future[Completion]]], options: dict[str, Any]) -> None:
        seed, self.batches = self.seed + self.batches, self.batches + 1
        loop = batch[0][2].get_loop()
        try:
            prompts = [prompt for prompt, _, _ in batch]
            answers = generate(self.network, self.tokenizer, prompts, batch_size=self.batch_size, seed=seed, **options)
        except Exception as error:
            fault = EndpointError(f"the local model failed: {type(error).__name__}: {error}")
            for _, _, future in batch:
                loop.call_soon_threadsafe(_settle, future, fault)
            return
        for (_, _, future), answer in zip(batch, answers, strict=True):
            loop.call_soon_threadsafe(_settle, future, answer.model_copy(update={"model": self.model}))


def _settle(future: asyncio.Future[Completion], result: Completion | Exception) -> None:
    if future.done():  # the user gave up waiting
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
