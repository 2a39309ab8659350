"""How soon a warm mtq client has something: a small file, and the first piece of a larger one.

Both agents run, are logged in and have exchanged a file before.  Times include the one-shot
process, from its start to its end; that of the first piece is from the start of the process to the
first answer of the agent that tells of verified bytes.  It is asked about once a millisecond,
through its control socket, so this is an upper bound.
"""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

from cases import MIB, Case, check, make_sources
from mtq import GROUP, Mtq, takers
from stage import RUN_LIMIT, START_LIMIT, Failed, Process, Stage

REPEATS = 20
ASK_EVERY = 0.0005
"""Seconds between an answer and the next question."""

SMALL, PIECE, LARGE = 1024, 512 * 1024, 16 * MIB


def measure(mtq: Mtq, stage: Stage, home: Path) -> dict[str, list[float]]:
    """Milliseconds of every repeat, by what was waited for."""
    small, piece, large = (
        Case(name, givers=1, takers=1, files=REPEATS + 1, size=size)
        for name, size in (("small", SMALL), ("piece", PIECE), ("large", LARGE))
    )
    sources = {case: make_sources(home / case.name, case) for case in (small, piece, large)}
    every = [source for paths in sources.values() for source in paths]
    mtq.prepare(small, every, stage, home)
    (taker,) = takers(small)
    place = home / "taken"
    place.mkdir()
    wait_until_listed(mtq, stage, home, taker, len(every))

    def command(*words: str) -> float:
        started = time.monotonic()
        stage.call(mtq.binary, "client", "--data-dir", home / taker, *words, "--json")
        return (time.monotonic() - started) * 1000

    def whole(source: Path) -> float:
        started = time.monotonic()
        mtq.get(stage, home, taker, source.name, place).wait()
        return (time.monotonic() - started) * 1000

    def first_piece(source: Path) -> float:
        with Agent(home / taker / "control.sock") as agent:
            started = time.monotonic()
            get = mtq.get(stage, home, taker, source.name, place)
            arrived = agent.wait_for_bytes(source.name, get)
            get.wait()
        return (arrived - started) * 1000

    rows = {
        "a command that does nothing (whoami)": [command("whoami") for _ in range(REPEATS + 1)],
        "1 KiB, whole": [whole(source) for source in sources[small]],
        "512 KiB (one piece), whole": [whole(source) for source in sources[piece]],
        "16 MiB, first verified piece": [first_piece(source) for source in sources[large]],
    }
    if fault := check([(source, place / source.name) for source in every]):
        raise Failed(fault)
    # The first of each row does not count.
    return {what: times[1:] for what, times in rows.items()}


def wait_until_listed(mtq: Mtq, stage: Stage, home: Path, taker: str, count: int) -> None:
    """Waits until the taker is told of a giver of every file."""
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        files = mtq.ask(stage, home, taker, "list-files", GROUP)["files"]
        if len([file for file in files if file["seeders"]]) == count:
            return
        time.sleep(0.02)
    raise Failed(f"{taker} does not see all files")


class Agent:
    """A connection to the control socket of an agent."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(START_LIMIT)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("r")
        self._lines.readline()  # the greeting

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def wait_for_bytes(self, name: str, get: Process) -> float:
        """The time at which the agent first says that it has verified bytes of a file."""
        question = json.dumps({"args": ["peers", GROUP, name]}).encode() + b"\n"
        deadline = time.monotonic() + RUN_LIMIT
        while time.monotonic() < deadline:
            self._socket.sendall(question)
            answer = json.loads(self._lines.readline())
            now = time.monotonic()
            # Until the download has begun, the agent knows nothing of this name.
            rows = answer["result"]["downloads"] if answer["ok"] else []
            if any(row["stored_bytes"] for row in rows):
                return now
            time.sleep(ASK_EVERY)
        raise Failed(f"{name}: no piece in {RUN_LIMIT:.0f} s: {get.last_words()}")
