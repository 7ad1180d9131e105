"""What a person reads of a run: its metrics, and one user's trace."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from starec_agents.runs.reading import read_failures, read_run, read_steps
from starec_agents.runs.records import read_titles
from starec_agents.runs.steps import Step
from starec_env.errors import unknown
from starec_env.metrics import SHOWN
from starec_env.types import Id

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

_FEW_VALID = 0.5


def metrics_text(metrics: Mapping[str, Any], out: Path) -> str:
    """A run's metrics as a table in plain text, ending with where the files are."""
    console = Console(width=110, file=StringIO())
    with console.capture() as captured:
        console.print(metrics_table(metrics, out))
    return captured.get().rstrip()


def metrics_table(metrics: Mapping[str, Any], out: Path) -> RenderableType:
    """A run's metrics: NDCG in percent with standard errors over users, and what the run cost."""
    run = read_run(out)
    title = f"{run['graph']} ({run['model']}) on {run['dataset']['name']}, candidates {run['candidates_hash']}"
    table = Table(title=plain(title), title_justify="left")
    for name in (*map(str.upper, SHOWN), "valid", "profiles", "users"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row(
        *(_percent(metrics[name], metrics[f"{name}_se"]) for name in SHOWN),
        *(_share(metrics.get(name)) for name in ("valid_share", "valid_profiles")),
        f"{metrics['users']:,}",
    )
    note = (
        f"NDCG in percent ± standard error over users. {metrics['steps']:,} steps, "
        f"{metrics['failures']:,} users failed. {metrics['prompt_tokens']:,} tokens in, "
        f"{metrics['completion_tokens']:,} out, {metrics['wall_s']:.1f} s.\n"
        f"Results are in {out} (starec show {out} --user ID shows a user's trace)."
    )
    if missing := metrics.get("missing_steps"):
        note += f"\n{missing:,} of the planned steps are missing, those of the users that failed."
    if unscored := metrics["users"] - metrics.get("scored_users", metrics["users"]):
        note += f"\nDisliked targets are not scored: {unscored:,} users had no other."
    note += "".join(f"\n{text}" for text in run.get("notes", ()))
    note += "".join(_remedies(metrics, run.get("answer_format")))
    return Group(table, plain(note))


def _remedies(metrics: Mapping[str, Any], answer_format: str | None) -> Iterator[str]:
    """What to do where most answers of a task could not be read, by their commonest fault."""
    simpler = _SIMPLEST if answer_format == "scores" else _SIMPLER
    for task, share in (("rankings", "valid_share"), ("profiles", "valid_profiles")):
        if metrics.get(share) is None or metrics[share] >= _FEW_VALID:
            continue
        found = metrics.get("problems", {}).get(task, {})
        worst = max((kind for kind in found if kind != "tied"), key=lambda kind: found[kind], default="")
        counts = ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in found.items())
        remedy = _REMEDIES.get(worst, simpler)
        if worst == "cut_off" and answer_format != "scores":
            remedy = f"{remedy} {simpler}"  # a model that doesn't know the format may never end
        yield (f"\nMost answers could not be read as whole {task} ({counts}): starec show has their texts. {remedy}")


_SIMPLER = "Small models manage --answer-format scores; starec-nano knows no other."
_SIMPLEST = "No format is easier than scores: take a larger model, or a server that holds answers to a JSON schema."
_REMEDIES = {
    "cut_off": "They ended before the answer did: raise --max-tokens, or switch the model's thinking off.",
    "empty": "They have no text, or all of it came as reasoning: raise --max-tokens, or start the server with another "
    "reasoning parser, or none.",
}


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _percent(mean: float | None, error: float | None) -> str:
    return "-" if mean is None else f"{100 * mean:.1f}" + ("" if error is None else f" ± {100 * error:.1f}")


def overview(out: str | Path) -> Iterator[RenderableType]:
    """What a run is and who is in it: its settings, and a line a user with steps, mean reward and last rank.

    Raises:
        RunError: The folder holds no run.
    """
    run = read_run(out)
    yield plain(f"{run['graph']} ({run['model']}) on {run['dataset']['name']}, seed {run['seed']}")
    users: dict[Id, tuple[int, float, int | None]] = {}
    for step in read_steps(out):
        steps, rewards, _ = users.get(step.user_id, (0, 0.0, None))
        users[step.user_id] = steps + 1, rewards + step.reward, step.feedback.rank
    table = Table("user", "steps", "mean reward", "rank at the last")
    for user, (steps, rewards, last) in users.items():
        table.add_row(plain(str(user)), str(steps), f"{rewards / steps:+.2f}", "-" if last is None else str(last))
    yield table
    yield plain(f"starec show {out} --user ID shows a user's trace")


def trace(out: str | Path, user_id: str) -> Iterator[RenderableType]:
    """One user's steps, a panel each: what was ranked, what the user did, what the agent made of it.

    Raises:
        UnknownName: The run has no steps of that user.
        RunError: The folder holds no run.
    """
    titles = read_titles(out)
    seen: dict[str, None] = {}
    found = False
    for step in read_steps(out):
        seen[str(step.user_id)] = None
        if str(step.user_id) == str(user_id):
            found = True
            yield step_panel(step, titles)
    for failure in read_failures(out):
        if str(failure.user_id) == str(user_id):
            found = True
            yield Panel(plain(f"turn {failure.turn}: {failure.message}"), title=f"failed ({failure.kind})")
    if not found:
        raise unknown(f"user in {out}", user_id, seen)


def step_panel(step: Step, titles: Mapping[Id, str]) -> Panel:
    """One step as a panel."""
    target = step.candidates[step.target]
    ranked = [step.candidates[position] for position in step.ranking.order]
    listing = Text()
    for place, item in enumerate(ranked, 1):
        listing.append(f"{place:>3}  {clean(titles[item])}\n", style="bold green" if item == target else "")
    feedback = step.feedback
    outcome = Text.assemble(
        ("The user took ", ""),
        (clean(titles[target]), "bold green"),
        (f" and {'liked' if feedback.liked else 'disliked'} it; the agent ", ""),
        (f"had it at {feedback.rank} of {len(step.candidates)}" if feedback.rank else "had not ranked it", ""),
        (f", reward {step.reward:+.1f}.", ""),
    )
    parts: list[RenderableType] = [listing or plain("(no ranking)"), outcome]
    if not step.ranking.valid:
        parts.append(Text("The answer had problems: " + "; ".join(map(clean, step.ranking.problems)), style="yellow"))
    elif step.ranking.report.tied:
        parts.append(plain(f"{step.ranking.report.tied} candidates had an earlier one's score: shown order decided."))
    for call in step.calls:
        thought = "\n".join(part for part in (call.reasoning, call.completion) if part)
        if call.report and not call.report.valid:
            problems = "; ".join(call.report.problems)
            parts.append(Text(f"The answer to {clean(call.kind)} had problems: {problems}", style="yellow"))
        parts.append(Panel(plain(_shorten(thought)), title=f"the model's answer ({clean(call.kind)})", style="dim"))
    parts.append(Panel(difference(step.memory_before.profile, step.memory.profile), title="memory after learning"))
    parts.extend(plain(f"remembers: {event}") for event in step.memory.history[len(step.memory_before.history) :])
    return Panel(Group(*parts), title=f"user {clean(str(step.user_id))}, turn {step.turn}", title_align="left")


def difference(before: str, after: str) -> Text:
    """`after`, with words that are new in green and words that went struck out in red."""
    old, new = clean(before).split(), clean(after).split()
    text = Text()
    for tag, a, b, c, d in SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes():
        if tag in ("delete", "replace"):
            text.append(" ".join(old[a:b]) + " ", style="red strike")
        if tag != "delete":
            text.append(" ".join(new[c:d]) + " ", style="" if tag == "equal" else "green")
    return text if text.plain.strip() else plain("(empty)")


def clean(text: str) -> str:
    """Text without control and direction characters, so that a model can't write to the terminal."""
    return _CONTROL.sub("", text)


def plain(text: str) -> Text:
    """Cleaned text that rich doesn't read as markup."""
    return Text(clean(text))


def _shorten(text: str, most: int = 2_000) -> str:
    return text if len(text) <= most else f"{text[:most]} ... ({len(text):,} characters in all)"
