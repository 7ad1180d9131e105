"""Analyses of recorded runs, and the report: one HTML file with tables, figures and users' timelines."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starec_eval.report.page import report as report
    from starec_eval.report.page import write_report as write_report

__all__ = ["report", "write_report"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from starec_eval.report import page

    return getattr(page, name)
