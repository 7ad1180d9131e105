"""Passages of an answer that claim to know what the user chose, or that speak of feedback and of earlier attempts.

The teacher is never told the outcome (`teacher`), so whoever claims to know it invents, and a student would learn to
assert what it can't know. Feedback and earlier attempts aren't in the student's prompt either. The patterns err on the
side of dropping an answer, as others are there; what they miss, the judge measures (`judge`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from starec_agents.tasks.titles import item_title, visible
from starec_env.types import Item
from starec_training.dataset import Row

MASK = "ITEM"
"""Stands for a candidate's title or label in a text."""

_USER = r"(?:users?|viewers?|listeners?|customers?|readers?|shoppers?|persons?|they|he|she)(?:'ve|'d|'s)?"
_THING = (
    r"(?:answers?|choices?|picks?|selections?|items?|options?|interactions?|movies?|films?|albums?|products?|titles?"
    r"|one)"
)
_TOOK = (
    r"(?:chose|chosen|picked|selected|took|taken|watched|saw|seen|viewed|liked|loved|enjoyed|preferred|rated|clicked"
    r"|bought|purchased|played|heard|went|gone|opted|settled|ended|decided|landed|moved|turned|came|gave|given|won"
    r"|confirmed|recorded|shown|revealed|listed|logged|told|rented|streamed|chooses|picks|selects|was|were|been)"
)
_NEXT = (
    r"(?:next|afterwards?|later|subsequently|eventually|ultimately|finally|in the end|actually|really|in fact|indeed)"
)
_SAYS = r"(?:shows?|says?|said|reveals?|confirms?|tells?|lists?|states?|mentions?|contains?|indicates?)"


def _any(patterns: str) -> re.Pattern[str]:
    """One pattern of many, one a line; a line indented further goes on with the one before."""
    lines = patterns.replace("\n        ", "").splitlines()
    return re.compile("|".join(line.removeprefix("    ") for line in lines if line), re.IGNORECASE)


_OUTCOME = _any(rf"""
    \b(?:correct|actual|true|real|right|expected|hidden|golden|gold|intended|chosen|recorded) (?:next |user )?{_THING}\b
    {MASK} (?:is|was) (?:right|correct|it|true)\b
    \b(?:know|knew|known|knowing)(?: that)?[\"'(* ]*{MASK}
    \bground[- ]truth|\banswer (?:key|sheet|being)|\bheld[- ]out|\bgold label|\bspoiler|\bpeek(?:ed|ing)?\b
    \b(?:the|its?) label (?:is|was|says)|\bpositive (?:item|example|sample|one)
    \btarget (?:item|movie|film|album|is|was)|\bthe target\b(?! (?:audience|group|market))
    \b(?:the|an) answer(?: is|:| was) (?:\w+ ){{0,2}}{MASK}|\bis the answer\b
    \b{_USER} (?:(?:has|have|had|did) )?{_NEXT} {_TOOK}\b(?! \w+ \w{{2,}}s\b)
    \b{_TOOK} (?:by the user |\w+ ){{0,4}}(?:{_NEXT}|right after|after (?:this|that|all))\b
    {MASK}[\"')*]*, (?:which |that |the \w+ )?(?:the |this )?{_USER} (?:\w+ ){{0,3}}{_TOOK}\b
    \b(?:{_THING}|what|that) (?:that |which )?(?:was|were|got|had been|has been) (?:\w+ )?{_TOOK}\b
    \b(?:that|it|this)(?:'s| is| was) (?:exactly |indeed |also )?
        (?:what|the|which) (?:\w+ ){{0,2}}{_USER} (?:\w+ )?{_TOOK}\b
    \b(?<!s )(?:chosen|picked|selected|clicked|taken|watched|bought) by (?:the|this|our) {_USER}
    \b(?:went|goes|gone|go) on to (?:choose|pick|watch|take|select|see|buy|play|like|enjoy|love|rate)
    \bend(?:s|ed)? (?:up|the|their)\b|\bturn(?:s|ed) out\b
        |\b(?:what|which) (?:came|comes|happened|happens)\b|\bcame next\b
    \b(?:knew|know|knowing|known|learned|see) (?:already |now |that )*
        (?:the|what|which|his|her|their|they) (?:\w+ )?
        (?:outcome|answer|result|choice|pick|future|truth|next|{_USER} {_TOOK}|liked|chose)
    \b(?:given|since|because|as|from what) (?:that )?(?:we|i)(?:'ve| have)? 
        (?:already |been )*(?:know|knew|were|was|am|shown|told)
    \bhindsight\b|\bthe (?:outcome|future)\b|\bafter the fact\b|\b(?:already|system|been) (?:recorded|logged)\b
    \b(?:logs?|records?|feedback|truth|note|system|instructions?|prompt|dataset) (?:\w+ )?(?:{_SAYS}|that)\b
    \bevaluat(?:ion|or|ed)\b|\breward\b|\bthe solution\b|\bleaked\b|\btest (?:item|set|case)\b|\binstructed\b
    \bfrom the label|\ba (?:matter of )?fact\b|\bguess was\b|\bhave access\b|\bdataset's (?:next|entry)
    \b(?:next|following|subsequent|'s final|real|actual) (?:\w+ )?{_THING}
        (?: in the \w+)? (?:is|was|turned)\b(?! (?:likely|probably))
    \b(?:subsequent|eventual) {_THING}\b|\b{_THING} (?:of choice|they wanted)\b|\b{_USER} would (?:\w+ )?go on\b
    \bwhat (?:the |this )?{_USER} (?:{_NEXT} )?(?:wanted|went|did)\b
""")
"""Claims to know the outcome that need no title."""

_REMARK = _any(r"""
    \b(?:re-?think|hint(?:s|ed)?|remark(?:s|ed)?|corrections?|corrected|reviewer|informed|informs)\b
    \b(?:you|they|it) (?:just |already |also )?(?:told|tells|said|mentioned|noted|hinted|asked) 
        (?:me|us|that|the|my|so)\b
    \b(?:i|we) (?:was|were|am|are|have been|had been|'ve been) (?:told|given the answer|asked to (?:redo|re|revise|try))
    \bas (?:you |they |was |were |i was |we were )?(?:told|noted|said|hinted|stated|pointed out|indicated|instructed)\b
    \baccording to the note|\bpointed out\b
    \b(?:earlier|previous|prior|first|last|initial|original|former) 
        (?:answer|attempt|ranking|order(?:ing)?|try|response|list)\b
    \b(?:i|we) (?:had )?(?:initially|previously|originally|first|earlier|before|wrongly) 
        (?:ranked|put|placed|listed|rated)
    \b(?:ranked|placed|put) (?:\w+ ){0,4}too (?:low|high)\b|\b(?:my|the) (?:mistake|error)\b
    \bshould have been (?:on|at|in|first)\b|\bmy (?:list|ranking) (?:was|had|under|over)\w*
    \b(?:this time|once more|try(?:ing)? again|second (?:try|attempt|chance)|start(?:ing)? over)\b
    \b(?:shouldn't|should not|don't|do not|must not|mustn't|without|never|avoid) 
        (?:mention|reveal|refer|giv(?:e|ing) away)
    \b(?:find|need|give|invent|make up|construct) (?:\w+ ){0,2}(?:reasons?|justifications?|an excuse) (?:for|to|why)
    \bpretend|\bact as (?:if|though)|\bas (?:if|though) (?:i|we) (?:didn't|did not)
""")
"""What speaks of feedback or of an earlier attempt."""

_REMARK_ON_UPDATE = _any(r"""
    \b(?:re-?think|hint(?:s|ed)?|remarks?|reviewer|rankings? that follow\w*|follow-up)\b
    \b(?:you|they) (?:just |already |also )?(?:told|said|mentioned|noted|hinted|pointed out) (?:me|us|that|my)\b
    \b(?:earlier|previous|prior|first|last) (?:attempt|answer|try|response)\b|\btry(?:ing)? again\b
    \b(?:earlier|previous|prior|first|last) description (?:did|didn't|was|had|failed|made)\b
""")
"""The same of a memory update, whose prompt does tell of a prediction and of what the user did."""

_CLAUSE = _any(rf"""
    [.;!?\n]|(?<={MASK})[\"')*]*:| [-–—] |,|\b(?:so|because|since|but|while|whereas|therefore|hence)\b
""")
_HAPPENED = _any(rf"""
    \b{_TOOK}\b
    \b{_USER} (?:\w+ ){{0,3}}(?:\w{{2,}}ed|made|got|did|put|kept|found|had|has)\b
    \b(?:one|pick) (?:that )?{_USER} \w+ed\b
    \b(?:from|by) (?:the|this) {_USER}
""")
_NO_CLAIM = _any(rf"""
    \b(?:(?!this|was|has|is|its|always)\w{{2,}}s|those|ones|others|anyone|someone|viewer who|what|people alike) 
        (?:that |which |who )*(?:the |this )?(?:{_USER} )?(?:\w+ )?{_TOOK}\b
    \b(?!was|were|been)(?:also )?{_TOOK} (?:by )?\d+\b
    \b(?:highly|well|best|top|widely|critically|often|most|would have|might have|could have|if|had) {_TOOK}\b
    \b(?:came|comes) out\b|\b(?:well|best)-\w+|\bwon (?:\w+ )?(?:awards?|oscars?|prizes?)
    \b(?:was|were|been) (?:\w+ly )?(?:released|directed|made|nominated|filmed|written|set|based|shot|popular|praised)
""")
"""Where such a word says nothing of this user and a candidate: the films the user liked, counts of other users."""

_SENTENCE = re.compile(r"(?<=[.!?])\s|\n")
_PRONOUN = re.compile(r"\b(?:it|this one|that one)\b", re.IGNORECASE)
_LABEL = re.compile(r"\b(?:[Cc]andidate|[Oo]ption|[Ii]tem|[Ll]abel|[Ll]etter|[Nn]umber|[Nn]o\.) ?#?(?:[A-Z]|\d{1,2})\b")
_TITLE_END = re.compile(r" \| | - (?:dis)?liked|: (?:not )?ranked")
_DATED = re.compile(
    r"(?<![^\s(\"'])[A-Z][\w'’&!?:.,-]*(?: (?:[A-Z0-9&(][\w'’&!?:.,)-]*|of|the|and|a|in|to|for|on))*? \(\d{4}\)"
)
_BARE_LABEL = re.compile(r"(?<![\w'])[B-HJ-Z](?![\w'])")


def hint_in(row: Row) -> str | None:
    """A passage of a row's answer that claims to know the outcome or speaks of feedback; None if there is none.

    The user has met no candidate, so a clause in which one of them was chosen or liked claims to know the outcome. Of a
    memory update the outcome is the turns to come: what the turn itself brought is in the prompt.
    """
    ranks = row.task == "rank"
    text = _without_known(mask_titles(row.completion, _unmet(row)), row)
    text = _LABEL.sub(MASK, text)
    if ranks and row.snapshot.answer_format != "paper":
        text = _BARE_LABEL.sub(MASK, text)
    text = "\n".join(map(_named, _SENTENCE.split("\n".join(map(visible, text.splitlines())))))
    for pattern in (_OUTCOME, _REMARK) if ranks else (_REMARK_ON_UPDATE,):
        if found := pattern.search(text):
            return found[0]
    return next((clause.strip() for clause in _CLAUSE.split(text) if MASK in clause and _claims(clause)), None)


def _named(sentence: str) -> str:
    """A sentence with MASK for the pronouns that follow one too."""
    before, item, after = sentence.partition(MASK)
    return before + item + (_PRONOUN.sub(MASK, after) if item else "")


def _claims(clause: str) -> bool:
    return bool(_HAPPENED.search(_NO_CLAIM.sub(" ", clause)))


def _unmet(row: Row) -> Sequence[Item]:
    """Items of which the prompt doesn't say that the user met them."""
    if row.task == "rank":
        return row.snapshot.shown.candidates
    prompt = row.prompt[-1]["content"]
    later = [item for case in row.snapshot.follow_ups for item in case.candidates]
    return [item for item in dict.fromkeys(later) if item_title(item) not in prompt]


def _without_known(text: str, row: Row) -> str:
    """A text without the titles that the prompt lists: their words ("Back to the Future") claim nothing."""
    lines = (_TITLE_END.split(line, maxsplit=1)[0].lstrip("+- ") for line in row.prompt[-1]["content"].splitlines())
    dated = _DATED.findall(row.prompt[-1]["content"])
    known = {form for title in {*lines, *dated} for form in (title, title.rpartition(" (")[0]) if len(form) > 3}
    for title in sorted(known, key=len, reverse=True):
        text = text.replace(title, "TITLE")
    return _DATED.sub(r"TITLE", text)


def mask_titles(text: str, items: Sequence[Item], by: str = MASK) -> str:
    """A text with a word for the titles of some items, with and without their year."""
    titles = {title for item in items for title in (item_title(item), item_title(item).rpartition(" (")[0])}
    known = sorted(filter(None, titles), key=len, reverse=True)
    return re.sub(rf"(?<!\w)(?:{'|'.join(map(re.escape, known))})(?!\w)", by, text) if known else text
