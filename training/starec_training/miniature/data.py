"""Unlimited prompts from training users' whole streams, each judged by evidence that is blind to the answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from starec_agents.llm import Message
from starec_agents.memory import Event, Memory
from starec_agents.tasks import event_of, labels, parse_profile, rank_messages, reflect_messages, start_memory
from starec_agents.tasks.titles import item_title
from starec_env.cases import PAD
from starec_env.data.splits import Split, split_users
from starec_env.replay.rewards import LIKED_CUTOFF
from starec_env.replay.stream import Seen, Stream, sample_negatives
from starec_env.types import Candidates, Dataset, Feedback, History, Id, Query, Ranking
from starec_training.features import Batch, Evidence
from starec_training.miniature.tokenizer import build_tokenizer

SPLIT_SEED = 2508
MAX_HISTORY = 12
"""Interactions that prompts show, at training and when served; the memory tells of the older ones."""
N_CANDIDATES = 20

SCALE = (5.0, 5.8)
"""(shift, factor): log-odds z of the blind teacher become the score shift + factor * z; all but 1 % are within 0-99."""

_SEEN = 39  # interactions of a turn of a prepared data set, at most
_MIN_HISTORY = 5
# Without spaces: vLLM's xgrammar takes an added token with a space for something else, and refuses it within JSON.
_EMPTY = json.dumps(dict.fromkeys(labels(N_CANDIDATES), 0), separators=(",", ":"))
_MARK = "Updated User description: "


def split_able_users(dataset: Dataset, seed: int = SPLIT_SEED) -> Split:
    """Split the users who have a held-out turn: about 22 % test (at most 1,000), 9 % validation, the others train."""
    able = dataset.user_ids[Stream(dataset).users].tolist()
    test, validation = min(1000, round(0.224 * len(able))), min(400, round(0.09 * len(able)))
    return split_users(able, test=test, validation=validation, seed=seed)


@dataclass
class Example:
    """A prompt with its answer, as tokens, and what judges it."""

    messages: Sequence[Message]
    answer: str
    z: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    """Ranking: (candidates,) the teacher's log-odds; empty for a memory update."""
    target: int = 0
    """0-based position of the true item."""
    candidates: NDArray[np.integer[Any]] = field(default_factory=lambda: np.empty(0, np.int32))
    """(candidates,) catalogue indices."""
    ids: list[int] = field(default_factory=list)
    begin: int = 0
    """Where the answer begins in `ids`."""


@dataclass
class Followed:
    """A memory update whose text will be used at once, at the user's next turn."""

    update: Example
    query: Query
    """Of the next turn."""
    target: int
    """0-based position of its true item."""
    memory: Memory
    """With what the package itself writes of the first turn, and the text of before."""

    def then(self, text: str) -> Example:
        """The next turn's ranking prompt, if the update's answer was this."""
        profile = parse_profile(text)
        messages = rank_messages(self.query, self.memory.updated(profile=profile), "scores", MAX_HISTORY)
        indices = self.query.candidates.indices
        return Example(messages, "", np.zeros(len(indices)), self.target, indices)


class Prompts:
    """Draws prompts of both tasks from the streams of some users.

    Args:
        dataset: Prepared with `max_length=None`: whole streams.
        evidence: The blind teacher's, of the training users.
        users: Whom to draw from.
        seed: Of the drawing.
    """

    def __init__(self, dataset: Dataset, evidence: Evidence, users: Sequence[Id], seed: int) -> None:
        self.dataset, self.evidence = dataset, evidence
        self.rng = np.random.default_rng(seed)
        self.seen, self.count = Seen(dataset), seed << 32
        wanted = np.zeros(dataset.n_users, bool)
        wanted[[dataset.user_index(user) for user in users]] = True
        owner = dataset.owner
        able = wanted[owner] & (np.arange(dataset.n_interactions) - dataset.indptr[owner] >= _MIN_HISTORY)
        self.liked = dataset.liked
        self.rows, self.disliked = np.flatnonzero(able & self.liked), np.flatnonzero(able & ~self.liked)
        after = np.searchsorted(self.rows, np.arange(dataset.n_interactions), side="right")
        self.next = np.append(self.rows, -1)[after]
        """(interactions,) the row of the next liked one in the order of rows; maybe another user's, -1 for none."""
        self.owner, self.texts = owner, Descriptions(evidence)

    def draw(self, n: int, reflecting: float = 0.0) -> Iterator[Example]:
        """Draw n prompts.

        Args:
            n: How many; a few hundred at once are quickest.
            reflecting: Share of memory updates.
        """
        rng = self.rng
        asks = rng.random(n) < reflecting
        unlucky = asks & (rng.random(n) < 0.25)
        rows = np.where(unlucky, rng.choice(self.disliked, n), rng.choice(self.rows, n))
        users = self.owner[rows]
        length = np.where(rng.random(n) < 0.6, _SEEN, rng.integers(_MIN_HISTORY, _SEEN + 1, n))
        first = np.maximum(self.dataset.indptr[users], rows - length)
        shown, places = self._candidates(users, rows)
        z = self._judged(users, first, rows, shown)
        for at in range(n):
            who, begin, row = int(users[at]), int(first[at]), int(rows[at])
            query = self._query(who, begin, row, shown[at])
            memory = self._memory(who, begin, row, query)
            if asks[at]:
                yield self._reflection(query, memory, int(places[at]), bool(self.liked[row]), z[at])[0]
            else:
                messages = rank_messages(query, memory, "scores", MAX_HISTORY)
                yield Example(messages, "", z[at], int(places[at]), shown[at])

    def followed(self, n: int) -> list[Followed]:
        """Draw n memory updates with the turn that follows each."""
        rng = self.rng
        drawn = np.where(rng.random(4 * n) < 0.2, rng.choice(self.disliked, 4 * n), rng.choice(self.rows, 4 * n))
        goes_on = (self.next[drawn] > 0) & (self.owner[drawn] == self.owner[self.next[drawn]])
        rows = drawn[goes_on][:n]
        users = self.owner[rows]
        first = np.maximum(self.dataset.indptr[users], rows - _SEEN)
        shown, places = self._candidates(users, rows)
        later, targets = self._candidates(users, self.next[rows])
        z = self._judged(users, first, rows, shown)
        found = []
        for at, row in enumerate(rows.tolist()):
            who, begin, then = int(users[at]), int(first[at]), int(self.next[row])
            query = self._query(who, begin, row, shown[at])
            memory = self._memory(who, begin, row, query)
            update, event = self._reflection(query, memory, int(places[at]), bool(self.liked[row]), z[at])
            following = self._query(who, max(begin, then - _SEEN), then, later[at])
            found.append(Followed(update, following, int(targets[at]), memory.updated(event=event)))
        return found

    def _candidates(self, users: Any, rows: Any) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        turns = np.arange(self.count, self.count + len(users))
        self.count += len(users)
        shown = np.empty((len(users), N_CANDIDATES), np.int32)
        shown[:, :-1] = sample_negatives(0, users, turns, N_CANDIDATES - 1, self.seen)
        places, each = self.rng.integers(0, N_CANDIDATES, len(users)), np.arange(len(users))
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

    def _memory(self, user: int, first: int, stop: int, query: Query) -> Memory:
        # As an agent's would be that began with the first of these interactions, or at this very turn.
        rng = self.rng
        before = np.flatnonzero(self.liked[first + _MIN_HISTORY : stop]) + first + _MIN_HISTORY
        if not len(before) or rng.random() < 0.35:
            return start_memory(query)
        known = before[-int(rng.integers(1, 5)) :].tolist()
        past = [self._outcome(row) for row in known]
        events = tuple(event_of(*each) for each in past)
        last = History(self.dataset, user, first, known[-1])
        return Memory(profile=self.texts.describe(last, *past[-1]), history=events)

    def _outcome(self, row: int) -> tuple[Query, Feedback]:
        item = self.dataset.item_indices[row]
        alone = Candidates(self.dataset.items, np.full(N_CANDIDATES, item, np.int32))
        return Query(self.dataset.user(0), History(self.dataset, 0, 0, 0), alone), self._feedback(item, self._luck())

    def _luck(self) -> int:
        return int(
            self.rng.choice([1, int(self.rng.integers(2, 6)), int(self.rng.integers(6, 21))], p=[0.4, 0.35, 0.25])
        )

    def _feedback(self, item: int, rank: int, liked: bool = True) -> Feedback:
        return Feedback(
            item_id=self.dataset.items[item].id, rank=rank, predicted_liked=rank <= LIKED_CUTOFF, liked=liked
        )

    def _reflection(
        self, query: Query, memory: Memory, place: int, liked: bool, z: NDArray[np.float64]
    ) -> tuple[Example, Event]:
        # The update, and what the memory's history says of it.
        order = np.argsort(-(z + self.rng.gumbel(size=len(z)) * self.rng.choice([0.0, 1.0, 3.0])))
        feedback = self._feedback(query.candidates.indices[place], int(np.argmax(order == place)) + 1, liked)
        messages = reflect_messages(
            query, memory, Ranking(order=tuple(order.tolist())), feedback, "labels", MAX_HISTORY
        )
        answer = _MARK + self.texts.describe(query.history, query, feedback)
        example = Example(messages, answer, target=place, candidates=query.candidates.indices)
        return example, event_of(query, feedback)


class Descriptions:
    """Memory texts from true facts: what is liked more than others like it, dislikes, the last lesson.

    Kinds stand in the alphabet's order: a small model that had to tell the stronger first would name one twice.
    """

    def __init__(self, evidence: Evidence) -> None:
        self.items, self.names = evidence.dataset.items, evidence.kind_names
        self.kinds = evidence.kinds > 0
        decades = np.where(np.isfinite(evidence.years), evidence.years // 10 * 10, 0).astype(int)
        self.decades, self.decade = np.unique(decades, return_inverse=True)
        taken = evidence.counts / max(1, int(evidence.counts.sum()))
        self.usual = taken @ self.kinds
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
            excess = self.kinds[good].sum(0) - len(good) * self.usual
            best = [self.names[kind] for kind in sorted(np.argsort(-excess)[:3].tolist()) if excess[kind] > 0]
            era = np.bincount(self.decade[good], minlength=len(self.decades)) - len(good) * self.usual_decade
            when = self.decades[int(np.argmax(era))]
            said.append(f"Likes {', '.join(best) or 'all kinds'}" + (f", above all of the {when}s." if when else "."))
        share = self.kinds[poor].sum(0) - self.kinds[good].sum(0) * 0.5
        bad = [self.names[kind] for kind in np.argsort(-share).tolist() if share[kind] > 0.5]
        if bad := sorted([kind for kind in bad if kind not in best][:2]):
            said.append(f"Often dislikes {', '.join(bad)}.")
        return " ".join([*said, self._lesson(target, feedback)])

    def _lesson(self, target: int, feedback: Feedback) -> str:
        # Without the title, which the memory's events tell: a small model copies one wrongly more often than not.
        verdict = "liked" if feedback.liked else "disliked"
        if feedback.agrees:
            return f"As predicted, the last was {verdict}."
        kinds = ", ".join(name for name, has in zip(self.names, self.kinds[target], strict=True) if has)
        wanted = "more" if feedback.liked else "less"
        return f"Against the prediction, the last was {verdict}: wants {wanted}" + (
            f" {kinds}." if kinds else " of it."
        )


class Encoder:
    """Turns examples to tokens.

    Args:
        tokenizer: From `build_tokenizer`.
        dataset: Whose items are shown.
        scale: (shift, factor): a teacher's log-odds z becomes the score shift + factor * z.
    """

    def __init__(self, tokenizer: Any, dataset: Dataset, scale: tuple[float, float] = SCALE) -> None:
        self.tokenizer, self.scale = tokenizer, scale
        self.score_ids = np.array(tokenizer.convert_tokens_to_ids([str(score) for score in range(100)]))
        self.end = tokenizer.eos_token_id
        titles = [item_title(item) for item in dataset.items]
        self.title_ids = np.array(tokenizer.convert_tokens_to_ids(titles))
        self.skeleton = np.array(self._ids([_EMPTY])[0] + [self.end])
        self.score_at = np.flatnonzero(self.skeleton == self.score_ids[0])
        """(candidates,) where the scores stand in a structured answer."""

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return [coded.ids for coded in self.tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]

    def encode(self, examples: Sequence[Example]) -> Sequence[Example]:
        """Fill in `ids` and `begin`; a ranking's scores are left 0."""
        prompts = self._ids([render(example.messages) for example in examples])
        answers = self._ids([example.answer for example in examples])
        for example, prompt, answer in zip(examples, prompts, answers, strict=True):
            tail = self.skeleton.tolist() if len(example.z) else [*answer, self.end]
            example.ids, example.begin = prompt + tail, len(prompt)
        return examples

    def scores(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores for log-odds, 0 to 99, not rounded."""
        shift, factor = self.scale
        found: NDArray[np.float64] = (shift + factor * z).clip(0, 99)
        return found

    def titles_at(self, example: Example) -> NDArray[np.int64]:
        """(candidates,) where each candidate's title stands in the prompt; a label's token is before it."""
        where = {token: place for place, token in enumerate(example.ids[: example.begin])}
        tokens = self.title_ids[example.candidates].tolist()
        return np.array([where.get(token, example.begin - 1) for token in tokens])


def tokens_for(prompts: Prompts, n: int = 600) -> Any:
    """A tokenizer for a catalogue and for the prompts and answers about it, n of which are looked at."""
    drawn = prompts.draw(n, reflecting=0.3)
    asked = [[*each.messages, {"role": "assistant", "content": each.answer or _EMPTY}] for each in drawn]
    return build_tokenizer(prompts.dataset.items, asked)


def render(messages: Sequence[Message]) -> str:
    """A conversation as the chat template writes it, ready for the answer; far quicker than the template."""
    turns = "".join(f"<|{message['role']}|>{message['content']}<|end|>" for message in messages)
    return turns + "<|assistant|>"
