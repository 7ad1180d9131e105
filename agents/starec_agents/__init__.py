"""LLM user agents: prompts, parsing, graphs, chat models and populations of agents. Names load when first used."""

import lazy_loader

import starec_env as starec_env  # modules that moved are found at their old names

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
