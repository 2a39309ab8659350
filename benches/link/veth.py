#!/usr/bin/env python3
"""A download through a veth pair with a rate: two network namespaces, an MTU of 1500, tbf or htb.

    sudo benches/link/veth.py [--mtq target/release/mtq] [--rate 1000] [--qdisc tbf|htb] [--size 2048]

Needs root, iproute2 (`ip`, `tc`) and Linux; makes two namespaces named after its process and removes them
again. The tracker and the seeder are in one, the leecher in the other. The kernel paces both directions to
--rate Mbit/s, counting Ethernet, IP and UDP headers, so that the most a file can come at is the payload's
part of that: of 1,514 bytes about 1,433. Prints the download second by second, and what part of the rate
it had, counted as bytes of the file and as bytes on the wire.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

ADDRESSES = ("10.77.13.1", "10.77.13.2")
PORT = 4433


def sh(*words):
    subprocess.run(words, check=True)


class Pair:
    """Two namespaces and the wire between them."""

    def __init__(self, rate, qdisc):
        self.names = [f"mtq-{side}-{os.getpid()}" for side in "ab"]
        self.made = []
        for name in self.names:
            sh("ip", "netns", "add", name)
            self.made.append(name)
        sh("ip", "link", "add", "e0", "netns", self.names[0], "mtu", "1500", "type", "veth",
           "peer", "name", "e0", "netns", self.names[1])
        for name, address in zip(self.names, ADDRESSES):
            ip = ("ip", "-n", name)
            sh(*ip, "addr", "add", f"{address}/24", "dev", "e0")
            sh(*ip, "link", "set", "e0", "mtu", "1500", "up")
            sh(*ip, "link", "set", "lo", "up")
            tc = ("tc", "-n", name, "qdisc", "add", "dev", "e0")
            if qdisc == "tbf":
                # A burst of 2 ms at the full rate; what waits longer than 20 ms is dropped.
                burst = max(65536, rate * 1000 // 8 * 2)
                sh(*tc, "root", "tbf", "rate", f"{rate}mbit", "burst", str(burst), "latency", "20ms")
            else:
                sh(*tc, "root", "handle", "1:", "htb", "default", "1")
                sh("tc", "-n", name, "class", "add", "dev", "e0", "parent", "1:", "classid", "1:1",
                   "htb", "rate", f"{rate}mbit", "ceil", f"{rate}mbit")
                sh("tc", "-n", name, "qdisc", "add", "dev", "e0", "parent", "1:1", "bfifo",
                   "limit", str(rate * 1000 // 8 * 20))

    def sent(self):
        """Bytes and packets that the seeder's end has sent, and those it dropped, by its qdisc."""
        text = subprocess.run(["tc", "-n", self.names[0], "-s", "-j", "qdisc", "show", "dev", "e0"],
                              check=True, capture_output=True, text=True).stdout
        root = next(one for one in json.loads(text) if one.get("root"))
        return root["bytes"], root["packets"], root["drops"]

    def end(self):
        for name in self.made:
            subprocess.run(["ip", "netns", "del", name])


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mtq", default="target/release/mtq")
    parser.add_argument("--rate", type=int, default=1000, help="Mbit/s")
    parser.add_argument("--qdisc", choices=("tbf", "htb"), default="tbf")
    parser.add_argument("--size", type=int, default=2048, help="MiB")
    options = parser.parse_args()
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            sys.exit(f"veth: {tool} is not here; it comes with iproute2")
    if os.geteuid() != 0:
        sys.exit("veth: network namespaces need root")
    mtq = shutil.which(options.mtq)
    if mtq is None:
        sys.exit(f"veth: {options.mtq} is not here; cargo build --release makes it")
    mtq = os.path.abspath(mtq)
    running = []
    # Whoever ends this ends all of it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="mtq-veth-") as place:
        pair = Pair(options.rate, options.qdisc)
        try:
            play(mtq, pathlib.Path(place), pair, running, options)
        finally:
            for process in reversed(running):
                process.send_signal(signal.SIGTERM)
            for process in reversed(running):
                process.wait()
            pair.end()


def play(mtq, place, pair, running, options):
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MTQ_", "XDG_"))}
    env |= {"HOME": str(place), "MTQ_PASSWORD": "secret"}

    def words(side, *command):
        return ["ip", "netns", "exec", pair.names[side], mtq, *map(str, command)]

    def client(side, *command):
        return words(side, "client", "--data-dir", place / f"{side}.data", *command)

    def one(side, *command):
        done = subprocess.run(client(side, *command), env=env, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"veth: {command}: {done.stdout}{done.stderr}")

    def start(command, says):
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, text=True,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        running.append(process)
        for line in process.stderr:
            if says in line:
                # What else it says is read, or it would wait for a reader.
                threading.Thread(target=lambda: [None for _ in process.stderr], daemon=True).start()
                return
        sys.exit(f"veth: {command} ended")

    subprocess.run([mtq, "certs", "--out", place / "net", f"{ADDRESSES[0]}:{PORT}"], env=env,
                   check=True, capture_output=True)
    start(words(0, "tracker", "--identity", place / "net/tracker1.pem", "--trackers",
                place / "net/tracker_info.txt", "--data-dir", place / "tracker"), "tracker is up")
    for side in (0, 1):
        start(client(side, "daemon", "--trackers", place / "net/tracker_info.txt", "--listen",
                     f"{ADDRESSES[side]}:0"), "the agent is up")
    file, dest, size = place / "file.bin", place / "in", options.size << 20
    block = os.urandom(1 << 20)
    with open(file, "wb") as out:
        # Pieces that differ: those of zeros would never be fetched.
        for number in range(options.size):
            out.write(number.to_bytes(8, "little") + block[8:])
    dest.mkdir()
    for side, user in enumerate(("alice", "bob")):
        one(side, "create-user", user)
        one(side, "login", user)
    one(0, "create-group", "lab")
    one(1, "join-group", "lab")
    one(0, "accept-request", "lab", "bob")
    one(0, "share", file, "lab")

    samples = []
    events = subprocess.Popen(client(1, "events", "--progress", "--json"), env=env, text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    running.append(events)
    dropped = pair.sent()[2]
    begun = time.monotonic()
    samples.append((0.0, 0, pair.sent()[0]))

    def listen():
        for line in events.stdout:
            event = json.loads(line)
            items = event["items"] if event.get("event") == "progress" else []
            for done in [item["done_bytes"] for item in items if "done_bytes" in item][:1]:
                if samples[-1][1] < size:
                    samples.append((time.monotonic() - begun, done, pair.sent()[0]))

    threading.Thread(target=listen, daemon=True).start()
    one(1, "get", "lab", "file.bin", dest, "--wait")
    took = time.monotonic() - begun
    if samples[-1][1] < size:
        samples.append((took, size, pair.sent()[0]))
    report(samples, took, pair.sent()[2] - dropped, options)


def report(samples, took, dropped, options):
    link = options.rate * 1e6 / 8
    print(f"\n{options.qdisc} at {options.rate} Mbit/s, MTU 1500, {options.size} MiB")
    print("  second    MB/s   % of the rate   on the wire")
    last, rows = samples[0], []
    for sample in samples[1:]:
        if sample[0] - last[0] >= 1.0:
            span = sample[0] - last[0]
            rate, wire = (sample[1] - last[1]) / span, (sample[2] - last[2]) / span
            rows.append((rate, wire))
            print(f"  {sample[0]:>6.1f}{rate / 1e6:>8.1f}{100 * rate / link:>16.1f}{100 * wire / link:>14.1f}")
            last = sample
    rows.sort()
    middle = rows[len(rows) // 2] if rows else (0, 0)
    end, size, wire = samples[-1]
    print(f"  median second: {100 * middle[0] / link:.1f} % as bytes of the file, "
          f"{100 * middle[1] / link:.1f} % on the wire")
    print(f"  from the command to the last piece: {end:.2f} s, {100 * size / end / link:.1f} % and "
          f"{100 * (wire - samples[0][2]) / end / link:.1f} %; to the end of the file {took:.2f} s; "
          f"{dropped} packets dropped")


if __name__ == "__main__":
    main()
