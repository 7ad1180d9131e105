"""Chat models: one client of one or many OpenAI-compatible servers, LangChain's models, and scripted ones."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
