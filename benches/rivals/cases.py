"""What is moved: the cases, their files, and whether what arrived is what was sent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
CHUNK = 4 * MIB


@dataclass(frozen=True)
class Case:
    """Who gives how many files of which size to whom."""

    name: str
    givers: int
    takers: int
    files: int
    size: int
    """Bytes of each file."""

    @property
    def total(self) -> int:
        """Bytes that arrive."""
        return self.takers * self.files * self.size

    @property
    def title(self) -> str:
        """In words."""
        what = f"{self.size / MIB:,.0f} MiB"
        if self.files > 1:
            what = f"{self.files} files of {what}"
        return f"{self.givers} -> {self.takers}, {what}{' each' if self.takers > 1 else ''}"

    def scaled(self, factor: float) -> Case:
        """The same with smaller files, of whole MiB."""
        size = max(1, round(self.size * factor / MIB)) * MIB
        return Case(self.name, self.givers, self.takers, self.files, size)


CASES = (
    Case("one", givers=1, takers=1, files=1, size=1024 * MIB),
    Case("three", givers=3, takers=1, files=1, size=1024 * MIB),
    Case("four", givers=1, takers=4, files=1, size=256 * MIB),
    Case("eight", givers=1, takers=1, files=8, size=128 * MIB),
)


def make_sources(directory: Path, case: Case) -> list[Path]:
    """The files of a case, alone in `directory`: random bytes, on the disk and in memory."""
    directory.mkdir(parents=True)
    paths = [directory / f"{case.name}-{index}.bin" for index in range(case.files)]
    for path in paths:
        with path.open("wb") as file:
            for _ in range(0, case.size, CHUNK):
                file.write(os.urandom(min(CHUNK, case.size - file.tell())))
            file.flush()
            # What is on the disk already is not written back in the middle of a measurement.
            os.fsync(file.fileno())
    return paths


def copy_sources(sources: Sequence[Path], directory: Path) -> None:
    """Copies for a program that does not leave its files alone, on the disk and in memory too."""
    directory.mkdir()
    for source in sources:
        with source.open("rb") as original, (directory / source.name).open("wb") as copy:
            shutil.copyfileobj(original, copy, CHUNK)
            copy.flush()
            os.fsync(copy.fileno())


def touch_memory(directory: Path, size: int) -> None:
    """Writes `size` bytes and deletes them, so that every run finds memory as warm as the next.

    Virtual machines give free pages back to their host; writing to such a page for the first time
    takes much longer than to one that was just freed.
    """
    path = directory / "warmth"
    data = bytes(CHUNK)
    with path.open("wb", buffering=0) as file:
        for _ in range(0, size, CHUNK):
            file.write(data)
    path.unlink()


def check(copies: Sequence[tuple[Path, Path]]) -> str | None:
    """What is wrong with the copies, each given with its source; None when nothing is."""
    for source, copy in copies:
        if not copy.is_file():
            return f"{copy.name} did not arrive"
        if copy.stat().st_size != source.stat().st_size:
            return f"{copy.name} has another size than its source"
        with source.open("rb") as one, copy.open("rb") as other:
            while chunk := one.read(CHUNK):
                if chunk != other.read(CHUNK):
                    return f"{copy.name} differs from its source"
    return None


def remove(directory: Path) -> None:
    """Deletes a directory with all there is in it, if there is one."""
    shutil.rmtree(directory, ignore_errors=True)
