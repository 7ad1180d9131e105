"""Train stable-baselines3's PPO to recommend to simulated users, and judge it on what real users took.

    pip install '.[examples]'
    python examples/slate_policy.py --seeds 0 1                     # learn, print the curves, write slate_policy.npz
    cd examples && starec loop --recommenders pop,item-knn,slate_policy:policy --out ../runs/loop

A slate is ten of thousands of items, too many actions to try one by one. So the policy's action is what each of six
features of an item weighs for this user; the slate is the ten best of the items that the user hasn't met. It begins
with no weights at all, a random order, and is rewarded by likes on `starec/Recommend-v0`, whose users are the twin.

Half of the users are kept for the curve: at each of its points every one of them visits three times, by
`starec loop`'s own rules and beside popularity, which is the floor to clear, paired over users. At the end the policies
rank the protocol's real leave-one-out lists (`starec eval`) beside item-kNN; neither the twin nor the features have
seen a target of these. Takes some minutes on one core of a CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self

import gymnasium
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.linalg import svds

import starec_env
from starec_env.cases import PAD, Batch
from starec_env.metrics import entropy
from starec_env.recommend.twin import Twin, twin_of
from starec_env.types import Dataset, Id, Indices
from starec_eval.evaluate import evaluate
from starec_eval.loop.results import LoopResults, genre_table
from starec_eval.loop.run import run_loop
from starec_eval.loop.world import met_before
from starec_eval.protocol import Protocol
from starec_eval.rankers import ItemKNN, Pop, Random, Scorer
from starec_eval.rankers.scorer import TrainOn
from starec_eval.recommenders import ScorerRecommender

FEATURES = (
    "popular",
    "well rated",
    "like the last few",
    "like all of them",
    "of the same genres",
    "to the user's taste",
)
CONTEXT = ("popularity of what was taken", "its ratings", "its likeness", "its number", "its variety of genres")
LAYERS, SAVED = 16, Path(__file__).with_name("slate_policy.npz")
SLATE, HORIZON, RANK = 10, 20, 32

Floats = NDArray[np.float64]
Network = Sequence[tuple[Floats, Floats]]
"""Weights and biases of each layer; tanh between them."""


@dataclass
class SlatePolicy(Scorer):
    """Score of an item: its features for the user, weighted by a network that reads the user's history."""

    name: ClassVar[str] = "slate-policy"
    network: Network = field(default=(), repr=False)
    train: TrainOn = "full"
    seed: int = 0

    def fit(self, train: Dataset) -> Self:
        """Count what the features need; the network stays as it is."""
        n = train.n_items
        counts = np.bincount(train.item_indices, minlength=n)
        self.items = _standard(np.stack([np.log1p(counts), _shrunk(train.ratings, train.item_indices, n)]))
        taken = csr_array((np.ones(train.n_interactions), (train.owner, train.item_indices)), (train.n_users, n))
        rank = min(RANK, *(side - 1 for side in taken.shape))
        _, _, vectors = svds(taken.multiply(1 / np.sqrt(1.0 + counts)).tocsr(), k=rank, v0=np.ones(min(taken.shape)))
        self.vectors = vectors.T / np.maximum(np.linalg.norm(vectors.T, axis=1, keepdims=True), 1e-9)
        genres = genre_table(train)
        self.genres = np.zeros((n, 1)) if genres is None else genres
        self._fit_taste(train)
        return self

    def _fit_taste(self, train: Dataset) -> None:
        """What users rated above the mean of item and user, and what like users did: a factorisation of the rest."""
        item, owner = train.item_indices, train.owner
        rest = train.ratings - _shrunk(train.ratings, item, train.n_items)[item]
        rest -= _shrunk(rest, owner, train.n_users)[owner]
        table = csr_array((rest.astype(float), (owner, item)), (train.n_users, train.n_items))
        left, sizes, self.rated = svds(
            table, k=min(RANK // 2, *(side - 1 for side in table.shape)), v0=np.ones(min(table.shape))
        )
        self.tastes = {user: taste for user, taste in zip(train.user_ids.tolist(), left * sizes, strict=True)}

    def features(self, users: Sequence[Id], history: Indices) -> Floats:
        """(n, n_items, features) of the catalogue for (n, longest) histories, each of mean 0 and deviation 1."""
        real = history != PAD
        ages = np.where(real, np.cumsum(real[:, ::-1], axis=1)[:, ::-1] - 1, 0)
        lately, ever = real * 0.7**ages, real / np.maximum(real.sum(axis=1, keepdims=True), 1)
        alike = [np.einsum("nh,nhr->nr", w, self.vectors[history]) @ self.vectors.T for w in (lately, ever)]
        genres = np.einsum("nh,nhg->ng", ever, self.genres[history]) @ self.genres.T
        own = np.broadcast_to(self.items[:, None], (2, *genres.shape))
        nothing = np.zeros(len(self.rated))
        taste = np.stack([self.tastes.get(user, nothing) for user in users]) @ self.rated
        return np.moveaxis(np.concatenate([own, _standard(np.stack([*alike, genres, taste]))]), 0, -1)

    def context(self, history: Indices) -> Floats:
        """(n, context) what the network reads of (n, longest) histories."""
        real = history != PAD
        number = real.sum(axis=1)
        share = real / np.maximum(number, 1)[:, None]
        popular, rated = (self.items[:, history] * share).sum(axis=2)
        alike = np.linalg.norm(np.einsum("nh,nhr->nr", share, self.vectors[history]), axis=1)
        variety = np.nan_to_num(entropy(np.einsum("nh,nhg->ng", share, self.genres[history])))
        return np.stack([popular, rated, 2 * alike - 1, np.log1p(number) / 2 - 1.5, variety / 2 - 1], axis=1)

    def weights(self, context: Floats) -> Floats:
        """(n, features) the policy's mean action."""
        for number, (weights, biases) in enumerate(self.network):
            context = (np.tanh(context) if number else context) @ weights + biases
        return np.clip(context, -1, 1)

    def every_score(self, users: Sequence[Id], history: Indices, n_items: int) -> Floats:
        """(n, n_items) scores of the catalogue."""
        return np.einsum("nif,nf->ni", self.features(users, history), self.weights(self.context(history)))

    def scores(self, batch: Batch) -> Floats:
        """Scores of the candidates."""
        n, step = len(self.vectors), 64
        parts = [batch[at : at + step] for at in range(0, len(batch), step)]
        every = [
            np.take_along_axis(self.every_score(part.users, part.history, n), part.candidates, 1) for part in parts
        ]
        return np.concatenate(every)


def _shrunk(values: Floats, groups: Indices, n: int) -> Floats:
    """(n,) means of groups, drawn towards the mean of all as by five values more."""
    sums, counts = np.bincount(groups, weights=values, minlength=n), np.bincount(groups, minlength=n)
    return (sums + 5 * values.mean()) / (counts + 5)


def _standard(values: Floats) -> Floats:
    spread = values.std(axis=-1, keepdims=True)
    return (values - values.mean(axis=-1, keepdims=True)) / np.where(spread > 0, spread, 1)


class Weighing(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Makes weights of features the action, and what the network reads of the history the observation."""

    def __init__(self, env: gymnasium.Env[Any, Any], policy: SlatePolicy, twin: Twin) -> None:
        super().__init__(env)
        self.policy, self.twin = policy, twin
        self.action_space = gymnasium.spaces.Box(-1, 1, (len(FEATURES),), np.float32)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (len(CONTEXT),), np.float32)

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Begin a visit."""
        observation, info = self.env.reset(**options)
        user = np.array([observation["user"]])
        self.user = [info["user_id"]]
        self.barred = met_before(self.twin.dataset, self.twin.stops, user)[0]
        return self._seen(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Show the items that the weights put first, of those that were neither met nor shown in this visit."""
        scores = self.policy.features(self.user, self.history)[0] @ action
        scores[self.barred] = -np.inf
        slate = np.argpartition(-scores, SLATE)[:SLATE]
        slate = slate[np.argsort(-scores[slate])]
        self.barred[slate] = True
        observation, reward, *end = self.env.step(slate)
        return self._seen(observation), float(reward), *end  # type: ignore[return-value]

    def _seen(self, observation: dict[str, Any]) -> Any:
        history = observation["history"]
        self.history = history[history != PAD][None]
        return self.policy.context(self.history)[0].astype(np.float32)


def main() -> None:
    """Train with each seed, and print the curves and the two comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=32_768, help="slates that are learned from")
    options = parser.parse_args()
    dataset = starec_env.prepare(starec_env.load_dataset("ml-latest-small"))
    twin = twin_of(dataset)
    ids = np.random.default_rng(0).permutation(dataset.user_ids).tolist()
    kept, train = ids[: len(ids) // 2], ids[len(ids) // 2 :]
    print(f"{dataset!r}: {len(train)} users to train on, {len(kept)} for the curve")
    learned = [learn(twin, train, kept, seed, options.steps) for seed in options.seeds]
    policies = {f"seed {seed}": policy for seed, policy in zip(options.seeds, learned, strict=True)}
    found = visits(twin, {"random": Random(), "pop": Pop(), "item-knn": ItemKNN(), **policies}, kept)
    for name in found.answers:
        show(name, found, name)
    rankers: list[Any] = [(f"{s.name}-full", s) for s in (Pop(train="full"), ItemKNN(train="full"))]
    table = evaluate([Random(), *rankers, *policies.items()], Protocol(dataset))
    for row in table.rows:
        print(f"{row['method']:>14}: NDCG@10 on real lists {row['ndcg@10']:.1f} ± {row['ndcg@10_se']:.1f}")
    for name, gap in table.compare("item-knn-full").items():
        print(f"{name} less item-knn-full: {100 * gap.gap:+.1f} ± {100 * gap.se:.1f}, p {gap.p:.2g}")
    save(learned[0])


def learn(twin: Twin, train: list[Any], kept: list[Any], seed: int, steps: int) -> SlatePolicy:
    """A policy of PPO after some steps; prints what it does with the users kept, at points that are ever rarer."""
    import torch
    from stable_baselines3 import PPO

    torch.set_num_threads(1)
    policy = SlatePolicy()
    world = ScorerRecommender(policy)
    world.fit(before(twin))
    env = gymnasium.make(
        "starec/Recommend-v0", responder=twin, users=train, seed=seed, slate_size=SLATE, horizon=HORIZON, reward="likes"
    )
    weighing = Weighing(env, policy, twin)
    network = {"net_arch": [LAYERS], "log_std_init": -1.5}
    settings: dict[str, Any] = {"n_steps": 2048, "batch_size": 512, "gamma": 0.0, "learning_rate": 1e-3}
    model = PPO("MlpPolicy", weighing, policy_kwargs=network, seed=seed, device="cpu", **settings)
    while True:
        policy.network = network_of(model)
        found = visits(twin, {"pop": Pop(), "policy": policy}, kept)
        show(f"seed {seed}, {model.num_timesteps:,} slates", found, "policy")
        if model.num_timesteps >= steps:
            return policy
        model.learn(max(2048, model.num_timesteps), reset_num_timesteps=False)


def before(twin: Twin) -> Dataset:
    """What the twin was fitted on, of each user's sequence: nothing of a leave-one-out target."""
    from starec_env.data.cut import rows_only

    return rows_only(twin.dataset, twin.dataset.starts, np.maximum(twin.stops, twin.dataset.starts))


def network_of(model: Any) -> Network:
    """The layers of PPO's actor."""
    layers = [model.policy.mlp_extractor.policy_net[0], model.policy.action_net]
    return [(one.weight.detach().numpy().T.astype(float), one.bias.detach().numpy().astype(float)) for one in layers]


def visits(twin: Twin, scorers: dict[str, Scorer], users: list[Any]) -> LoopResults:
    """Three visits of each user, by the closed loop."""
    recommenders: dict[str, Any] = {name: ScorerRecommender(scorer) for name, scorer in scorers.items()}
    sizes: dict[str, Any] = {"rounds": 3, "slate_size": SLATE, "horizon": HORIZON, "seed": 100}
    with TemporaryDirectory() as folder:
        return run_loop(twin, recommenders, out=folder, users=users, **sizes)


def show(label: str, results: LoopResults, name: str) -> None:
    """Print a recommender's likes and clicks a visit, and its likes above popularity's."""
    found = results.overall[name]
    likes, clicks = found["likes"], found["clicks"]
    text = f"likes a visit {likes.mean:.2f} ± {likes.se:.2f}, clicks {clicks.mean:.2f} ± {clicks.se:.2f}"
    if above := results.differences.get(name):
        text += f"; likes above pop {above['likes'][0].gap:+.2f} ± {above['likes'][0].se:.2f}"
    print(f"{label:>22}: {text}", flush=True)


def save(policy: SlatePolicy) -> None:
    """Keep a policy's network."""
    arrays = {f"{kind}{n}": layer[at] for n, layer in enumerate(policy.network) for at, kind in enumerate("wb")}
    np.savez(SAVED, allow_pickle=False, **arrays)
    print(f"written to {SAVED}")


def policy() -> SlatePolicy:
    """The policy that was kept last, as `starec loop --recommenders slate_policy:policy` takes it."""
    with np.load(SAVED, allow_pickle=False) as arrays:
        return SlatePolicy(network=[(arrays[f"w{n}"], arrays[f"b{n}"]) for n in range(len(arrays) // 2)])


if __name__ == "__main__":
    main()
