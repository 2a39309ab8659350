"""mtq: a tracker, an agent for each giver and taker, and one `mtq client get --wait` a file."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cases import Case
from stage import START_LIMIT, Failed, Process, Stage
from system import Copies, System, copies_in, free_ports, new_directories, run_all

GROUP = "public"
PASSWORD = {"MTQ_PASSWORD": "correct horse battery"}


class Mtq(System):
    """Real `mtq` processes, as a user starts them."""

    wire = "QUIC, AES-128-GCM"
    checks = "SHA-1, BLAKE3, synced"

    def __init__(self, name: str, binary: Path, *options: str) -> None:
        self.name = name
        self.binary = binary
        self.options = options

    def missing(self) -> str | None:
        if self.binary.is_file():
            return None
        return f"{self.binary} not found: cargo build --release, or --mtq PATH"

    def prepare(self, case: Case, sources: Sequence[Path], stage: Stage, home: Path) -> None:
        port = free_ports(1, socket.SOCK_DGRAM)[0]
        stage.call(self.binary, "certs", "--out", home / "net", f"127.0.0.1:{port}")
        self.start(case, stage, home, first=True)
        for giver in givers(case):
            for source in sources:
                metafile = home / giver / f"{source.name}.mtorrent"
                self.ask(stage, home, giver, "share", source, GROUP, "--mtorrent", metafile)

    def run(self, case: Case, sources: Sequence[Path], stage: Stage, home: Path) -> Copies:
        self.start(case, stage, home)
        for taker in takers(case):
            self.wait_for_givers(case, stage, home, taker)
        places = new_directories(stage, case)
        pairs = list(zip(takers(case), places, strict=True))
        with stage.timed():
            run_all(
                [
                    self.get(stage, home, taker, source.name, place)
                    for taker, place in pairs
                    for source in sources
                ]
            )
        # The next run asks for the same files again.
        for taker in takers(case):
            for source in sources:
                self.ask(stage, home, taker, "stop-share", GROUP, source.name)
        return copies_in(places, sources)

    def start(self, case: Case, stage: Stage, home: Path, *, first: bool = False) -> None:
        """Starts the tracker and all agents, and waits until everybody is logged in."""
        info = home / "net" / "tracker_info.txt"
        identity = home / "net" / "tracker1.pem"
        stage.start(
            "tracker", self.binary, "tracker", "--trackers", info, "--identity", identity,
            "--data-dir", home / "tracker",
        )  # fmt: skip
        for role, names in (("giver", givers(case)), ("taker", takers(case))):
            for name in names:
                agent = stage.start(
                    role, self.binary, "client", "daemon", "--data-dir", home / name,
                    "--trackers", info, "--listen", "127.0.0.1:0", *self.options, talks=True,
                )  # fmt: skip
                agent.expect("the agent is up", START_LIMIT)
                if first:
                    self.ask(stage, home, name, "create-user", name)
                    self.ask(stage, home, name, "login", name)
                self.wait_for_login(stage, home, name)

    def ask(self, stage: Stage, home: Path, who: str, *words: str | Path) -> dict[str, Any]:
        """Has an agent do one command, and gives its result."""
        printed = stage.call(
            self.binary, "client", "--data-dir", home / who, *words, "--json", env=PASSWORD
        )
        result: dict[str, Any] = json.loads(printed)["result"]
        return result

    def get(self, stage: Stage, home: Path, who: str, file: str, place: Path) -> Process:
        """Starts a command that ends when the file is complete."""
        return stage.start(
            "taker", self.binary, "client", "--data-dir", home / who, "get", GROUP, file, place,
            "--wait", "--json",
        )  # fmt: skip

    def wait_for_login(self, stage: Stage, home: Path, who: str) -> None:
        """Waits until an agent is logged in, as it is by itself when it comes back."""
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline:
            trackers = self.ask(stage, home, who, "status")["trackers"]
            if any(tracker["in_use"] and tracker["logged_in"] for tracker in trackers):
                return
            time.sleep(0.02)
        raise Failed(f"{who} is not logged in")

    def wait_for_givers(self, case: Case, stage: Stage, home: Path, who: str) -> None:
        """Waits until an agent is told that all givers have all files."""
        deadline = time.monotonic() + START_LIMIT
        while time.monotonic() < deadline:
            files = self.ask(stage, home, who, "list-files", GROUP)["files"]
            ready = [file for file in files if file["seeders"] >= case.givers]
            if len(ready) == case.files:
                return
            time.sleep(0.02)
        raise Failed(f"{who} does not see {case.givers} givers of each file")


def givers(case: Case) -> list[str]:
    """The users who share."""
    return [f"giver{index}" for index in range(case.givers)]


def takers(case: Case) -> list[str]:
    """The users who download."""
    return [f"taker{index}" for index in range(case.takers)]
