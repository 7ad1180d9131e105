"""Analyses of recorded runs, and the report: one HTML file with tables, figures and users' timelines."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
