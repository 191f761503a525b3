"""Which versions of a tool an integration works with, read from the tool's metadata before a line of it is run."""

from __future__ import annotations

from importlib import metadata

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from effp_fx.errors import SessionError


def installed(distribution: str) -> str | None:
    """The version of a distribution that is installed; None where there is none."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def require(distribution: str, supported: str, *, extra: str, because: str | None = None) -> None:
    """Raise SessionError unless a supported version of the tool is installed; the tool itself is not imported.

    Versions are compared as PEP 440 has it: "2.10" is later than "2.9", and "2.6.2+cu130" is 2.6.2.

    Args:
        distribution: its name on the package index.
        supported: a version specifier, such as ">=2.4,!=2.6.2".
        extra: of effp-fx, which installs it.
        because: why the versions that are left out are left out.
    """
    found = installed(distribution)
    mend = f"pip install '{distribution}{supported}', or 'effp-fx[{extra}]'"
    if found is None:
        raise SessionError(f"{distribution} is not installed", expected=f"{distribution}{supported}", mend=mend)
    try:
        version = Version(found)
    except InvalidVersion as error:
        raise SessionError(
            f"the version of {distribution} cannot be read",
            seen=found,
            expected=f"{distribution}{supported}",
            mend=mend,
        ) from error
    if SpecifierSet(supported).contains(version, prereleases=True):
        return
    raise SessionError(
        f"this version of {distribution} is not supported" + (f": {because}" if because else ""),
        seen=f"{distribution} {found}",
        expected=f"{distribution}{supported}",
        mend=mend,
    )
