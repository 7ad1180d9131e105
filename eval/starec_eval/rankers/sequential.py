"""Training shared by the neural sequence models: one causal pass scores every position of a sequence at once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from starec_env.cases import PAD, Batch
from starec_env.errors import InvalidOption, MissingExtra
from starec_env.metrics import ndcg
from starec_env.types import Dataset, Id, Indices
from starec_eval.rankers.scorer import Scorer, Scores, State

_VALIDATION_USERS, _VALIDATION_NEGATIVES, _VALIDATION_STEPS = 1000, 100, 50


def import_torch(method: str) -> Any:
    """Import torch, or raise MissingExtra naming the extra that brings it."""
    try:
        import torch
    except ImportError as missing:
        raise MissingExtra(f"the {method} baseline", "baselines") from missing
    return torch


@dataclass(kw_only=True)
class Sequential(Scorer):
    """Next-item model: `score(c) = hidden(history) . embedding(c)`, trained by cross-entropy over all items.

    Each position predicts the next item by the softmax over the whole catalogue, as RecBole, the paper's library,
    trains both of its sequence models (its `loss_type` "CE"). A sequence's last item is held out; it is ranked against
    100 negatives after every epoch, or after as many as make 50 steps, and training stops when `patience` such checks
    bring nothing better. The best weights are kept.
    """

    size: int = 64
    lr: float = 2e-3
    batch_size: int = 64
    epochs: int = 100
    patience: int = 6
    max_length: int = 50
    net: Any = field(default=None, init=False, repr=False)

    def build(self, torch: Any, n_items: int) -> Any:
        """The network: a ModuleDict whose "item" embeds index + 1, with 0 for padding."""
        raise NotImplementedError

    def encode(self, torch: Any, net: Any, sequences: Any) -> Any:
        """(batch, length) of index + 1, padded on the right, to (batch, length, size) states, each seeing no future."""
        raise NotImplementedError

    def fit(self, train: Dataset) -> Self:
        """Train with early stopping; the caller's torch random state is left as it was."""
        torch = import_torch(self.label)
        sequences, ends = pieces(train, self.max_length + 1)
        if not len(sequences):
            raise InvalidOption(f"{self.label}: no training sequence has the 3 interactions it needs")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net = self.build(torch, train.n_items)
            self.net = self._train(torch, net, torch.from_numpy(sequences), torch.from_numpy(ends), train.n_items)
        return self

    def _train(self, torch: Any, net: Any, sequences: Any, ends: Any, n_items: int) -> Any:
        at = (sequences > 0).sum(1)[:, None] - 1
        last = sequences.gather(1, at)
        seen = sequences.scatter(1, at, torch.where(ends[:, None], 0, last))  # without the last items, which validate
        finals = ends.nonzero()[:, 0]
        checked = finals[torch.randperm(len(finals))[:_VALIDATION_USERS]]
        rivals = torch.randint(1, n_items + 1, (len(checked), _VALIDATION_NEGATIVES))
        optimizer = torch.optim.Adam(net.parameters(), lr=self.lr)
        best, best_weights, waited = -1.0, None, 0
        steps = -(-len(seen) // self.batch_size)
        for epoch in range(1, self.epochs + 1):
            net.train()
            for rows in torch.randperm(len(seen)).split(self.batch_size):
                optimizer.zero_grad()
                self._loss(torch, net, seen[rows]).backward()
                optimizer.step()
            if epoch % -(-_VALIDATION_STEPS // steps) and epoch < self.epochs:
                continue
            found = self._validate(torch, net, seen[checked, :-1], torch.cat([last[checked], rivals], 1))
            waited += 1
            if found > best:
                best, best_weights, waited = found, copy.deepcopy(net.state_dict()), 0
            if waited >= self.patience:
                break
        net.load_state_dict(best_weights)
        return net.eval()

    def _loss(self, torch: Any, net: Any, sequences: Any) -> Any:
        target = sequences[:, 1:]
        real = target > 0
        hidden = self.encode(torch, net, sequences[:, :-1])[real]
        return torch.nn.functional.cross_entropy(hidden @ net["item"].weight[1:].T, target[real] - 1)

    def _validate(self, torch: Any, net: Any, sequences: Any, candidates: Any) -> float:
        net.eval()
        with torch.no_grad():
            scores = self._score(net, self._states(torch, net, sequences), candidates)
        ranks = 1 + (scores[:, 1:] >= scores[:, :1]).sum(1)
        return float(ndcg(ranks.numpy(), candidates.shape[1]).mean())

    def _states(self, torch: Any, net: Any, sequences: Any) -> Any:
        # (batch, size) states after each sequence's last item.
        last = ((sequences > 0).sum(1) - 1).clamp(min=0)
        return self.encode(torch, net, sequences)[torch.arange(len(last)), last]

    def _score(self, net: Any, states: Any, candidates: Any) -> Any:
        return (net["item"](candidates) @ states[:, :, None])[:, :, 0]

    def state(self) -> State:
        """The network's weights."""
        return {name: weights.numpy() for name, weights in self.net.state_dict().items()}

    def restore(self, train: Dataset, state: State) -> None:
        """Take weights that were learned before."""
        torch = import_torch(self.label)
        with torch.random.fork_rng(devices=[]):
            self.net = self.build(torch, train.n_items).eval()
        self.net.load_state_dict({name: torch.from_numpy(weights) for name, weights in state.items()})

    def scores(self, batch: Batch) -> Scores:
        """Scores from the state after the newest history item."""
        torch = import_torch(self.label)
        histories, place = batch.distinct_histories()
        sequences = torch.from_numpy(_right_padded(histories[:, -self.max_length :]))
        candidates = torch.from_numpy(batch.candidates.astype(np.int64) + 1)
        with torch.no_grad():
            states = torch.cat([self._states(torch, self.net, part) for part in sequences.split(256)])
            found: Scores = self._score(self.net, states[torch.from_numpy(place)], candidates).numpy()
        return found

    def every_score(self, users: Sequence[Id], history: Indices, n_items: int) -> Scores:
        """Scores of the whole catalogue, by one product with all embeddings."""
        torch = import_torch(self.label)
        sequences = torch.from_numpy(_right_padded(history[:, -self.max_length :]))
        with torch.no_grad():
            found: Scores = (self._states(torch, self.net, sequences) @ self.net["item"].weight[1:].T).numpy()
        return found


def pieces(train: Dataset, longest: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Training sequences cut from their ends into pieces, so that every item but the first is a target once.

    Args:
        train: The sequences; those under 3 items are left out.
        longest: Items of a piece; neighbouring pieces share one.

    Returns:
        (pieces, longest) index + 1, padded with 0 on the right; and (pieces,) whether the piece ends its sequence.
    """
    lengths = np.diff(train.indptr)
    owner = np.flatnonzero(lengths >= 3)
    owner = np.repeat(owner, -(-(lengths[owner] - 1) // (longest - 1)))
    number = np.arange(len(owner)) - np.searchsorted(owner, owner)
    stops = train.indptr[owner + 1] - number * (longest - 1)
    firsts = np.maximum(train.indptr[owner], stops - longest)
    rows = firsts[:, None] + np.arange((stops - firsts).max(initial=0))
    inside = rows < stops[:, None]
    return np.where(inside, train.item_indices[np.where(inside, rows, 0)].astype(np.int64) + 1, 0), number == 0


def _right_padded(history: NDArray[np.integer]) -> NDArray[np.int64]:
    # A batch's histories are padded on the left with PAD; the networks take index + 1, padded on the right with 0.
    order = np.argsort(history == PAD, axis=1, kind="stable")
    return np.take_along_axis(history, order, axis=1).astype(np.int64) + 1
