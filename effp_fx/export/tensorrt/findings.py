"""What can be said of a node on a release of TensorRT: a verdict and the reason for it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """From harmless to dangerous: the last builds without a word and computes something else."""

    SUPPORTED = "supported"
    RESTRICTED = "restricted"
    """It builds and computes the same, at a price or under a condition."""
    REFUSED = "refused"
    """The release knows the op, not this form of it: the build fails."""
    MISSING = "missing"
    """The release does not know the op: the build fails."""
    WRONG = "silently wrong"

    @property
    def rank(self) -> int:
        """0 for supported, larger for worse."""
        return list(Verdict).index(self)

    @property
    def builds(self) -> bool:
        """Whether trtexec gets past this node."""
        return self not in (Verdict.REFUSED, Verdict.MISSING)


def worst(verdicts: list[Verdict]) -> Verdict:
    """The worst of them; supported where there are none."""
    return max(verdicts, key=lambda verdict: verdict.rank, default=Verdict.SUPPORTED)


@dataclass(frozen=True)
class Finding:
    """One thing that a release does with a node."""

    rule: str
    """The name of the rule: a feature of the release's table, or missing, type, plugin, unchecked."""
    verdict: Verdict
    why: str
    mend: str | None = None
