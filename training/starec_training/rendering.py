"""One rendering of conversations for all that trains, asks or measures a policy.

What a chat template needs beside the conversation is written into the tokenizer's own template when a policy is loaded:
its switches, and a way round a system role that it lacks. TRL's rollouts, the collection of rounds, follow-ups, length
limits, SFT's rows and whatever serves the saved model then render alike, without being given anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starec_agents.llm import Message
from starec_agents.tasks import split_thought
from starec_env.errors import InvalidOption, TrainingError

if TYPE_CHECKING:
    from starec_training.dataset import Rows

Prompt = Sequence[Message]

_FOLD = (
    "{% if messages|length > 1 and messages[0]['role'] == 'system' %}{% set messages = [{'role': 'user', 'content': "
    "messages[0]['content'] + '\\n\\n' + messages[1]['content']}] + messages[2:] %}{% endif %}"
)
"""A system message becomes the beginning of the user's, as the client does for servers that refuse the role."""
_ASKED: Prompt = ({"role": "system", "content": "Answer."}, {"role": "user", "content": "Question."})
_SAID = "Reply."


def settle(tokenizer: Any, switches: Mapping[str, Any] | None = None) -> None:
    """Make a tokenizer's chat template render our conversations the same way for everybody.

    Args:
        tokenizer: Changed in place; saved with the trained model as it is then.
        switches: The template's own variables, as {"enable_thinking": False}; they become its defaults, which a
            request may still override.

    Raises:
        InvalidOption: A switch isn't a name.
        TrainingError: There is no template, or it leaves out what the user says.
    """
    check_chat_template(tokenizer)
    template = tokenizer.get_chat_template()
    for name, value in (switches or {}).items():
        if not name.isidentifier():
            raise InvalidOption(f"chat_template_kwargs: {name!r} is no variable of a template")
        given = f"{{% if {name} is not defined %}}{{% set {name} = {value!r} %}}{{% endif %}}"
        template = template if template.startswith(given) else given + template
    for tokenizer.chat_template in (template, _FOLD + template):
        fault = _fault(tokenizer)
        if not fault:
            return
    raise TrainingError(f"the chat template can't render a system message and a user's ({fault}): choose another model")


def _fault(tokenizer: Any) -> str:
    try:
        text = _text(tokenizer, _ASKED)
    except Exception as error:  # whatever a template raises: jinja2's own faults and its raise_exception
        return str(error)
    return next((f"it leaves {each['content']!r} out" for each in _ASKED if each["content"] not in text), "")


def check_chat_template(tokenizer: Any) -> None:
    """Raise TrainingError unless the tokenizer can render a conversation."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise TrainingError(
            "the tokenizer has no chat template, so prompts can't be rendered as the server renders them: use an "
            "instruction-tuned model, or set tokenizer.chat_template"
        )


def encode(tokenizer: Any, prompt: Prompt) -> list[int]:
    """The tokens of a prompt that a policy is to answer."""
    messages = [dict(message) for message in prompt]
    tokens: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return tokens


def _text(tokenizer: Any, prompt: Prompt, **how: bool) -> str:
    messages = [dict(message) for message in prompt]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, **{"add_generation_prompt": True, **how})
    return text


@dataclass(frozen=True)
class Template:
    """How a template begins and ends an assistant's turn."""

    end: tuple[int, ...]
    """Tokens from the answer's end to the one that ends the turn; the tokenizer's eos where the template has none."""
    opened: bool
    """Whether the prompt opens a thought, so that an answer without a closing tag is all thought."""
    closed: bool
    """Whether the prompt closes the thought at once, so that none may follow."""

    @classmethod
    def of(cls, tokenizer: Any) -> Template:
        """Read it off a tokenizer's template."""
        asked = _text(tokenizer, _ASKED)
        answer: Message = {"role": "assistant", "content": _SAID}
        tail = _text(tokenizer, [*_ASKED, answer], add_generation_prompt=False).rpartition(_SAID)[2]
        ids = tokenizer.encode(tail, add_special_tokens=False)
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        ends = [place for place, token in enumerate(ids) if token in special]
        end = ids[: ends[0] + 1] if ends else [tokenizer.eos_token_id]
        return cls(tuple(end), split_thought(asked)[1], asked.rstrip().endswith("</think>"))

    def answer(self, tokenizer: Any, text: str) -> list[int]:
        """The tokens of a whole answer as they follow the prompt's, to the end of the turn.

        A template may drop the thought of what was said before; here it is kept, and joins a thought that the prompt
        opens. Where an answer has none, such a thought is closed at once.

        Raises:
            TrainingError: The answer has a thought, and the template has closed it.
        """
        thinks = split_thought(text)[0] != text
        if self.closed and thinks:
            raise TrainingError(
                "the chat template closes the thought before the answer begins, but the rows have thoughts to learn: "
                "switch its thinking on (chat_template_kwargs), or teach without thoughts"
            )
        if self.opened:
            text = text.lstrip().removeprefix("<think>").lstrip("\n") if thinks else f"</think>\n\n{text}"
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return [*ids, *self.end]


def fitting(rows: Rows, tokenizer: Any, *, max_prompt: int | None = None, max_length: int | None = None) -> Rows:
    """Rows whose prompt, and prompt with completion, are within limits; the others are dropped and counted.

    Args:
        rows: The rows.
        tokenizer: Counts tokens, by its chat template.
        max_prompt: Most tokens of a prompt (the paper's reinforcement training: 4096).
        max_length: Most tokens of prompt and completion together (the paper's SFT: 16384).

    Raises:
        TrainingError: The tokenizer has no chat template, or no row is left.
    """
    check_chat_template(tokenizer)
    template = None if max_length is None else Template.of(tokenizer)
    goes: dict[int, str] = {}
    for place, row in enumerate(rows):
        prompt = len(encode(tokenizer, row.prompt))
        if max_prompt is not None and prompt > max_prompt:
            goes[place] = f"prompt over {max_prompt} tokens"
        elif template is not None and row.lineage.get("cut_off"):
            goes[place] = "the answer was cut off"
        elif template and max_length and prompt + len(template.answer(tokenizer, row.completion)) > max_length:
            goes[place] = f"prompt and answer over {max_length} tokens"
    kept = rows.kept(goes)
    if not len(kept):
        raise TrainingError(f"no row is left ({kept}): raise the limit, or show a shorter history")
    return kept
