"""What is wrong with a catalogue file: every problem with its line and key, all in one go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong in a file.

    Attributes:
        file: Name of the file.
        line: Its line, from 1 on; 0: the whole file.
        key: Path of the key, such as "models[2].context_window"; empty: the whole file.
        description: What was got, what is allowed, what to do.
    """

    file: str
    line: int
    key: str
    description: str

    def __str__(self) -> str:
        """As people know it from compilers."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (place, self.key, self.description) if part)


class CatalogueError(Exception):
    """A catalogue file is wrong; nothing of it is used.

    Attributes:
        problems: All that is wrong, in the order of the lines.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(map(str, self.problems)))


@dataclass(slots=True)
class Place:
    """Where an entry and its keys were written down.

    Attributes:
        file: Name of the file.
        line: Where the entry begins.
        key: Path of the entry.
        lines: Lines of its keys, by their dotted names.
    """

    file: str
    line: int
    key: str
    lines: dict[str, int] = field(default_factory=dict)

    def problem(self, name: str, description: str) -> Problem:
        """A problem of a key of the entry; of the whole entry if the name is empty."""
        return Problem(
            self.file,
            self.lines.get(name, self.line),
            f"{self.key}.{name}" if name else self.key,
            description,
        )
