"""A twin of a small made-up log, fitted once a process: two tastes, some items more popular than others."""

from functools import cache

import numpy as np

from starec_env.data import from_frame
from starec_env.recommend.twin import Twin
from starec_env.types import Dataset

USERS, ITEMS, ROWS = 80, 40, 24


@cache
def small_log(seed: int = 0) -> Dataset:
    """80 users with 24 of 40 items each, rated 1 to 5: half of the items please half of the users."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    rows = []
    for user in range(USERS):
        pleasing = np.arange(ITEMS) % 2 == user % 2
        odds = np.exp(1.2 * pleasing - np.arange(ITEMS) / ITEMS)
        items = rng.choice(ITEMS, ROWS, replace=False, p=odds / odds.sum())
        stars = np.clip(np.rint(2.2 + 2 * pleasing[items] + rng.normal(0, 0.8, ROWS)), 1, 5)
        pauses = np.select([(drawn := rng.random(ROWS)) < 0.08, drawn < 0.2], [40_000, 200_000], 60)
        times = 10**9 + user * 10**7 + np.cumsum(pauses)
        rows += [(user, int(i), s, int(t)) for i, s, t in zip(items, stars, times, strict=True)]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    titles = pd.DataFrame({"item_id": range(ITEMS), "title": [f"Title {i}" for i in range(ITEMS)]})
    return from_frame(table, items=titles)


@cache
def small_twin() -> Twin:
    """Its twin."""
    return Twin.fit(small_log(), rank=8)
