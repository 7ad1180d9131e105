"""Fixtures that several test files share."""

import pytest
from support import make_dataset

from starec_env.types import Dataset


@pytest.fixture
def tiny_dataset() -> Dataset:
    """12 users x 14 ratings of 60 films."""
    return make_dataset()
