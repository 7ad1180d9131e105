"""Baselines of all users beside Table 4, whose figures are RecBole's: half an hour, `pytest -m crosscheck`."""

import pytest
from support import shared_data

from starec_env.data import load_dataset
from starec_env.metrics import mean_and_se, ndcg
from starec_eval.evaluate import score_ranks
from starec_eval.protocol import Protocol
from starec_eval.rankers import BASELINES

pytestmark = pytest.mark.crosscheck


@pytest.mark.parametrize(("name", "table_4"), [("bpr", 60.9), ("gru4rec", 75.5), ("sasrec", 76.5)])
def test_models_of_all_users_score_within_three_points_of_the_papers_which_are_recboles(name, table_4):
    protocol = Protocol(load_dataset("ml-1m", shared_data("ml-1m")), "paper")
    ranks = score_ranks(BASELINES[name](train="full").fit(protocol.training("full")), protocol.cases)
    mean, se = mean_and_se(100 * ndcg(ranks, 10), protocol.cases.users)
    print(f"\n{name}-full: NDCG@10 {mean:.1f} ± {se:.1f}, Table 4's {table_4}")
    assert abs(mean - table_4) < 3.0
