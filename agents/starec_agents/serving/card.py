"""The card of a trained model, `starec.json` beside its weights: what it was made from and on whom it was trained."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from starec_env.data.splits import Split
from starec_env.errors import DataError
from starec_env.types import Id

CARD = "starec.json"
"""The card's file in a model's folder."""
NANO = "starec-nano"
"""The model that comes with the package: a Llama of 2.4 million parameters for MovieLens's films; its card has more."""
NANO_FOLDER = Path(__file__).with_name("nano")


class ModelCard(BaseModel):
    """What a model was made from. Evaluation refuses users whom it, or a model before it, was trained on.

    Examples:
        >>> card = ModelCard(stage="sft", base_model="Qwen/Qwen2.5-0.5B", split=Split(train=(1, 2), test=(3,)))
        >>> card.seen("ml-1m", [2, 3])
        ['2']
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    """How it was trained last: "sft", "grpo" or another word."""
    base_model: str
    """Its path or name."""
    split: Split
    """`train`: whom it was trained on, and nobody else; `validation`: whom it was chosen by; `test`: kept for tests."""
    settings: dict[str, Any] = {}
    """Of the training."""
    base: ModelCard | None = None
    """The base model's own card, where it has one (`read_card`): its users count too."""

    def save(self, folder: str | Path) -> None:
        """Write it beside the weights."""
        (Path(folder) / CARD).write_text(self.model_dump_json(indent=None) + "\n", encoding="utf-8")

    def seen(self, dataset: str, users: Iterable[Id], *, choosing: bool = False) -> list[str]:
        """Which users of a data set it, or a model that it was made from, was trained on or chosen by.

        Args:
            dataset: The data set's name. A card that names none may mean any.
            users: Their ids; as text and as numbers they are the same.
            choosing: Whether models are being chosen, as validation users are for: they don't count then.

        Returns:
            Ids as text, in the order given.
        """
        asked, cards = list(dict.fromkeys(map(str, users))), [self]
        while cards[-1].base is not None:
            cards.append(cards[-1].base)
        of_it = [card.split for card in cards if card.split.dataset in ("", dataset)]
        seen = {str(user) for split in of_it for user in (*split.train, *(() if choosing else split.validation))}
        return [user for user in asked if user in seen]


def read_card(folder: str | Path) -> ModelCard | None:
    """The card in a model's folder, None if it has none.

    Raises:
        DataError: There is a file of that name that isn't a card.
    """
    path = Path(folder) / CARD
    try:
        return ModelCard.model_validate_json(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValidationError) as error:
        part = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        raise DataError(f"{path} is no model card: {'.'.join(map(str, part['loc']))}: {part['msg']}") from None


def find_card(*places: str | Path | None) -> ModelCard | None:
    """The first card that is found in some places, None if none has one.

    Args:
        places: Folders, names of models (starec-nano's card is known) or hub ids, which have none here; None is left
            out. A name that happens to be a folder here, as a server names what it serves, is one.
    """
    for place in places:
        if not place:
            continue
        folder = NANO_FOLDER if str(place) == NANO else Path(place).expanduser()
        if card := read_card(folder):
            return card
    return None


def say_seen(card: ModelCard | None, model: str, dataset: str, users: Collection[Id]) -> str | None:
    """What to say of users whom a model isn't new to, None if there is none; see `ModelCard.seen`."""
    known = card.seen(dataset, users) if card else []
    n = len(set(map(str, users)))
    return f"{len(known):,} of {n:,} users are among those that {model} was trained on" if known else None
