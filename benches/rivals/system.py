"""What every system can do: say what it lacks, prepare a case, run it once."""

from __future__ import annotations

import shutil
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from cases import Case
from stage import START_LIMIT, Failed, Process, Stage

Copies = list[tuple[Path, Path]]
"""Each source with the copy of it that a run made."""


class System(ABC):
    """A way to move files."""

    name: str
    wire: str
    """What protects the bytes on their way, in a word or two."""
    checks: str
    """What is verified before it calls a file complete."""
    swarms = True
    """Whether one taker can take from several givers at once."""

    @abstractmethod
    def missing(self) -> str | None:
        """What is not installed, and how to install it; None when it can run."""

    @abstractmethod
    def prepare(self, case: Case, sources: Sequence[Path], stage: Stage, home: Path) -> None:
        """Makes in `home` what all runs of a case need.  Not timed."""

    @abstractmethod
    def run(self, case: Case, sources: Sequence[Path], stage: Stage, home: Path) -> Copies:
        """Starts everything afresh and moves the files once, inside `stage.timed()`.

        Only what a user waits for after asking for the files is inside: those who give are up and
        have hashed them, those who take are up too where they are programs that stay.
        """


def without(*programs: str, hint: str) -> str | None:
    """`hint`, when one of the programs is not installed."""
    lacking = [program for program in programs if find(program) is None]
    return f"{', '.join(lacking)} not found: {hint}" if lacking else None


def find(program: str) -> str | None:
    """The path of a program, also of those for administrators."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin:/sbin")


def program(name: str) -> str:
    """The path of a program that is installed."""
    path = find(name)
    if path is None:
        raise Failed(f"{name} is not installed any more")
    return path


def free_ports(count: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> list[int]:
    """Ports of the loopback address that nobody uses now."""
    sockets = [socket.socket(socket.AF_INET, kind) for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def wait_for_port(process: Process, port: int) -> None:
    """Waits until the process accepts connections."""
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        if not process.running:
            raise Failed(f"{process.name} did not start: {process.last_words()}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise Failed(f"{process.name} does not listen: {process.last_words()}")


def new_directories(stage: Stage, case: Case) -> list[Path]:
    """An empty directory for each taker."""
    made = [stage.home / f"taken-{index}" for index in range(case.takers)]
    for directory in made:
        directory.mkdir()
    return made


def copies_in(directories: Sequence[Path], sources: Sequence[Path]) -> Copies:
    """Every source with its copy of the same name in every directory."""
    return [(source, place / source.name) for place in directories for source in sources]


def run_all(processes: Sequence[Process]) -> None:
    """Waits for the end of them all."""
    for process in processes:
        process.wait()
