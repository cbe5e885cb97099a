"""The kinds of error that the command line turns into one message."""

from __future__ import annotations

import inspect

import pytest

from multiview import errors

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_ours_and_says_what_it_is_for(kind: type[Exception]) -> None:
    assert issubclass(kind, errors.TriliftError)
    assert kind.__doc__ and kind.__doc__.strip().endswith(".")
    assert str(kind("chair.png: no")) == "chair.png: no"


def test_bad_values_are_value_errors_too() -> None:
    also_values = {kind.__name__ for kind in KINDS if issubclass(kind, ValueError)}
    assert also_values == {"CameraError", "SettingsError"}
