"""Train stable-baselines3's PPO to rank like real users choose, and test it on users that it never met.

    pip install '.[examples]'
    python examples/ppo.py                      # PPO, one network scores each candidate
    python examples/ppo.py --policy mlp         # PPO with SB3's own "MlpPolicy"
    python examples/ppo.py --actions score      # scores of all candidates as actions, not one pick
    python examples/ppo.py --algorithm masked   # sb3-contrib's MaskablePPO

It shows what the wrappers are for: `ItemFeatures` tells the policy genres, year and popularity instead of items'
numbers, and `PickOne` or `ScoreActions` makes its action a ranking. Of the bundled data's users a fifth is kept for
the test. Each line of the curve is NDCG@10 and reward on the last turn of these, with standard errors over users; the
lines above it are a random order, the most popular first, and those most similar to what the user liked first.

A ranking doesn't change what the user does next, so that each turn is a bandit of its own: hence gamma=0. Takes about
a minute on one core of a CPU.
"""

import argparse
from collections.abc import Callable
from time import perf_counter
from typing import Any

import gymnasium
import numpy as np
import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

import starec_env
from starec_env.data.splits import split_users
from starec_env.metrics import mean_and_se, ndcg, paired_difference
from starec_env.wrappers import ItemFeatures, PickOne, ScoreActions

Scorer = Callable[[np.ndarray], np.ndarray]
"""From an observation to a score for each candidate."""


class EachCandidate(BaseFeaturesExtractor):
    """One small network, asked about every candidate: its features beside the user's profile, to a score."""

    def __init__(self, space: gymnasium.spaces.Box, n_candidates: int, n_features: int) -> None:
        super().__init__(space, n_candidates)
        self.n, self.d = n_candidates, n_features
        self.net = nn.Sequential(nn.Linear(2 * n_features + 2, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """(batch, size) to (batch, n_candidates)."""
        shown = observations[:, : -self.d].reshape(-1, self.n, self.d + 2)
        profile = observations[:, None, -self.d :].expand(-1, self.n, -1)
        return self.net(torch.cat([shown, profile], dim=-1)).squeeze(-1)


class _ScoresAreActions:
    """Lets the scores be logits (or means) as they are, where SB3 would mix them by one more layer."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)  # type: ignore[misc]
        self.action_net = nn.Identity()
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)


class SharedPolicy(_ScoresAreActions, ActorCriticPolicy):
    """PPO's policy with one network for all candidates."""


class MaskableSharedPolicy(_ScoresAreActions, MaskableActorCriticPolicy):
    """The same for MaskablePPO."""


def main() -> None:
    """Train, and print the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=["ppo", "masked"], default="ppo")
    parser.add_argument("--policy", choices=["shared", "mlp"], default="shared")
    parser.add_argument("--actions", choices=["pick", "score"], default="pick")
    parser.add_argument("--steps", type=int, default=80_000)
    parser.add_argument("--points", type=int, default=20, help="of the curve")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset = starec_env.prepare(starec_env.load_dataset("ml-latest-small"))
    able = gymnasium.make("starec/UserFeedback-v0", dataset=dataset, targets="liked").get_wrapper_attr("stream").users
    ids = dataset.user_ids[able].tolist()
    split = split_users(ids, test=len(ids) // 5, seed=options.seed)
    train, test = split.train, split.test
    print(f"{dataset!r}: {len(train)} users to train on, {len(test)} to test on")

    def watched(users: tuple[Any, ...], part: str, **more: Any) -> ItemFeatures:
        env = gymnasium.make(
            "starec/UserFeedback-v0", dataset=dataset, users=users, split=part, targets="liked", **more
        )
        return ItemFeatures(env, train_users=train)

    tested = watched(test, "test", turns=1)
    rng = np.random.default_rng(options.seed)
    report("random", tested, lambda observation: rng.random(20))
    popular = report("popular first", tested, lambda observation: tested.split(observation)[0][:, -2])
    report("most similar first", tested, lambda observation: tested.split(observation)[0][:, -1])
    actions = PickOne if options.actions == "pick" else ScoreActions
    model = build(options, actions(watched(train, "train")), tested.n_features)
    start = perf_counter()
    for _ in range(options.points):
        model.learn(options.steps // options.points, reset_num_timesteps=False)
        learned = report(f"{model.num_timesteps:,} steps", tested, scorer(model), perf_counter() - start)
    gap = paired_difference(learned, popular, test)
    print(
        f"PPO less popular first, paired over users: NDCG@10 {100 * gap.gap:+.1f} "
        f"({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"
    )


def build(options: argparse.Namespace, env: gymnasium.Env[Any, Any], n_features: int) -> PPO | MaskablePPO:
    """SB3's algorithm on the wrapped environment."""
    masked = options.algorithm == "masked"
    algorithm = MaskablePPO if masked else PPO
    settings: dict[str, Any] = {"gamma": 0.0, "n_steps": 2048, "batch_size": 256, "seed": options.seed, "device": "cpu"}
    if options.policy == "mlp":
        return algorithm("MlpPolicy", env, **settings)
    policy = {
        "features_extractor_class": EachCandidate,
        "features_extractor_kwargs": {"n_candidates": 20, "n_features": n_features},
        "net_arch": [],
    }
    return algorithm(MaskableSharedPolicy if masked else SharedPolicy, env, policy_kwargs=policy, **settings)


def scorer(model: PPO | MaskablePPO) -> Scorer:
    """What the policy thinks of each candidate: log-probabilities of the picks, or the scores' means."""

    def score(observation: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            inputs, _ = model.policy.obs_to_tensor(observation)
            chosen = model.policy.get_distribution(inputs).distribution
        return (chosen.logits if hasattr(chosen, "logits") else chosen.mean)[0].numpy()

    return score


def report(name: str, env: ItemFeatures, score: Scorer, seconds: float = 0.0) -> np.ndarray:
    """Print NDCG@10 and reward, with standard errors over users, of ranking every user's last turn by a score.

    Returns:
        Each user's NDCG@10; the users are in the same order each time, as each pass meets all of them once.
    """
    users, ranks, rewards = [], [], []
    for _ in env.get_wrapper_attr("users"):
        observation, info = env.reset()
        users.append(info["user_id"])
        _, reward, _, _, info = env.step(np.argsort(-score(observation), kind="stable"))
        ranks.append(info["feedback"].rank)
        rewards.append(reward)
    values = ndcg(ranks, 10)
    after = f"  {seconds:4.0f} s" if seconds else ""
    mean, error = mean_and_se(values, users)
    shown = f"NDCG@10 {100 * mean:5.1f} ± {100 * error:.1f}"
    mean, error = mean_and_se(rewards, users)
    print(f"{name:>14}: {shown}   reward {mean:+.3f} ± {error:.3f}{after}", flush=True)
    return values


if __name__ == "__main__":
    main()
