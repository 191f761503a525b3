"""Every error that effp_fx raises: what failed, where in the user's source, what was seen, what mends it."""

from __future__ import annotations

# (attribute, how its line begins) in the order in which str() prints them.
_LINES = (("where", "where"), ("seen", "seen"), ("expected", "expected"), ("mend", "to mend it"))


class EffpError(Exception):
    """Any error of effp_fx; catch this one to catch them all.

    `str()` is `what` on the first line, then one indented line for each of the other parts that is known.

    Args:
        what: what failed, in one sentence.
        where: the place in the user's source, model or file: "model.py:123, in forward", "layer1.0.conv1".
        seen: what was met there.
        expected: what would have been right.
        mend: what the user can do, if possible the very call to write.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        seen: str | None = None,
        expected: str | None = None,
        mend: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.seen = seen
        self.expected = expected
        self.mend = mend

    def __str__(self) -> str:
        values = ((label, getattr(self, attribute)) for attribute, label in _LINES)
        return "\n".join([self.what, *(f"  {label}: {value}" for label, value in values if value is not None)])


class CaptureError(EffpError):
    """The model could not be recorded: it failed in forward, returns no tensor, or is of a kind not to be traced."""


class InputError(EffpError):
    """The example inputs are missing and cannot be inferred, or they do not fit the model."""


class TargetError(EffpError):
    """A target makes no sense: zero, negative, not a number, above the dense cost, or against another target."""


class UnreachableTargetError(TargetError):
    """A target lies below the smallest network that is left when only frozen channels and the minima remain."""


class NameNotFoundError(EffpError):
    """A name of a module, group or layer (in `ignore`, for one) matches nothing in the model."""


class PlanMismatchError(EffpError):
    """A plan does not belong to the model that it is applied to, or the model carries none."""


class VerificationError(EffpError):
    """The compact network does not compute what the masked one does; it is not handed out."""


class FileFormatError(EffpError):
    """A file is truncated, altered, not one of ours, or written by a newer effp_fx."""


class GroupFileError(EffpError):
    """The groups file asks for what cannot be; `where` names its line."""


class SessionError(EffpError):
    """A training session was asked for what it cannot do: options, optimizer, steps or model do not fit together."""


class DivergenceError(EffpError):
    """Training has left the finite numbers: a loss, a gradient or a weight is NaN or infinite; no step was taken."""


class ExportError(EffpError):
    """The network could not be written to ONNX, or what was written does not compute the same."""


class RegistrationError(EffpError):
    """An op, a model family, a cost or an importance was registered twice, or without what it needs."""


class ModelNameError(EffpError):
    """A model's name, such as "torchvision:ssd300_vgg16", is not known or could not be built."""


class DataError(EffpError):
    """A data set cannot be read, or one of its files is not what it should be; `where` names the file and its line."""


class TrainingError(EffpError):
    """A training run was asked for what it cannot do: numbers, model, data, device or folder do not fit together."""


class MethodError(EffpError):
    """A pruning method cannot be used on this model or with this budget."""
