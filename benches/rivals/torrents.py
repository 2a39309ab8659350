"""BitTorrent clients: libtorrent, aria2 and rqbit, and what they need: torrents and a tracker.

A case with several files is as many torrents, as it is as many downloads of mtq.  Pieces have mtq's
size.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cases import Case, copy_sources
from stage import RUN_LIMIT, START_LIMIT, Failed, Process, Stage
from system import (
    Copies,
    System,
    copies_in,
    free_ports,
    new_directories,
    program,
    run_all,
    wait_for_port,
    without,
)

PIECE = 512 * 1024


Value = int | bytes | dict[bytes, "Value"]
"""What torrents and the answers of trackers consist of."""


def bencode(value: Value) -> bytes:
    """The encoding of BitTorrent."""
    match value:
        case int():
            return b"i%de" % value
        case bytes():
            return b"%d:%b" % (len(value), value)
        case dict():
            inner = (bencode(key) + bencode(value[key]) for key in sorted(value))
            return b"d" + b"".join(inner) + b"e"


def make_torrents(
    sources: Sequence[Path], directory: Path, *, announce: str = "", root: bytes = b""
) -> list[Path]:
    """A torrent of each file; `root` is the certificate of those who may take part over TLS."""
    directory.mkdir(parents=True, exist_ok=True)
    made = []
    for source in sources:
        pieces = bytearray()
        with source.open("rb") as file:
            while piece := file.read(PIECE):
                pieces += hashlib.sha1(piece).digest()
        info: dict[bytes, Value] = {
            b"name": source.name.encode(),
            b"length": source.stat().st_size,
            b"piece length": PIECE,
            b"pieces": bytes(pieces),
        }
        if root:
            info[b"ssl-cert"] = root
        torrent: dict[bytes, Value] = {b"info": info}
        if announce:
            torrent[b"announce"] = announce.encode()
        path = directory / f"{source.name}.torrent"
        path.write_bytes(bencode(torrent))
        made.append(path)
    return made


class Libtorrent(System):
    """libtorrent from PyPI, each session in a process of its own."""

    def __init__(self, name: str, python: str, *, over_tls: bool) -> None:
        self.name = name
        self.wire = "TLS, both certified" if over_tls else "plain TCP"
        self.checks = "SHA-1"
        self.python = python
        self.over_tls = over_tls

    def missing(self) -> str | None:
        found = subprocess.run(
            [self.python, "-c", "import libtorrent"], capture_output=True, check=False
        )
        if found.returncode != 0:
            return "libtorrent not found: pip install libtorrent, or --python PATH of one with it"
        return without("openssl", hint="apt install openssl") if self.over_tls else None

    def prepare(self, case: Case, sources: Sequence[Path], stage: Stage, home: Path) -> None:
        if self.over_tls:
            certify(stage, home)
        root = (home / "root.pem").read_bytes() if self.over_tls else b""
        make_torrents(sources, home, root=root)

    def run(self, case: Case, sources: Sequence[Path], stage: Stage, home: Path) -> Copies:
        ports = free_ports(case.givers + case.takers)
        given = ports[: case.givers]
        torrents = [home / f"{source.name}.torrent" for source in sources]
        for port in given:
            giver = self.peer(stage, home, "giver", port, torrents, sources[0].parent, [])
            giver.expect("^ready$", START_LIMIT)
        places = new_directories(stage, case)
        takers = []
        for port, place in zip(ports[case.givers :], places, strict=True):
            # Each knows those who came before it, as from a tracker.
            known = [other for other in ports[case.givers :] if other < port]
            takers.append(self.peer(stage, home, "taker", port, torrents, place, given + known))
        for taker in takers:
            taker.expect("^ready$", START_LIMIT)
        with stage.timed():
            for taker in takers:
                taker.say("go")
            for taker in takers:
                taker.expect("^done$", RUN_LIMIT)
        return copies_in(places, sources)

    def peer(
        self,
        stage: Stage,
        home: Path,
        role: str,
        port: int,
        torrents: Sequence[Path],
        place: Path,
        peers: Sequence[int],
    ) -> Process:
        """Starts a session."""
        identity = ["peer.pem", "peer.key", "parameters.pem"]
        task = {
            "role": role,
            "port": port,
            "torrents": [str(path) for path in torrents],
            "place": str(place),
            "peers": peers,
            "identity": [str(home / name) for name in identity] if self.over_tls else None,
        }
        child = Path(__file__).with_name("libtorrent_peer.py")
        return stage.start(role, self.python, child, json.dumps(task), talks=True)


def certify(stage: Stage, home: Path) -> None:
    """Makes a root certificate, and one by it that all peers show to each other."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    stage.call(
        "openssl", "req", "-x509", *key, "-keyout", home / "root.key", "-out", home / "root.pem",
        "-days", "2", "-subj", "/CN=root",
    )  # fmt: skip
    stage.call(
        "openssl", "req", "-x509", *key, "-keyout", home / "peer.key", "-out", home / "peer.pem",
        "-days", "2", "-subj", "/CN=*", "-addext", "subjectAltName=DNS:*",
        "-CA", home / "root.pem", "-CAkey", home / "root.key",
    )  # fmt: skip
    stage.call("openssl", "dhparam", "-dsaparam", "-out", home / "parameters.pem", "2048")


class Tracker:
    """A tracker of BitTorrent over HTTP, in a thread: tells everybody of everybody else."""

    def __init__(self) -> None:
        self._peers: dict[str, set[int]] = {}
        tracker = self

        class Handler(BaseHTTPRequestHandler):
            """Answers announces."""

            def do_GET(self) -> None:
                answer = bencode(tracker.announce(urlsplit(self.path).query))
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        class Server(ThreadingHTTPServer):
            """Whoever does not wait for an answer is told nothing, and nothing is told of them."""

            def handle_error(self, *_: object) -> None:
                """Says nothing."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/announce"
        self._changed = threading.Condition()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def announce(self, query: str) -> Value:
        """Notes who asks, and tells of the others."""
        asked = parse_qs(query, encoding="latin-1")
        port = int(asked["port"][0])
        with self._changed:
            peers = self._peers.setdefault(asked["info_hash"][0], set())
            others = sorted(peers - {port})
            if asked.get("event") == ["stopped"]:
                peers.discard(port)
            else:
                peers.add(port)
            self._changed.notify_all()
        known = b"".join(b"\x7f\x00\x00\x01" + other.to_bytes(2, "big") for other in others)
        return {b"interval": 1800, b"min interval": 1, b"peers": known}

    def forget(self) -> None:
        """Knows nobody any more."""
        with self._changed:
            self._peers.clear()

    def wait_for(self, peers: int, torrents: int) -> bool:
        """Waits until each of the torrents has so many peers."""

        def all_there() -> bool:
            full = [ports for ports in self._peers.values() if len(ports) >= peers]
            return len(full) == torrents

        with self._changed:
            return self._changed.wait_for(all_there, START_LIMIT)


class Aria2(System):
    """aria2c, which finds its peers through a tracker only."""

    name = "aria2"
    wire = "plain TCP"
    checks = "SHA-1"

    OPTIONS = (
        "--no-conf", "--interface=127.0.0.1", "--enable-dht=false", "--enable-dht6=false",
        "--bt-enable-lpd=false", "--enable-peer-exchange=false", "--disable-ipv6=true",
        "--file-allocation=none", "--disk-cache=64M", "--bt-request-peer-speed-limit=1024M",
        "--bt-max-peers=0", "--summary-interval=0", "--show-console-readout=false",
        "--enable-color=false", "--console-log-level=notice", "--max-concurrent-downloads=64",
    )  # fmt: skip

    def __init__(self) -> None:
        self.tracker: Tracker | None = None

    def missing(self) -> str | None:
        return without("aria2c", hint="apt install aria2")

    def prepare(self, case: Case, sources: Sequence[Path], stage: Stage, home: Path) -> None:
        self.tracker = self.tracker or Tracker()
        make_torrents(sources, home, announce=self.tracker.url)

    def run(self, case: Case, sources: Sequence[Path], stage: Stage, home: Path) -> Copies:
        assert self.tracker is not None
        self.tracker.forget()
        torrents = [home / f"{source.name}.torrent" for source in sources]
        for port in free_ports(case.givers):
            self.peer(
                stage, "giver", sources[0].parent, torrents, port,
                "--bt-seed-unverified=true", "--seed-ratio=0",
            )  # fmt: skip
        if not self.tracker.wait_for(case.givers, len(torrents)):
            raise Failed("not all givers announced themselves")
        places = new_directories(stage, case)
        ports = free_ports(case.takers)
        with stage.timed():
            takers = [
                self.peer(
                    stage, "taker", place, torrents, port, "--seed-time=0",
                    "--on-bt-download-complete=/bin/echo",
                )
                for place, port in zip(places, ports, strict=True)
            ]  # fmt: skip
            for taker in takers:
                for _ in torrents:
                    # What echo is given of each; the client's own end comes seconds later.
                    taker.expect(r"^[0-9a-f]{16} 1 /", RUN_LIMIT)
        run_all(takers)
        return copies_in(places, sources)

    def peer(
        self, stage: Stage, role: str, place: Path, torrents: Sequence[Path], port: int, *more: str
    ) -> Process:
        """Starts a client."""
        return stage.start(
            role, program("aria2c"), *self.OPTIONS, *more, f"--listen-port={port}",
            f"--dir={place}", *torrents, talks=True,
        )  # fmt: skip


class Rqbit(System):
    """rqbit, each client told of its peers."""

    name = "rqbit"
    wire = "plain TCP"
    checks = "SHA-1"

    def missing(self) -> str | None:
        return without("rqbit", hint="cargo install --locked rqbit")

    def prepare(self, case: Case, sources: Sequence[Path], stage: Stage, home: Path) -> None:
        make_torrents(sources, home)
        # It opens what it gives for writing and sets its length, which mtq takes for a change.
        copy_sources(sources, home / "given")

    def run(self, case: Case, sources: Sequence[Path], stage: Stage, home: Path) -> Copies:
        torrents = [home / f"{source.name}.torrent" for source in sources]
        given = free_ports(case.givers)
        for port in given:
            giver = self.peer(stage, "giver", home / "given", torrents, port, "--overwrite")
            wait_for_port(giver, port)
            for _ in torrents:
                giver.expect("Initial check results: have", RUN_LIMIT)
        places = new_directories(stage, case)
        ports = free_ports(case.takers)
        peers = ",".join(f"127.0.0.1:{port}" for port in given)
        with stage.timed():
            takers = [
                self.peer(
                    stage, "taker", place, torrents, port, "--initial-peers", peers,
                    "--exit-on-finish",
                )
                for place, port in zip(places, ports, strict=True)
            ]  # fmt: skip
            for taker in takers:
                # Its end comes up to a second later.
                taker.expect("All downloads completed", RUN_LIMIT)
        run_all(takers)
        return copies_in(places, sources)

    def peer(
        self, stage: Stage, role: str, place: Path, torrents: Sequence[Path], port: int, *more: str
    ) -> Process:
        """Starts a client."""
        return stage.start(
            role, program("rqbit"), "--disable-dht", "--disable-lsd", "--disable-trackers",
            "--disable-upnp-port-forward", "--ipv4-only", "--listen-ip", "127.0.0.1",
            "--listen-port", str(port), "--concurrent-init-limit", "64", "download",
            "--disable-http-api", "--output-folder", place, *more, *torrents, talks=True,
        )  # fmt: skip
