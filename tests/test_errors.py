"""Errors are API: their lines, their tree, their survival of pickling."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from effp_fx import errors

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.EffpError)]


def test_the_parts_stand_on_lines_of_their_own() -> None:
    error = errors.CaptureError(
        "the model failed in forward",
        where="model.py:12, in forward",
        seen="shape (1, 3)",
        expected="shape (1, 4)",
        mend="pass example_inputs=torch.zeros(1, 4)",
    )
    assert str(error).splitlines() == [
        "the model failed in forward",
        "  where: model.py:12, in forward",
        "  seen: shape (1, 3)",
        "  expected: shape (1, 4)",
        "  to mend it: pass example_inputs=torch.zeros(1, 4)",
    ]


def test_parts_that_are_not_known_are_left_out() -> None:
    assert str(errors.TargetError("target_flops is 0", mend="ask for more than 0")) == (
        "target_flops is 0\n  to mend it: ask for more than 0"
    )
    assert str(errors.TargetError("target_flops is 0", seen="")) == "target_flops is 0\n  seen: "


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind: type[errors.EffpError]) -> None:
    error = kind("what", where="w", mend="m")
    assert isinstance(error, errors.EffpError)
    assert kind.__doc__ and "\n" not in kind.__doc__.strip().split("\n\n")[0]
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert str(again) == str(error)


def test_an_unreachable_target_is_a_target_error() -> None:
    assert issubclass(errors.UnreachableTargetError, errors.TargetError)


def test_the_list_of_kinds_is_the_agreed_one() -> None:
    assert sorted(kind.__name__ for kind in KINDS) == [
        "CaptureError",
        "DataError",
        "DivergenceError",
        "EffpError",
        "ExportError",
        "FileFormatError",
        "GroupFileError",
        "InputError",
            "MethodError",
        "ModelNameError",
        "NameNotFoundError",
        "PlanMismatchError",
        "RegistrationError",
        "SessionError",
        "TargetError",
        "TrainingError",
        "UnreachableTargetError",
        "VerificationError",
    ]
