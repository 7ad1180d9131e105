"""BPR."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from starec_env.cases import PAD, Batch
from starec_env.types import Dataset, Id
from starec_eval.rankers.scorer import Scorer, Scores, State
from starec_eval.rankers.sequential import import_torch

_BATCH, _MOST_DRAWS = 4096, 50
_FOLD_STEPS, _FOLD_LR, _FOLD_NEGATIVES, _FOLD_BATCH = 60, 0.05, 4, 256


@dataclass
class BPR(Scorer):
    """Score of c: `p_u . q_c + b_c`, trained by `-log sigmoid(score(taken) - score(not taken))`.

    What is not taken is drawn uniformly among the items that the user has no training interaction with.

    Rendle et al. 2009, "BPR: Bayesian personalized ranking from implicit feedback". A user whom training didn't meet
    gets a vector fitted to the history by the same loss, items held fixed; without `fold_in` the zero vector, so that
    only the items' biases rank, much like popularity.
    """

    name: ClassVar[str] = "bpr"
    size: int = 64
    lr: float = 1e-2
    l2: float = 1e-2
    epochs: int = 60
    fold_in: bool = True
    users: dict[Id, int] = field(init=False, repr=False)
    tables: tuple[Any, Any, Any] = field(init=False, repr=False)
    """User vectors (users, size), item vectors (items + 1, size) and item biases (items + 1,); the last row is PAD."""

    def fit(self, train: Dataset) -> Self:
        """Train on every interaction with one negative each, epoch by epoch."""
        torch = import_torch(self.label)
        self.users = {uid: row for row, uid in enumerate(train.user_ids.tolist())}
        owners = torch.from_numpy(train.owner)
        taken = torch.from_numpy(train.item_indices.astype(np.int64))
        pairs = (owners * train.n_items + taken).unique()
        draw = torch.Generator().manual_seed(self.seed)
        p, q = (0.1 * torch.randn(n, self.size, generator=draw) for n in (train.n_users, train.n_items + 1))
        b = torch.zeros(train.n_items + 1)
        optimizer = torch.optim.Adam([t.requires_grad_() for t in (p, q, b)], lr=self.lr)
        for _ in range(self.epochs):
            for rows in torch.randperm(len(taken), generator=draw).split(_BATCH):
                other = self._untaken(torch, owners[rows], pairs, train.n_items, draw)
                optimizer.zero_grad()
                self._loss(torch, p[owners[rows]], q, b, taken[rows], other).mean().backward()
                optimizer.step()
        self.tables = (p.detach(), q.detach(), b.detach())
        return self

    def _untaken(self, torch: Any, owners: Any, pairs: Any, n_items: int, draw: Any) -> Any:
        # Items that aren't the owners', by the sorted keys of all pairs; who has nearly all keeps the last draw.
        other = torch.randint(n_items, owners.shape, generator=draw)
        for _ in range(_MOST_DRAWS):
            keys = owners * n_items + other
            met = pairs[torch.searchsorted(pairs, keys).clamp(max=len(pairs) - 1)] == keys
            if not met.any():
                break
            other[met] = torch.randint(n_items, (int(met.sum()),), generator=draw)
        return other

    def state(self) -> State:
        """Its three tables."""
        return dict(zip(("users", "items", "biases"), (table.numpy() for table in self.tables), strict=True))

    def restore(self, train: Dataset, state: State) -> None:
        """Take tables that were learned before."""
        torch = import_torch(self.label)
        self.users = {uid: row for row, uid in enumerate(train.user_ids.tolist())}
        self.tables = tuple(torch.from_numpy(state[name]) for name in ("users", "items", "biases"))

    def _loss(self, torch: Any, user: Any, q: Any, b: Any, taken: Any, other: Any) -> Any:
        # (...,) losses; user is (..., size).
        i, j = q[taken], q[other]
        margin = (user * (i - j)).sum(-1) + b[taken] - b[other]
        weight = user.square().sum(-1) + i.square().sum(-1) + j.square().sum(-1)
        return self.l2 * weight - torch.nn.functional.logsigmoid(margin)

    def scores(self, batch: Batch) -> Scores:
        """Scores by the user's vector, trained or folded in."""
        torch = import_torch(self.label)
        p, q, b = self.tables
        known = np.array([self.users.get(user, -1) for user in batch.users])
        vectors = torch.where(torch.from_numpy(known >= 0)[:, None], p[known], 0.0)
        if self.fold_in and (known < 0).any():
            histories, place = batch.distinct_histories()
            vectors[known < 0] = self._folded(torch, histories)[place[known < 0]]
        candidates = torch.from_numpy(batch.candidates.astype(np.int64))
        found: Scores = ((q[candidates] @ vectors[:, :, None])[:, :, 0] + b[candidates]).numpy()
        return found

    def _folded(self, torch: Any, history: NDArray[np.integer]) -> Any:
        # Fixed negatives by age, so that a query's vector doesn't depend on its batch.
        _, q, b = self.tables
        draw = torch.Generator().manual_seed(self.seed)
        other = torch.randint(len(q) - 1, (history.shape[1], _FOLD_NEGATIVES), generator=draw).flip(0)
        parts = torch.from_numpy(history.astype(np.int64)).split(_FOLD_BATCH)
        return torch.cat([self._fold(torch, taken, other, q, b) for taken in parts])

    def _fold(self, torch: Any, taken: Any, other: Any, q: Any, b: Any) -> Any:
        apart = (q[taken][:, :, None] - q[other]).flatten(1, 2)
        bias = (b[taken][:, :, None] - b[other]).flatten(1, 2)
        real = (taken != PAD).float()[:, :, None].expand(-1, -1, _FOLD_NEGATIVES).flatten(1, 2)
        vectors = torch.zeros(len(taken), self.size, requires_grad=True)
        optimizer = torch.optim.Adam([vectors], lr=_FOLD_LR)
        for _ in range(_FOLD_STEPS):
            optimizer.zero_grad()
            margin = (apart @ vectors[:, :, None])[:, :, 0] + bias
            loss = self.l2 * vectors.square().sum(1, keepdim=True) - torch.nn.functional.logsigmoid(margin)
            (loss * real).sum().backward()
            optimizer.step()
        return vectors.detach()
