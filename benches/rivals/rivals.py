#!/usr/bin/env python3
"""mtq beside other programs that move files: the same files, the same machine, in turns.

See README.md in this directory for what is measured and how each program is set.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import latency
from cases import CASES, MIB, Case, check, make_sources, remove, touch_memory
from copiers import Nginx, Scp, Sendme
from mtq import Mtq
from stage import INTERRUPTS, Failed, Figures, Stage
from system import System
from torrents import Aria2, Libtorrent, Rqbit

GIB = 1 << 30
ROOT = Path(__file__).resolve().parents[2]
WARM_UP = 1 / 16
"""The part of the sizes that is moved in the round that does not count."""

Runs = dict[str, list[Figures]]


def main() -> int:
    """Runs what the command line asks for; the exit status."""
    options = arguments()
    INTERRUPTS.catch()
    try:
        run(options)
    except KeyboardInterrupt:
        return 130
    return 0


def run(options: argparse.Namespace) -> None:
    """Measures in a directory that is gone afterwards, and keeps the figures there are."""
    systems = chosen_systems(options)
    results: dict[str, Any] = {"rounds": options.rounds, "size": options.size, "cases": {}}
    work = Path(tempfile.mkdtemp(prefix="mtq-rivals-", dir=options.dir)).resolve()
    try:
        say_where(work, options)
        measure(options, systems, work, results)
    finally:
        with INTERRUPTS.held():
            remove(work)
            if options.json:
                options.json.write_text(json.dumps(results, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    """The command line."""
    names = [case.name for case in CASES]
    parser = argparse.ArgumentParser(
        description="Compares mtq with other programs that move files, on this machine.",
        epilog="cases: " + "; ".join(f"{case.name}: {case.title}" for case in CASES)
        + "; latency: of mtq alone",
    )  # fmt: skip
    parser.add_argument(
        "--case", action="append", choices=[*names, "latency"], metavar="NAME",
        help="one case; may be given several times (default: all)",
    )  # fmt: skip
    parser.add_argument("--systems", metavar="A,B", help="only these (default: all there are)")
    parser.add_argument("--rounds", type=int, default=5, help="that count (default: 5)")
    parser.add_argument(
        "--size", type=size_factor, default=1.0, metavar="FACTOR",
        help="a factor for all sizes, or small, which is 1/16",
    )  # fmt: skip
    parser.add_argument(
        "--mtq", type=Path, default=ROOT / "target" / "release" / "mtq", metavar="PATH",
        help="the program (default: target/release/mtq)",
    )  # fmt: skip
    parser.add_argument(
        "--python", default=sys.executable, metavar="PATH", help="a Python that has libtorrent",
    )  # fmt: skip
    parser.add_argument(
        "--dir", type=Path, help="where everything happens (default: the system's temporary)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure here")
    options = parser.parse_args()
    options.mtq = options.mtq.resolve()
    if os.sep in options.python:
        # Not resolved: the link is what makes a Python that of a virtual environment.
        options.python = str(Path(options.python).absolute())
    return options


def size_factor(text: str) -> float:
    """What `--size` says."""
    factor = 1 / 16 if text == "small" else float(text)
    if not 0 < factor <= 64:
        raise argparse.ArgumentTypeError("a factor is over 0 and at most 64")
    return factor


def chosen_systems(options: argparse.Namespace) -> list[System]:
    """The systems to run, those left out that are not installed."""
    every: list[System] = [
        Mtq("mtq", options.mtq),
        Mtq("mtq-8952", options.mtq, "--max-mtu", "8952"),
        Mtq("mtq-1452", options.mtq, "--max-mtu", "1452"),
        Libtorrent("libtorrent", options.python, over_tls=False),
        Libtorrent("libtorrent-ssl", options.python, over_tls=True),
        Aria2(),
        Rqbit(),
        Sendme(),
        Nginx(),
        Scp(),
    ]
    names = [system.name for system in every]
    wanted = options.systems.split(",") if options.systems else names
    if unknown := set(wanted) - set(names):
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    found = []
    for system in every:
        if system.name not in wanted:
            continue
        if reason := system.missing():
            print(f"without {system.name}: {reason}")
        else:
            found.append(system)
    return found


def say_where(work: Path, options: argparse.Namespace) -> None:
    """Says what the figures are of, and warns of what would spoil them."""
    kind = file_system(work)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}, {kind}")
    if kind == "tmpfs":
        print("the directory is in memory (tmpfs): nothing reaches a disk; --dir gives another")
    needed, free = int(5 * GIB * options.size), shutil.disk_usage(work).free
    if free < needed:
        print(f"only {free / GIB:.1f} GiB are free, {needed / GIB:.1f} may be needed: --dir")
    if os.getloadavg()[0] > 0.5:
        print(f"other work runs here (load {os.getloadavg()[0]:.1f}): figures will be off")


def file_system(path: Path) -> str:
    """The kind of file system a directory is on."""
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if path.is_relative_to(where) and len(where) >= len(best[0]):
            best = (where, kind)
    return best[1]


def environment(work: Path) -> dict[str, str]:
    """The user's environment without what would change how a program behaves."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MTQ_", "RQBIT_", "XDG_", "IROH_", "RUST_LOG"))
        and not name.lower().endswith("_proxy")
    }
    places = {"XDG_CONFIG_HOME": "config", "XDG_DATA_HOME": "data", "XDG_CACHE_HOME": "cache"}
    return kept | {name: str(work / "xdg" / place) for name, place in places.items()}


def measure(
    options: argparse.Namespace, systems: Sequence[System], work: Path, results: dict[str, Any]
) -> None:
    """Runs all chosen cases, and prints a table of each, also of one that is interrupted."""
    env = environment(work)
    for case in CASES:
        if options.case and case.name not in options.case:
            continue
        able = [one for one in systems if one.swarms or case.givers == 1]
        scaled = case.scaled(options.size)
        print(f"\n{case.name}: {scaled.title}", flush=True)
        runs: Runs = {system.name: [] for system in able}
        try:
            compare(scaled, able, options.rounds, work, env, runs)
        finally:
            print_table(scaled, able, runs)
            results["cases"][case.name] = {
                "bytes": scaled.total,
                "runs": {name: [asdict(one) for one in figures] for name, figures in runs.items()},
            }
    mtq = next((one for one in systems if isinstance(one, Mtq)), None)
    if mtq and (not options.case or "latency" in options.case):
        results["latency_ms"] = run_latency(mtq, work, env)


def compare(
    case: Case,
    systems: Sequence[System],
    rounds: int,
    work: Path,
    env: dict[str, str],
    runs: Runs,
) -> None:
    """Adds to `runs` the figures of every round, after a small one that does not count."""
    small = case.scaled(WARM_UP)
    uncounted: Runs = {system.name: [] for system in systems}
    able = run_rounds(small, systems, 1, work / "warm", env, uncounted)
    run_rounds(case, able, rounds, work / "case", env, runs)


def run_rounds(
    case: Case,
    systems: Sequence[System],
    rounds: int,
    work: Path,
    env: dict[str, str],
    runs: Runs,
) -> list[System]:
    """Runs all systems in turns, another one first each round; gives those that did not fail."""
    sources = make_sources(work / "sources", case)
    times = [source.stat().st_mtime_ns for source in sources]
    waiting = list(systems)

    def attempt(system: System, what: str, home: Path) -> Figures | None:
        stage = Stage(home, env)
        try:
            if what == "prepare":
                system.prepare(case, sources, stage, work / system.name)
                return None
            touch_memory(work, case.total * 5 // 4)
            copies = system.run(case, sources, stage, work / system.name)
            stage.close()
            if fault := check(copies):
                raise Failed(fault)
            if times != [source.stat().st_mtime_ns for source in sources]:
                raise Failed("it wrote to the files all others give too")
            return stage.figures
        except (Failed, OSError) as error:
            print(f"  {system.name} is out: {error}", flush=True)
            waiting.remove(system)
            return None
        finally:
            stage.close()
            remove(home)

    try:
        for system in systems:
            (work / system.name).mkdir()
            attempt(system, "prepare", work / "stage")
        for number in range(rounds):
            turn = number % max(1, len(waiting))
            for system in waiting[turn:] + waiting[:turn]:
                if figures := attempt(system, "run", work / "stage"):
                    runs[system.name].append(figures)
        return waiting
    finally:
        remove(work)


def print_table(case: Case, systems: Sequence[System], runs: Runs) -> None:
    """Prints the medians, with the ratios of mtq's to each."""
    rates = {
        name: [case.total / 1e6 / one.seconds for one in figures]
        for name, figures in runs.items()
        if figures
    }
    if not rates:
        return
    bases = [name for name in ("mtq", "mtq-8952", "mtq-1452") if name in rates]
    head = ["system", "wire", "verified", "MB/s", "range", *(f"{base} is" for base in bases)]
    head += ["CPU s/GiB: giver", "taker", "all", "peak MiB: giver", "taker"]
    rows = [head]
    for system in systems:
        if system.name not in rates:
            continue
        mine, figures = rates[system.name], runs[system.name]
        rate = statistics.median(mine)
        row = [system.name, system.wire, system.checks, f"{rate:.0f}"]
        row.append(f"{min(mine):.0f}-{max(mine):.0f}")
        row += [f"{statistics.median(rates[base]) / rate:.2f} x" for base in bases]
        gib = case.total / GIB
        for roles in (["giver"], ["taker"], ["giver", "taker", "tracker"]):
            costs = [sum(one.cpu.get(role, 0.0) for role in roles) / gib for one in figures]
            row.append(f"{statistics.median(costs):.2f}")
        for role in ("giver", "taker"):
            row.append(f"{max(one.peak.get(role, 0) for one in figures) / MIB:.0f}")
        rows.append(row)
    print_rows(rows)


def run_latency(mtq: Mtq, work: Path, env: dict[str, str]) -> dict[str, list[float]]:
    """Measures how soon a warm client answers, and prints it."""
    print(f"\nlatency: of {mtq.name} on a warm client, {latency.REPEATS} times each", flush=True)
    home = work / "latency"
    stage = Stage(home / "stage", env)
    try:
        times = latency.measure(mtq, stage, home)
    except Failed as error:
        print(f"  {mtq.name} is out: {error}")
        return {}
    finally:
        stage.close()
        remove(home)
    rows = [["what", "median ms", "range"]]
    for what, taken in times.items():
        median = statistics.median(taken)
        rows.append([what, f"{median:.1f}", f"{min(taken):.1f}-{max(taken):.1f}"])
    print_rows(rows)
    return times


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Prints a table as Markdown that is also readable as it stands."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for index, row in enumerate(rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("| " + " | ".join(cells) + " |")
        if index == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
