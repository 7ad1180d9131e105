"""Training rows for a small model: prompts of both tasks from users' streams, answered by a rule-based teacher.

The prompts are the package's own. A ranking's answer is a JSON object of scores, the teacher's log-odds; a memory
update's answer is a text of true facts. The teacher counts other users' streams and never sees the answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_agents.llm import Message
from starec_agents.memory import Memory
from starec_agents.tasks import event_line, labels, rank_messages, reflect_messages, start_memory
from starec_env.cases import PAD
from starec_env.data.splits import Split, split_users
from starec_env.replay.rewards import LIKED_CUTOFF
from starec_env.replay.stream import Seen, Stream, sample_negatives
from starec_env.types import Candidates, Dataset, Feedback, History, Id, Query, Ranking
from starec_training.dataset import Row, Shown, Snapshot
from starec_training.features import Batch, Evidence

SPLIT_SEED = 2508
MAX_HISTORY = 12
"""Interactions that prompts show, at training and when served; the memory tells of the older ones."""
SHIFT, FACTOR = 5.0, 5.8
"""The teacher's log-odds z become the score SHIFT + FACTOR * z; all but 1 % are within 0-99."""

_SEEN = 39  # interactions of a turn of a prepared data set, at most
_MIN_HISTORY = 5
_MARK = "Updated User description: "


def split_able_users(dataset: Dataset, seed: int = SPLIT_SEED) -> Split:
    """Split the users who have a held-out turn: about 22 % test (at most 1,000), 9 % validation, the others train."""
    able = dataset.user_ids[Stream(dataset).users].tolist()
    test, validation = min(1000, round(0.224 * len(able))), min(400, round(0.09 * len(able)))
    return split_users(able, test=test, validation=validation, seed=seed)


def answer_of(z: NDArray[np.float64]) -> str:
    """The teacher's answer: a score from 0 to 99 for each candidate's label.

    Without spaces: vLLM's xgrammar takes an added token with a space for something else, and refuses it within JSON.
    """
    scores = (SHIFT + FACTOR * z).round().clip(0, 99).astype(int)
    return json.dumps(dict(zip(labels(len(z)), scores.tolist(), strict=True)), separators=(",", ":"))


class Prompts:
    """Draws prompts of both tasks from the whole streams of some users.

    Args:
        dataset: Prepared with `max_length=None`: whole streams.
        evidence: The teacher's, of the training users.
        users: Whom to draw from.
        seed: Of the drawing.
    """

    def __init__(self, dataset: Dataset, evidence: Evidence, users: Sequence[Id], seed: int) -> None:
        self.dataset, self.evidence = dataset, evidence
        self.rng = np.random.default_rng(seed)
        self.seen, self.count = Seen(dataset), seed << 32
        wanted = np.zeros(dataset.n_users, bool)
        wanted[[dataset.user_index(user) for user in users]] = True
        self.owner, self.liked = dataset.owner, dataset.liked
        able = wanted[self.owner] & (np.arange(dataset.n_interactions) - dataset.indptr[self.owner] >= _MIN_HISTORY)
        self.rows, self.disliked = np.flatnonzero(able & self.liked), np.flatnonzero(able & ~self.liked)
        self.texts, self.popular = Descriptions(evidence), np.log1p(evidence.counts)

    def draw(
        self, n: int, *, candidates: int = 20, reflecting: float = 0.0, popularity: NDArray[np.float64] | float = 0.0
    ) -> Iterator[Row]:
        """Draw n rows.

        Args:
            n: How many; a few hundred at once are quickest.
            candidates: Of each list.
            reflecting: Share of memory updates.
            popularity: Share of popularity in the teacher's log-odds, one for all or (n,): what needs no history lets
                a model learn first to look a label up.
        """
        rng = self.rng
        asks = rng.random(n) < reflecting
        disliked_ones = asks & (rng.random(n) < 0.25)
        rows = np.where(disliked_ones, rng.choice(self.disliked, n), rng.choice(self.rows, n))
        users = self.owner[rows]
        length = np.where(rng.random(n) < 0.6, _SEEN, rng.integers(_MIN_HISTORY, _SEEN + 1, n))
        first = np.maximum(self.dataset.indptr[users], rows - length)
        shown, places = self._candidates(users, rows, candidates)
        share = np.broadcast_to(popularity, n)[:, None]
        z = self._judged(users, first, rows, shown)
        z = (1 - share) * z + share * (7 + 3 * (self.popular[shown] - self.popular.mean()))
        for at in range(n):
            who, begin, row = int(users[at]), int(first[at]), int(rows[at])
            query = self._query(who, begin, row, shown[at])
            memory = self._memory(begin, row, query)
            target = Shown(candidates=tuple(query.candidates), target=int(places[at]))
            known: dict[str, Any] = {"user_id": query.user.id, "turn": row - int(self.dataset.indptr[who])}
            known |= {"shown": target, "answer_format": "scores", "max_history": MAX_HISTORY}
            if asks[at]:
                messages, answer = self._reflection(query, memory, int(places[at]), bool(self.liked[row]), z[at])
                yield Row(prompt=tuple(messages), completion=answer, snapshot=Snapshot(task="reflect", **known))
            else:
                messages = rank_messages(query, memory, "scores", MAX_HISTORY)
                yield Row(prompt=tuple(messages), completion=answer_of(z[at]), snapshot=Snapshot(task="rank", **known))

    def _candidates(self, users: Any, rows: Any, n: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        turns = np.arange(self.count, self.count + len(users))
        self.count += len(users)
        shown = np.empty((len(users), n), np.int32)
        shown[:, :-1] = sample_negatives(0, users, turns, n - 1, self.seen)
        places, each = self.rng.integers(0, n, len(users)), np.arange(len(users))
        shown[:, -1] = shown[each, places]
        shown[each, places] = self.dataset.item_indices[rows]
        return shown, places

    def _judged(self, users: Any, first: Any, stop: Any, shown: Any) -> NDArray[np.float64]:
        at = stop[:, None] - _SEEN + np.arange(_SEEN)
        inside = at >= first[:, None]
        history = np.where(inside, self.dataset.item_indices[at.clip(0)], PAD)
        trained = np.where(np.isin(users, self.evidence.trained), users, PAD)
        return self.evidence.scores(Batch(trained, history, inside & self.liked[at.clip(0)], shown))

    def _query(self, user: int, first: int, stop: int, shown: NDArray[np.int32]) -> Query:
        data = self.dataset
        return Query(data.user(user), History(data, user, first, stop), Candidates(data.items, shown), data.domain)

    def _memory(self, first: int, stop: int, query: Query) -> Memory:
        # As an agent's would be that began with the first of these interactions, or at this very turn.
        rng = self.rng
        before = np.flatnonzero(self.liked[first + _MIN_HISTORY : stop]) + first + _MIN_HISTORY
        if not len(before) or rng.random() < 0.35:
            return start_memory(query)
        known = before[-int(rng.integers(1, 5)) :].tolist()
        past = [self._outcome(row) for row in known]
        last = History(self.dataset, int(self.owner[stop]), first, known[-1])
        return Memory(profile=self.texts.describe(last, *past[-1]), history=tuple(event_line(*each) for each in past))

    def _outcome(self, row: int) -> tuple[Query, Feedback]:
        item = self.dataset.item_indices[row]
        alone = Candidates(self.dataset.items, np.full(20, item, np.int32))
        query = Query(self.dataset.user(0), History(self.dataset, 0, 0, 0), alone)
        far = [1, int(self.rng.integers(2, 6)), int(self.rng.integers(6, 21))]
        return query, self._feedback(item, int(self.rng.choice(far, p=[0.4, 0.35, 0.25])))

    def _feedback(self, item: int, rank: int, liked: bool = True) -> Feedback:
        return Feedback(
            item_id=self.dataset.items[item].id, rank=rank, predicted_liked=rank <= LIKED_CUTOFF, liked=liked
        )

    def _reflection(
        self, query: Query, memory: Memory, place: int, liked: bool, z: NDArray[np.float64]
    ) -> tuple[list[Message], str]:
        order = np.argsort(-(z + self.rng.gumbel(size=len(z)) * self.rng.choice([0.0, 1.0, 3.0])))
        feedback = self._feedback(query.candidates.indices[place], int(np.argmax(order == place)) + 1, liked)
        ranking = Ranking(order=tuple(order.tolist()))
        messages = reflect_messages(query, memory, ranking, feedback, "labels", MAX_HISTORY)
        return messages, _MARK + self.texts.describe(query.history, query, feedback)


class Descriptions:
    """Memory texts from true facts: what is liked more than others like it, dislikes, the last lesson.

    Genres stand in the alphabet's order: a small model that had to name the stronger first would name one twice.
    """

    def __init__(self, evidence: Evidence) -> None:
        self.items, self.names = evidence.dataset.items, evidence.kind_names
        self.genres = evidence.kinds > 0
        decades = np.where(np.isfinite(evidence.years), evidence.years // 10 * 10, 0).astype(int)
        self.decades, self.decade = np.unique(decades, return_inverse=True)
        taken = evidence.counts / max(1, int(evidence.counts.sum()))
        self.usual = taken @ self.genres
        self.usual_decade = np.bincount(self.decade, weights=taken, minlength=len(self.decades))

    def describe(self, history: History, query: Query, feedback: Feedback) -> str:
        """What a user's stream up to and with a feedback says of the user.

        Args:
            history: What came before the feedback.
            query: Has the item that the feedback is on among its candidates.
            feedback: On the last turn.
        """
        target = next(i for i in query.candidates.indices.tolist() if self.items[i].id == feedback.item_id)
        indices = np.append(history.item_indices, target)
        liked = np.append(history.liked, feedback.liked)
        good, poor = indices[liked], indices[~liked]
        said, best = [], list[str]()
        if len(good):
            excess = self.genres[good].sum(0) - len(good) * self.usual
            best = [self.names[genre] for genre in sorted(np.argsort(-excess)[:3].tolist()) if excess[genre] > 0]
            era = np.bincount(self.decade[good], minlength=len(self.decades)) - len(good) * self.usual_decade
            when = self.decades[int(np.argmax(era))]
            said.append(f"Likes {', '.join(best) or 'all kinds'}" + (f", above all of the {when}s." if when else "."))
        share = self.genres[poor].sum(0) - self.genres[good].sum(0) * 0.5
        bad = [self.names[genre] for genre in np.argsort(-share).tolist() if share[genre] > 0.5]
        if bad := sorted([genre for genre in bad if genre not in best][:2]):
            said.append(f"Often dislikes {', '.join(bad)}.")
        return " ".join([*said, self._lesson(target, feedback)])

    def _lesson(self, target: int, feedback: Feedback) -> str:
        # Without the title, which the memory's events tell: a small model copies one wrongly more often than not.
        verdict = "liked" if feedback.liked else "disliked"
        if feedback.agrees:
            return f"As predicted, the last was {verdict}."
        genres = ", ".join(name for name, has in zip(self.names, self.genres[target], strict=True) if has)
        wanted = "more" if feedback.liked else "less"
        return f"Against the prediction, the last was {verdict}: wants {wanted} {genres or 'of it'}."
