"""A server that speaks what TRL 1.16 and our client ask of `vllm serve`, and holds a real model that takes weights.

All goes over HTTP by TRL's own client but for the tensors themselves: NCCL moves those between GPUs, a queue here.
"""

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from aiohttp import web
from fake_endpoint import completion
from trl.generation import vllm_client, vllm_generation

from starec_training import vllm_server
from starec_training.checkpoints import load_policy
from starec_training.generation import generate


class FakeVLLM:
    """Use it as a context manager.

    Args:
        model: Folder of the model that it is started on.
        monkeypatch: Stands in for what needs vLLM's library and a GPU.
        fails: At the second batch of samples: "refuses" answers with status 504, "hangs up" with nothing.
    """

    def __init__(self, model: Path, monkeypatch: pytest.MonkeyPatch, fails: str = "") -> None:
        self.fails = fails
        self.model, self.tokenizer = load_policy(model)
        self.wire: queue.Queue[torch.Tensor] = queue.Queue()
        self.log: list[tuple[str, float]] = []
        """What was asked, and the fingerprint of the weights that it met."""
        self._monkeypatch = monkeypatch

    def __enter__(self) -> "FakeVLLM":
        started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve(started)))
        self._thread.start()
        started.wait()
        for module in (vllm_client, vllm_generation):
            self._monkeypatch.setattr(module, "is_vllm_available", lambda **_: True)
        engine = SimpleNamespace(trainer_send_weights=lambda iterator, **_: self._send(iterator))
        self._monkeypatch.setattr(vllm_client, "NCCLWeightTransferEngine", engine, raising=False)
        self._monkeypatch.setattr(vllm_client, "NCCLTrainerSendWeightsArgs", SimpleNamespace, raising=False)
        self._monkeypatch.setattr(vllm_client.VLLMClient, "init_communicator", _joined)
        self._monkeypatch.setattr(vllm_client.VLLMClient, "close_communicator", _left)
        self._monkeypatch.setattr(vllm_server, "find_spec", lambda _: True)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def fingerprint(self, model: Any = None) -> float:
        """A number that tells weights apart."""
        return sum(float(value.double().abs().sum()) for value in (model or self.model).state_dict().values())

    def asked(self, what: str) -> list[float]:
        """The fingerprints that some requests met, in order."""
        return [weights for name, weights in self.log if name == what]

    async def _serve(self, started: threading.Event) -> None:
        self._stop = asyncio.Event()
        config = {
            "weight_transfer_config": {"backend": "nccl"},
            "model_config": {"logprobs_mode": "processed_logprobs"},
        }
        told = {
            "/health": {}, "/v1/models": {"object": "list", "data": [{"id": "policy", "object": "model"}]},
            "/server_info": {"vllm_config": config}, "/get_world_size": {"world_size": 1},
        }  # fmt: skip
        app = web.Application(client_max_size=2**26)
        for path, answer in told.items():
            app.router.add_get(path, _saying(answer))
        for path in ("init_weight_transfer_engine", "start_weight_update", "finish_weight_update"):
            app.router.add_post(f"/{path}", _saying({}))
        app.router.add_post("/reset_prefix_cache", _saying({"success": True}))
        app.router.add_post("/update_weights", self._update)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        await self._stop.wait()
        await runner.cleanup()

    def _send(self, iterator: Iterable[tuple[str, torch.Tensor]]) -> None:
        for _, value in iterator:
            self.wire.put(value.detach().clone())

    async def _update(self, request: web.Request) -> web.Response:
        info = (await request.json())["update_info"]
        own = self.model.state_dict()
        for name, kind, shape in zip(info["names"], info["dtype_names"], info["shapes"], strict=True):
            value = await asyncio.to_thread(self.wire.get, timeout=30)
            assert (str(value.dtype), list(value.shape)) == (f"torch.{kind}", shape)
            own[name].copy_(value)
        self.log.append(("update", self.fingerprint()))
        return web.json_response({})

    async def _complete(self, request: web.Request) -> web.Response:
        """Samples of prompts given as tokens, with the log-probability of each token."""
        asked = await request.json()
        self.log.append(("sample", self.fingerprint()))
        if self.fails and len(self.asked("sample")) > 1:
            assert self.fails == "refuses" or request.transport is not None
            if self.fails == "hangs up":
                request.transport.abort()
            return web.Response(status=504)
        choices = []
        for ids in asked["prompt"]:
            with torch.no_grad():
                made = self.model.generate(
                    torch.tensor([ids]), do_sample=True, temperature=asked["temperature"], top_k=0,
                    num_return_sequences=asked["n"], max_new_tokens=asked["max_tokens"], output_scores=True,
                    return_dict_in_generate=True, pad_token_id=self.tokenizer.pad_token_id,
                )  # fmt: skip
            scores = torch.stack(made.scores, 1).log_softmax(-1)
            for row, tokens in enumerate(made.sequences[:, len(ids) :].tolist()):
                end = self.tokenizer.eos_token_id
                kept = tokens[: tokens.index(end) + 1] if end in tokens else tokens
                values = [float(scores[row, place, token]) for place, token in enumerate(kept)]
                names = [f"token_id:{token}" for token in kept]
                logprobs = {"tokens": names, "token_logprobs": values, "top_logprobs": [None] * len(kept)}
                choices.append({"prompt_token_ids": ids, "token_ids": kept, "logprobs": logprobs})
        return web.json_response({"choices": choices})

    async def _chat(self, request: web.Request) -> web.Response:
        asked = await request.json()
        how = {name: asked[name] for name in ("temperature", "max_tokens")}
        self.log.append(("collect" if how["temperature"] else "follow up", self.fingerprint()))
        (answer,) = generate(self.model, self.tokenizer, [asked["messages"]], seeds=[len(self.log)], **how)
        return web.json_response(completion(answer.text, "policy"))


def _saying(answer: dict[str, Any]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def say(_: web.Request) -> web.Response:
        return web.json_response(answer)

    return say


def _joined(self: Any, device: Any) -> None:
    assert self.communicator is None
    assert self.get_server_info()["weight_transfer_config"] is not None
    self._post(f"{self.base_url}/init_weight_transfer_engine", json={"init_info": {}})
    self.communicator = object()


def _left(self: Any) -> None:
    self.communicator = None
