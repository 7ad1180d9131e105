"""What a teacher's answer must be to teach (4.2.1): whole, in its format, and no claim to know."""

from __future__ import annotations

import re
from dataclasses import dataclass

from starec_agents.tasks import profile_format, ranking_format
from starec_env.metrics import ndcg
from starec_env.replay.rewards import LIKED_CUTOFF
from starec_training.dataset import Row
from starec_training.hints import hint_in

_PREFERENCE = re.compile(
    r"\b(dis)?(like[sd]?|prefer\w*|enjoy\w*|loves?|favou?r\w*|interest\w*|tastes?|avoids?|fans? of|drawn to)\b", re.I
)


@dataclass(frozen=True)
class Screening:
    """What a sample must be to teach."""

    min_ndcg: float = float(ndcg(LIKED_CUTOFF, 10))
    """Least NDCG@10 of a ranking. The paper keeps "those with higher scores" and names no figure; this one is the fifth
    place, where the position reward is still positive."""
    min_gain: float = 0.0
    """A memory update is kept if the NDCG@10 of the rankings that follow it, less that of the same rankings with the
    old profile, is more than this."""
    rationale: bool | None = None
    """Whether a thought is asked of every answer; None: in the paper's format alone."""
    min_rationale: int = 5
    """Fewest words of a thought."""
    max_profile: int = 150
    """Most words of a profile; the prompt asks for at most 100."""


@dataclass(frozen=True)
class Flaw:
    """What is wrong with an answer, and what the teacher is told of it: nothing that depends on the target."""

    kind: str
    feedback: str


MISRANKED = Flaw("misranked", "An earlier ranking did not place what the user chose where it belongs.")
UNHELPFUL = Flaw("unhelpful", "An earlier description did not make the rankings that followed it any better.")
HINTED = Flaw("hint", "An earlier answer spoke of what it can't know. Use the user's profile and history alone.")
_CUT_OFF = Flaw("cut off", "An earlier answer was cut off before its end: keep it shorter.")
_NO_RATIONALE = Flaw("no rationale", "An earlier answer gave no reasons: first think, between <think> and </think>.")


def flaw_of(row: Row, text: str, cut_off: bool, screening: Screening) -> Flaw | None:
    """What is wrong with the form of an answer to a row's prompt; None if nothing is."""
    said = row.model_copy(update={"completion": text})
    flaw = _rationale_flaw(said, cut_off, screening)
    if flaw is None:
        flaw = _ranking_flaw(said) if row.task == "rank" else _profile_flaw(said, screening)
    return flaw or (HINTED if hint_in(said) else None)


def _rationale_flaw(said: Row, cut_off: bool, screening: Screening) -> Flaw | None:
    form = said.snapshot.answer_format
    if cut_off or profile_format(form).parse(said.completion).report.cut_off:
        return _CUT_OFF
    wanted = ranking_format(form).thinks if screening.rationale is None else screening.rationale
    return _NO_RATIONALE if wanted and len(said.thought.split()) < screening.min_rationale else None


def _ranking_flaw(said: Row) -> Flaw | None:
    shown = said.snapshot.shown
    ranking = shown.parse(said.completion, said.snapshot.answer_format)
    if ranking.valid:
        return None
    what = f"An earlier answer was no ranking of all {len(shown.candidates)} candidates"
    return Flaw(ranking.report.kinds[0].replace("_", " "), f"{what} ({', '.join(ranking.problems)}).")


def _profile_flaw(said: Row, screening: Screening) -> Flaw | None:
    profile = profile_format(said.snapshot.answer_format).parse(said.completion).text
    if profile is None:
        return Flaw("no profile", "An earlier answer held no description in the format asked for.")
    if not _PREFERENCE.search(profile):
        return Flaw("no preference", "An earlier description said nothing of what the user likes or dislikes.")
    if len(profile.split()) > screening.max_profile:
        return Flaw("too long", f"An earlier description had over {screening.max_profile} words: at most 100.")
    return None
