"""The options that say which server is asked and how, the same for every command."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from starec_agents.llm.base import Endpoint
from starec_env.errors import InvalidOption

if TYPE_CHECKING:
    from starec_agents.llm.client import OpenAIChat

_POSITIVE = click.FloatRange(min=0, min_open=True)
_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--model", {"help": "The model's name at the endpoint."}),
    ("--api-key-env", {"default": "OPENAI_API_KEY", "help": "Variable that holds the API key."}),
    ("--header", {"multiple": True, "metavar": "NAME=VALUE", "help": "A request header; env:VARIABLE as a value."}),
    ("--temperature", {"type": click.FloatRange(min=0), "default": 0.0}),
    ("--top-p", {"type": click.FloatRange(0, 1, min_open=True), "default": 1.0}),
    ("--max-tokens", {"type": click.IntRange(min=1), "default": 2048, "help": "Per answer."}),
    ("--extra-body", {"metavar": "JSON", "help": 'More request fields, {"top_k": 20}; null removes one of ours.'}),
    ("--timeout", {"type": _POSITIVE, "default": 120.0, "help": "Seconds."}),
    ("--max-retries", {"type": click.IntRange(min=0), "default": 5, "help": "For faults that pass."}),
    ("--max-wait", {"type": click.FloatRange(min=0), "default": 1800.0, "help": "Seconds for rate limits, per call."}),
)
ENDPOINT_OPTIONS = tuple(flag.removeprefix("--").replace("-", "_") for flag, _ in _OPTIONS)
"""Their names as a command's parameters; --base-url and --concurrency are each command's own."""


_AS_IN_ENDPOINT = ("api_key_env", "temperature", "top_p", "max_tokens", "max_retries", "concurrency")


def endpoint_options(command: Callable[..., Any], several: bool = False) -> Callable[..., Any]:
    """Give a click command the options of an `Endpoint`, which `endpoint` makes of them.

    Args:
        command: The function.
        several: Whether --model may be given several times, as `named_models` reads it.
    """
    options = dict(_OPTIONS)
    if several:
        options["--model"] = {
            "multiple": True,
            "metavar": "[NAME=]MODEL",
            "help": "The model at the endpoint; with a name, the one that the graph's nodes ask by it.",
        }
    for flag, settings in reversed(options.items()):
        command = click.option(flag, show_default="default" in settings, **settings)(command)
    return command


model_card_option = click.option(
    "--model-card",
    type=click.Path(exists=True, file_okay=False),
    metavar="FOLDER",
    help="The model's folder, whose starec.json says whom it was trained on; needed where neither --model nor the "
    "server names it.",
)
"""Gives a command --model-card."""


def named_models(given: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The agent's own model, which is the first where none is without a name, and models by name.

    Raises:
        InvalidOption: There is none, or two have one name.
    """
    pairs = [(name, model) for name, equals, model in (one.partition("=") for one in given) if equals]
    own = [one for one in given if "=" not in one]
    names = [name for name, _ in pairs]
    if not given:
        raise InvalidOption("--model is missing: give the model's name at the endpoint")
    if len(own) > 1 or len(set(names)) < len(names):
        raise InvalidOption(
            f"--model {' --model '.join(given)}: one alone may be without a name, and each name be given once, as in "
            "--model big --model ranker=small"
        )
    if wrong := [f"{name}={model}" for name, model in pairs if not name.isidentifier() or not model]:
        raise InvalidOption(f"--model {wrong[0]}: wanted MODEL, or NAME=MODEL with the name that the graph's nodes ask")
    return (own or [model for _, model in pairs])[0], dict(pairs)


def chats(
    options: Mapping[str, Any], cache_dir: str | Path | None = None
) -> tuple[str, OpenAIChat, dict[str, OpenAIChat]]:
    """The name and the client of a command's own model, and the clients that its graph's nodes ask by name.

    Args:
        options: The command's: "urls", "model" (several) and those of `ENDPOINT_OPTIONS`.
        cache_dir: As for `OpenAIChat`.

    Raises:
        InvalidOption: As `named_models`, `endpoint` and `OpenAIChat` do.
    """
    from starec_agents.llm.client import OpenAIChat

    own, named = named_models(options["model"])

    def chat(model: str) -> OpenAIChat:
        return OpenAIChat([endpoint(url, model, options) for url in options["urls"]], cache_dir=cache_dir)

    return own, chat(own), {name: chat(model) for name, model in named.items()}


def endpoint(base_url: str, model: str, options: Mapping[str, Any]) -> Endpoint:
    """The endpoint of a command's options.

    Raises:
        InvalidOption: --header isn't NAME=VALUE, or --extra-body no JSON object.
    """
    return Endpoint(
        base_url=base_url,
        model=model,
        headers=_headers(options["header"]),
        extra_body=_extra_body(options["extra_body"]),
        timeout_s=options["timeout"],
        max_wait_s=options["max_wait"],
        **{name: options[name] for name in _AS_IN_ENDPOINT},
    )


def _headers(given: Sequence[str]) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in given]
    if wrong := [name for name, equals, _ in pairs if not equals or not name.strip()]:
        raise InvalidOption(f"--header {wrong[0]}: wanted NAME=VALUE, e.g. X-Team=research or api-key=env:AZURE_KEY")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _extra_body(text: str | None) -> dict[str, Any]:
    try:
        body = json.loads(text or "{}")
    except ValueError as error:
        raise InvalidOption(f"--extra-body {text}: no JSON ({error}); wanted an object") from None
    if not isinstance(body, dict):
        raise InvalidOption(f'--extra-body {text}: wanted a JSON object, e.g. {{"top_k": 20}}')
    return body
