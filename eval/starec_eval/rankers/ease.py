"""EASE."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

import numpy as np
from scipy.sparse import coo_array

from starec_env.cases import PAD, Batch
from starec_env.errors import InvalidOption
from starec_env.types import Dataset, Id, Indices
from starec_eval.rankers.scorer import Scorer, Scores

_MOST_ITEMS = 20_000


@dataclass
class EASE(Scorer):
    """Score of c: `sum over history h of B_hc`, with `B = I - P / diag(P)` and `P = (X'X + l2 I)^-1`.

    Steck 2019, "Embarrassingly shallow autoencoders for sparse data". X is the binary (users, items) matrix of the
    training sequences. The matrix is dense over the items seen in training: `fit` refuses more than 20,000 of them.
    """

    name: ClassVar[str] = "ease"
    l2: float = 500.0
    weights: Scores = field(init=False, repr=False)
    column: Indices = field(init=False, repr=False)

    def fit(self, train: Dataset) -> Self:
        """Invert the regularised Gram matrix."""
        seen, items = np.unique(train.item_indices, return_inverse=True)
        if len(seen) > _MOST_ITEMS:
            raise InvalidOption(f"ease: {len(seen):,} items need a dense matrix of {8 * len(seen) ** 2 / 1e9:.0f} GB")
        taken = coo_array((np.ones(len(items)), (train.owner, items)), shape=(train.n_users, len(seen))).tocsr()
        taken.data[:] = 1.0  # an item met twice counts once
        gram = (taken.T @ taken).toarray()
        gram[np.diag_indices_from(gram)] += self.l2
        inverse = np.linalg.inv(gram)
        inverse /= -np.diag(inverse)
        np.fill_diagonal(inverse, 0.0)
        # A last row and column of zeros stand for items unseen in training, and for PAD.
        self.weights = np.pad(inverse, (0, 1))
        self.column = np.full(train.n_items + 1, len(seen), dtype=np.int32)
        self.column[seen] = np.arange(len(seen))
        return self

    def scores(self, batch: Batch) -> Scores:
        """The candidates' reconstructions from the history."""
        assert PAD == -1
        history, candidates = self.column[batch.history], self.column[batch.candidates]
        return np.stack([self.weights[h][:, c].sum(axis=0) for h, c in zip(history, candidates, strict=True)])

    def every_score(self, users: Sequence[Id], history: Indices, n_items: int) -> Scores:
        """Reconstructions of the whole catalogue, by a row of the weights for each history item."""
        return np.stack([self.weights[h].sum(axis=0) for h in self.column[history]])[:, self.column[:-1]]
