"""A vLLM server that holds the policy (TRL's server mode): it answers GRPO, the agent graph and the follow-ups.

TRL gives the server the current weights before each generation. What TRL doesn't do is done here: the server gets the
policy's weights before a round is collected too, since the last step of the round before never reached it, and a server
that was started anew holds what it was started on.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import PartialState

from starec_agents.llm.base import Endpoint
from starec_agents.llm.client import OpenAIChat
from starec_env.errors import EndpointError, TrainingError
from starec_training.checkpoints import load_policy

START = (
    'VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config \'{"backend": "nccl"}\' '
    "--logprobs-mode processed_logprobs --max-logprobs -1"
)
"""How TRL wants the server started."""
_ANSWER_S = 1800.0


def holds_policy(config: Any) -> bool:
    """Whether a GRPOConfig asks for vLLM's server mode."""
    return bool(config.use_vllm and config.vllm_mode == "server")


def server_chat(config: Any) -> OpenAIChat:
    """The client of the server that a GRPOConfig names, asked by its first model's name, as TRL asks it.

    Raises:
        TrainingError: vLLM isn't installed here (TRL's client needs it), or no such server answers.
    """
    if find_spec("vllm") is None:
        raise TrainingError("vllm_mode=server needs vllm beside TRL, for its weight transfer: pip install 'trl[vllm]'")
    url = _url(config)
    try:
        with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as answer:
            model: str = json.load(answer)["data"][0]["id"]
    except (OSError, ValueError, LookupError, urllib.error.URLError) as error:
        raise TrainingError(f"no vLLM server answers at {url} ({error}): start it with `{START}`") from None
    # Sent explicitly: the server would take its model's generation_config otherwise.
    sampling = {"top_k": config.top_k, "min_p": config.min_p or 0.0, "repetition_penalty": config.repetition_penalty}
    if config.chat_template_kwargs:
        sampling["chat_template_kwargs"] = config.chat_template_kwargs
    endpoint = Endpoint(base_url=f"{url}/v1", model=model, top_p=config.top_p, timeout_s=_ANSWER_S, extra_body=sampling)
    return OpenAIChat(endpoint)


def hand_over(config: Any, policy: str | Path) -> None:
    """Give the server the weights of a folder, an adapter merged; call it in the first process alone."""
    from trl.generation.vllm_client import VLLMClient

    network, _ = load_policy(policy)
    if hasattr(network, "peft_config"):
        network = network.merge_and_unload()
    device = PartialState().device
    client = VLLMClient(
        base_url=_url(config), group_port=config.vllm_group_port, connection_timeout=config.vllm_server_timeout
    )
    client.init_communicator(device=device)
    client.update_model_params(network.to(device))
    client.reset_prefix_cache()
    client.close_communicator()


@contextmanager
def watched(config: Any) -> Iterator[None]:
    """Within it, a server that fails TRL's own client is an EndpointError that says how to go on.

    Raises:
        EndpointError: The server is gone, or refused a request.
    """
    try:
        yield
    except Exception as error:  # TRL's client raises Exception itself for an answer with another status than 200
        from requests import RequestException

        gone = isinstance(error, (RequestException, ConnectionError))
        if holds_policy(config) and (gone or str(error).startswith("Request failed")):
            raise EndpointError(
                f"the vLLM server at {_url(config)} failed in the middle of training ({error}): start it again with "
                f"`{START}`, and give the same command again to go on from the last checkpoint",
                "connection" if gone else "server",
            ) from error
        raise


def _url(config: Any) -> str:
    base: str | None = config.vllm_server_base_url
    return (base or f"http://{config.vllm_server_host}:{config.vllm_server_port}").rstrip("/")
