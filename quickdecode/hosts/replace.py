"""Replacing attributes and table entries of other people's modules, and putting them back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

ABSENT = object()


class Replacements:
    """A stack of replacements. undo() takes them back, leaving alone what somebody else has replaced since."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def __bool__(self) -> bool:
        return bool(self._undo)

    def attribute(self, holder: Any, name: str, value: Any) -> None:
        """Like setattr."""
        before = vars(holder).get(name, ABSENT)
        setattr(holder, name, value)

        def undo() -> None:
            if vars(holder).get(name, ABSENT) is not value:
                return
            if before is ABSENT:
                delattr(holder, name)
            else:
                setattr(holder, name, before)

        self._undo.append(undo)

    def item(self, table: dict[str, Any], key: str, value: Any) -> None:
        """Like table[key] = value."""
        before = table.get(key, ABSENT)
        table[key] = value

        def undo() -> None:
            if table.get(key) is not value:
                return
            if before is ABSENT:
                del table[key]
            else:
                table[key] = before

        self._undo.append(undo)

    def afterwards(self, action: Callable[[], None]) -> None:
        """Do this last in undo()."""
        self._undo.insert(0, action)

    def undo(self) -> None:
        """Take everything back; without effect the second time."""
        while self._undo:
            self._undo.pop()()
