"""The classical rankers beside cornac's, on the same training data and the same lists.

Minutes long, and not part of `make test`: pip install cornac, then `pytest -m crosscheck -s tests/starec_eval`
prints the figures. What has a closed form must agree exactly. Of what is trained by chance, BPR must be within two
points of cornac's NDCG@10, and the sequence models, which cornac's settings here don't tune, no more than two below.
Its kNN takes cosines over common users alone, which is another measure.
"""

from functools import cached_property

import numpy as np
import pytest
from support import shared_data

from starec_env.data import load_dataset
from starec_env.metrics import mean_and_se, ndcg
from starec_eval.evaluate import score_ranks
from starec_eval.protocol import Protocol, Reading
from starec_eval.rankers import BASELINES, EASE, Pop
from starec_eval.rankers.scorer import ranks_of

pytestmark = pytest.mark.crosscheck
cornac = pytest.importorskip("cornac", reason="needs cornac: pip install cornac")
models = pytest.importorskip("cornac.models")

SETTINGS = {
    "bpr": {"k": 64, "max_iter": 300, "learning_rate": 0.01, "lambda_reg": 0.01, "seed": 0},
    "gru4rec": {"layers": [128], "batch_size": 64, "learning_rate": 0.1, "n_sample": 512, "n_epochs": 20, "seed": 0},
    "sasrec": {"embedding_dim": 64, "num_heads": 2, "batch_size": 128, "n_sample": 512, "n_epochs": 4, "seed": 0},
}
"""cornac's, at our sizes; its SASRec runs a pass for each prefix, minutes an epoch."""


class Side:
    """A protocol and its training set in cornac's form; test users' prefixes are trained on, as cornac's EASE and BPR
    know no strangers."""

    def __init__(self, dataset):
        self.protocol = Protocol(dataset, Reading(transductive=True), users=500, n_train=1000)
        self.train = self.protocol.training("sample")
        self.users = np.repeat(self.train.user_ids, np.diff(self.train.indptr)).tolist()
        self.items = self.train.item_indices.tolist()

    @cached_property
    def ratings(self):
        return cornac.data.Dataset.from_uir([(u, i, 1.0) for u, i in zip(self.users, self.items, strict=True)])

    @cached_property
    def sequences(self):
        rows = [(u, u, i, t) for t, (u, i) in enumerate(zip(self.users, self.items, strict=True))]
        return cornac.data.SequentialDataset.build(rows, fmt="USIT")

    def ranks(self, model, data, unseen=0.0):
        """Ranks by a fitted model of cornac's, with a score for what it didn't train on; ties broken by our rule."""
        batch = self.protocol.cases.batch()
        place = np.array([data.iid_map.get(item, -1) for item in range(self.train.n_items)])
        scores = np.empty(batch.candidates.shape)
        for row, (user, history) in enumerate(zip(batch.users, batch.history, strict=True)):
            known = [int(place[item]) for item in history if item >= 0 and place[item] >= 0]
            more = {"history_items": known} if isinstance(data, cornac.data.SequentialDataset) else {}
            found = np.asarray(model.score(data.uid_map[user], **more), dtype=float).ravel()
            scores[row] = np.where(place >= 0, found[place], unseen)[batch.candidates[row]]
        return ranks_of(scores, self.protocol.cases.targets, batch, 0)


@pytest.fixture(scope="module")
def small():
    return Side(load_dataset("ml-latest-small"))


@pytest.fixture(scope="module")
def large():
    return Side(load_dataset("ml-1m", shared_data("ml-1m")))


def test_popularity_ranks_every_list_as_cornacs(small):
    ours = score_ranks(Pop(train="sample").fit(small.train), small.protocol.cases)
    assert (ours == small.ranks(models.MostPop().fit(small.ratings), small.ratings)).all()


def test_ease_ranks_every_list_as_cornacs(small):
    theirs = models.EASE(lamb=EASE.l2, posB=False, verbose=False).fit(small.ratings)
    ours = score_ranks(EASE().fit(small.train), small.protocol.cases)
    assert (ours == small.ranks(theirs, small.ratings)).mean() > 0.999  # the order of a sum moves a last digit


@pytest.mark.parametrize("name", ["bpr", "gru4rec", "sasrec"])
def test_trained_models_are_no_worse_than_cornacs(name, large):
    kind = {"bpr": models.BPR, "gru4rec": models.GRU4Rec, "sasrec": models.SASRec}[name]
    data = large.ratings if name == "bpr" else large.sequences
    theirs = large.ranks(kind(**SETTINGS[name]).fit(data), data, unseen=-np.inf)
    ours = score_ranks(BASELINES[name]().fit(large.train), large.protocol.cases)
    found = [mean_and_se(100 * ndcg(ranks, 10), large.protocol.cases.users) for ranks in (ours, theirs)]
    print(f"\n{name}: NDCG@10 {found[0][0]:.1f} ± {found[0][1]:.1f}, cornac's {found[1][0]:.1f} ± {found[1][1]:.1f}")
    gap = found[0][0] - found[1][0]
    assert -2.0 < gap and (gap < 2.0 or name != "bpr")
