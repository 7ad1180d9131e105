"""What data a command works on: a name or a file, how it is read, and how it is prepared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

import starec_env.data as data
from starec_env.data.preparation import prepare
from starec_env.data.table import ROLES, read_table
from starec_env.errors import InvalidOption, unknown
from starec_env.types import Dataset


class DataSpec(BaseModel):
    """A data set and its preparation as options: the command line's, and what a run's record remembers.

    Paths become absolute, so that the record can be used from any folder.

    Examples:
        >>> DataSpec(min_interactions=5).load()
        Dataset('ml-latest-small', 671 users, 3,650 items, 90,274 interactions)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str = Field(
        default="ml-latest-small", description="A name (starec data list), or your own FILE of interactions."
    )
    data_dir: str | None = Field(default=None, description="Folder, zip or file of a named data set.")
    columns: Mapping[str, str] = Field(
        default={}, description="FILE's columns: user=u,item=i,rating=r,time=t,title=name."
    )
    items: str | None = Field(default=None, description="FILE's titles and attributes: a table of items.")
    domain: str | None = Field(default=None, description="What an item is called: movie, book, game or any noun.")
    liked_above: float | None = Field(default=None, description="Ratings above this are likes.", allow_inf_nan=False)
    min_interactions: int | None = Field(default=10, ge=1, description="Fewest interactions of a user and of an item.")
    """None: as loaded, without any preparation."""
    max_length: int | None = Field(default=40, ge=2, description="Length of the longest sequence.")
    """None: sequences keep all interactions."""

    @field_validator("dataset", "data_dir", "items", mode="before")
    @classmethod
    def _absolute(cls, value: object) -> object:
        if not isinstance(value, (str, Path)) or value in data.NAMES:
            return value
        path = Path(value).expanduser()
        return str(path.resolve()) if path.exists() else str(value)

    @classmethod
    def of(cls, **given: Any) -> DataSpec:
        """A spec of some values; raises InvalidOption, in words, where the type would raise pydantic's error."""
        try:
            return cls(**given)
        except ValidationError as error:
            part = error.errors()[0]
            raise InvalidOption(f"{'.'.join(map(str, part['loc']))}={part.get('input')!r}: {part['msg']}") from None

    @property
    def is_file(self) -> bool:
        """Whether `dataset` is a file of one's own and no name."""
        return self.dataset not in data.NAMES

    def check(self) -> None:
        """Find out what can't be, without reading the data.

        Raises:
            UnknownName: `dataset` is neither a name nor a file, or `columns` names what isn't one.
            InvalidOption: An option has no effect together with another.
        """
        for role in self.columns:
            if role not in ROLES:
                raise unknown("column to name", role, ROLES)
        roles = [role for role in self.columns if role != "title"]  # which may be the item's id too
        for first, second in combinations(roles, 2):
            if self.columns[first] == self.columns[second]:
                raise InvalidOption(
                    f"--columns: {first} and {second} are both {self.columns[first]!r}: name two columns"
                )
        if self.min_interactions is None and self.max_length is not None:
            raise InvalidOption("max_length cuts prepared data: give min_interactions too, 1 for no filter")
        if not self.is_file:
            wrong = [name for name in ("columns", "items") if getattr(self, name)]
            _refuse(wrong, f"for a file of your own, and {self.dataset} is a data set by name")
            return
        path = Path(self.dataset)
        if path.is_dir():
            raise InvalidOption(f"{path} is a folder: give --dataset NAME --data-dir {path}, or one file in it")
        if not path.exists():
            raise _nowhere(self.dataset)
        _refuse(["data_dir"] if self.data_dir else [], f"for a data set by name, and {path.name} is a file")

    def read(self) -> Dataset:
        """The data set as loaded, whole and without preparation.

        Raises:
            DataError: The files aren't there, or not what they should be.
            UnknownName, InvalidOption: As `check`.
        """
        self.check()
        domain, liked_above = self.domain, self.liked_above
        if self.is_file:
            found = read_table(
                self.dataset, columns=self.columns, items=self.items, domain=domain, liked_above=liked_above
            )
        else:
            found = data.load_dataset(self.dataset, self.data_dir, domain=domain, liked_above=liked_above)
        raw = self.model_copy(update={"min_interactions": None, "max_length": None})
        return replace(found, source=raw.model_dump())

    def load(self) -> Dataset:
        """The data set, loaded and prepared; its `source` is this spec. Raises as `read`, or if nobody is left."""
        found = self.read()
        if self.min_interactions is None:
            return found
        return prepare(found, min_interactions=self.min_interactions, max_length=self.max_length)


def _refuse(names: list[str], why: str) -> None:
    if names:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in names)
        raise InvalidOption(f"{flags} {'are' if len(names) > 1 else 'is'} {why}: leave out one of the two")


def _nowhere(name: str) -> Exception:
    error = unknown("data set", name, data.NAMES)
    return type(error)(f"{error}; nor is there a file of that name (CSV, TSV, JSON lines or Parquet)")
