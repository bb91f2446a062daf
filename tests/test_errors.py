"""Errors between processes: the same error on both sides, in words and in kind."""

import pickle
from collections.abc import Mapping

import pytest

from dr_validate import errors

MADE: Mapping[str, Exception] = {
    name: cls(["a: wrong", "b: wrong"]) if cls is errors.ConfigError else cls("a: wrong")
    for name, cls in vars(errors).items()
    if isinstance(cls, type) and issubclass(cls, Exception)
}


@pytest.mark.parametrize("name", sorted(MADE))
def test_an_error_comes_out_of_another_process_as_it_went_in(name: str) -> None:
    found = pickle.loads(pickle.dumps(MADE[name]))
    assert type(found) is type(MADE[name])
    assert str(found) == str(MADE[name])
    assert vars(found) == vars(MADE[name])
