"""How faithful simulated users are: a report card on held-out real data (docs/fidelity.md)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starec_eval.fidelity.card import Card as Card
    from starec_eval.fidelity.make import fidelity as fidelity

_FROM = {"Card": "card", "fidelity": "make"}
__all__ = ["Card", "fidelity"]


def __getattr__(name: str) -> Any:
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_FROM[name]}"), name)
