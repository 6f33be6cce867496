"""Which release of transformers is installed, and which are served."""

from __future__ import annotations

from transformers import __version__ as INSTALLED

from quickprefill.errors import UnsupportedReleaseError

__all__ = ["INSTALLED", "TESTED", "check_release", "is_older_than", "is_untested"]

TESTED = ("4.57", "5.24")
"""Oldest and newest release that the tests run on."""


def _numbered(release: str) -> tuple[int, ...]:
    """Major and minor number of a release."""
    return tuple(map(int, release.split(".")[:2]))


def is_older_than(release: str) -> bool:
    """Whether the installed transformers comes before a release such as "5.9"."""
    return _numbered(INSTALLED) < _numbered(release)


def is_untested(tested: tuple[str, str]) -> bool:
    """Whether the installed transformers comes behind the newest release of a range."""
    return _numbered(INSTALLED) > _numbered(tested[1])


def check_release(what: str, tested: tuple[str, str] = TESTED, fault: str = "") -> None:
    """Refuse a release before the oldest of a range.

    Args:
        fault: what is wrong with the releases before.

    Raises:
        UnsupportedReleaseError: naming the range.
    """
    if is_older_than(tested[0]):
        raise UnsupportedReleaseError(
            f"{what} needs transformers {' to '.join(tested)}, not {INSTALLED}{fault and f': {fault}'}; "
            f'install "transformers>={tested[0]}"'
        )


check_release("quickprefill")  # before any file of ours asks for what an older one lacks
