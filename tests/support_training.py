"""What tests of training share beside the fixtures: `from support_training import Words`."""

from collections.abc import Mapping, Sequence
from typing import Any


class Words:
    """Counts words where a tokenizer counts tokens."""

    chat_template = "{{ messages }}"

    def count(self, messages: Sequence[Mapping[str, str]]) -> int:
        return sum(len(message["content"].split()) for message in messages)

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], **_: Any) -> list[int]:
        return [0] * self.count(messages)
