"""One timed run: the processes that take part in it, and what they cost.

Processor time is counted for every process of a run and all that it starts, between the beginning
of the timed part and its end; memory is the highest resident size of any one process.  Whatever a
stage starts ends with it, also when the run fails or is interrupted; each process is ended by its
id.
"""

from __future__ import annotations

import os
import queue
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")

START_LIMIT = 60.0
"""Seconds within which a process is ready, or never."""

RUN_LIMIT = 300.0
"""Seconds within which a transfer is complete, or never."""

END_LIMIT = 5.0
"""Seconds a process has to end once it was told to, before it is killed."""

SAMPLE_EVERY = 0.1
"""Seconds between two looks at the memory; the kernel keeps the peak in between."""


class Failed(Exception):
    """A system did not do what it should; the message says what, for people."""


class Interrupts:
    """Signals that end the script: they wait while something must be done whole."""

    def __init__(self) -> None:
        self._held = 0
        self._came = False

    def catch(self) -> None:
        """Takes Ctrl-C and SIGTERM from now on."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._arrived)

    def _arrived(self, *_: object) -> None:
        self._came = True
        if not self._held:
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Does what is inside whole; a signal that came meanwhile ends the script afterwards."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            if self._came and not self._held:
                self._came = False
                raise KeyboardInterrupt


INTERRUPTS = Interrupts()


def tree(pid: int) -> set[int]:
    """The process and all its descendants that are there now."""
    found, waiting = set(), [pid]
    while waiting:
        one = waiting.pop()
        try:
            children = [
                int(child)
                for thread in Path(f"/proc/{one}/task").iterdir()
                for child in (thread / "children").read_text().split()
            ]
        except (FileNotFoundError, ProcessLookupError):
            continue
        found.add(one)
        waiting.extend(children)
    return found


def processor_time(pid: int) -> float:
    """Seconds the process has used, with those of its children that ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    # The name stands in brackets and may contain anything; times are fields 14 to 17.
    fields = stat.rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11:15]) / TICK


def peak_resident(pid: int) -> int:
    """The most bytes the process ever had in memory."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    peak = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(peak.group(1)) * 1024 if peak else 0


class Process:
    """A running program, with what it says in a log file, or line by line if it `talks`."""

    def __init__(
        self,
        role: str,
        args: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str],
        cwd: Path,
        talks: bool,
    ) -> None:
        self.role = role
        self.name = Path(args[0]).name
        self.log = log
        self.peak = 0
        self._used: float | None = None
        self._family: set[int] = set()
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        with log.open("ab") as said:
            self._popen = subprocess.Popen(
                [str(arg) for arg in args],
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else said,
                stderr=subprocess.STDOUT if talks else said,
                cwd=cwd,
                env=dict(env),
                start_new_session=True,  # Ctrl-C is for the script, which ends them in order
            )
        self.pid = self._popen.pid
        self._ended = os.pidfd_open(self.pid)
        if talks:
            threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._popen.stdout is not None
        with self.log.open("ab") as said:
            for line in self._popen.stdout:
                self._lines.put(line.decode(errors="replace").rstrip("\n"))
                said.write(line)
        self._lines.put(None)

    def expect(self, pattern: str, limit: float) -> re.Match[str]:
        """Waits for a line in which `pattern` is found."""
        deadline = time.monotonic() + limit
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise Failed(f"{self.name} did not say {pattern!r} in {limit:.0f} s") from None
            if line is None:
                raise Failed(f"{self.name} ended early: {self.last_words()}")
            if match := re.search(pattern, line):
                return match

    def say(self, line: str) -> None:
        """Writes a line to the program's standard input."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(f"{line}\n".encode())
        self._popen.stdin.flush()

    def wait(self, limit: float = RUN_LIMIT) -> None:
        """Waits until the program has ended, and fails unless its status is 0."""
        if not self._reap(limit):
            raise Failed(f"{self.name} was not done in {limit:.0f} s: {self.last_words()}")
        if self._popen.returncode != 0:
            status = self._popen.returncode
            raise Failed(f"{self.name} ended with status {status}: {self.last_words()}")

    def _reap(self, limit: float) -> bool:
        if self._used is not None:
            return True
        # A poll of the descriptor wakes at the moment of the end, which no polling of times does.
        poll = select.poll()
        poll.register(self._ended, select.POLLIN)
        if not poll.poll(limit * 1000):
            return False
        _, status, usage = os.wait4(self.pid, 0)
        self._popen.returncode = os.waitstatus_to_exitcode(status)
        self._used = usage.ru_utime + usage.ru_stime
        os.close(self._ended)
        return True

    @property
    def running(self) -> bool:
        """Whether it has not ended, as far as anybody waited for it."""
        return self._used is None and not self._reap(0)

    def used(self) -> float:
        """Processor seconds so far, of it and all it started."""
        if self._used is not None:
            return self._used
        return sum(processor_time(pid) for pid in tree(self.pid))

    def look(self) -> None:
        """Notes the memory it and its descendants have had."""
        if self._used is None:
            self.peak = max([self.peak, *(peak_resident(pid) for pid in tree(self.pid))])

    def last_words(self) -> str:
        """The end of what it said, on one line."""
        lines = self.log.read_text(errors="replace").splitlines()
        return " / ".join(line.strip() for line in lines[-3:]) or "it said nothing"

    def tell_to_end(self) -> None:
        """Asks it to end, if it runs."""
        if self.running:
            self._family = tree(self.pid)
            os.kill(self.pid, signal.SIGTERM)

    def end(self) -> None:
        """Sees to the end of it and its descendants, once it was told, with force if need be."""
        if not self._reap(END_LIMIT):
            os.kill(self.pid, signal.SIGKILL)
            self._reap(END_LIMIT)
        for orphan in self._family - {self.pid}:
            # Ids are given away again: whoever is of none of these sessions is somebody else.
            try:
                if os.getsid(orphan) in self._family:
                    os.kill(orphan, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if self._popen.stdin is not None:
            self._popen.stdin.close()


@dataclass
class Figures:
    """What one run took."""

    seconds: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)
    """Processor seconds by role: `giver`, `taker`, `tracker`."""
    peak: dict[str, int] = field(default_factory=dict)
    """Bytes of the process that had most in memory, by role."""


class Stage:
    """The directory and the processes of one run."""

    def __init__(self, home: Path, env: Mapping[str, str]) -> None:
        self.home = home
        self.figures = Figures()
        self._env = dict(env)
        self._processes: list[Process] = []
        home.mkdir(parents=True, exist_ok=True)

    def start(
        self,
        role: str,
        *args: str | Path,
        talks: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Process:
        """Starts a program, which ends with the stage at the latest."""
        log = self.home / f"{len(self._processes)}-{Path(args[0]).name}.log"
        with INTERRUPTS.held():
            process = Process(
                role,
                args,
                log=log,
                env=self._env | dict(env or {}),
                cwd=cwd or self.home,
                talks=talks,
            )
            self._processes.append(process)
        return process

    def call(self, *args: str | Path, env: Mapping[str, str] | None = None) -> str:
        """Runs a program that is no part of what is measured, and gives what it printed."""
        try:
            done = subprocess.run(
                [str(arg) for arg in args],
                env=self._env | dict(env or {}),
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=RUN_LIMIT,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"{Path(args[0]).name} was not done in {RUN_LIMIT:.0f} s") from None
        if done.returncode != 0:
            words = (done.stderr or done.stdout).strip()
            raise Failed(f"{Path(args[0]).name} ended with status {done.returncode}: {words}")
        return done.stdout

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Measures what is done inside: time, and the cost to all processes of the stage."""
        before = {process: process.used() for process in self._processes}
        families = {process: tree(process.pid) for process in self._processes}
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(over,), daemon=True)
        watcher.start()
        started = time.monotonic()
        try:
            yield
            self.figures.seconds = time.monotonic() - started
        finally:
            over.set()
            watcher.join()
        # A server that forks for each connection has the time of those children once they ended.
        deadline = time.monotonic() + END_LIMIT
        for process, family in families.items():
            while process.running and tree(process.pid) - family and time.monotonic() < deadline:
                time.sleep(0.01)
        for process in self._processes:
            process.look()
            cost = process.used() - before.get(process, 0.0)
            role = process.role
            self.figures.cpu[role] = self.figures.cpu.get(role, 0.0) + cost
            self.figures.peak[role] = max(self.figures.peak.get(role, 0), process.peak)

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(SAMPLE_EVERY):
            for process in list(self._processes):
                process.look()

    def close(self) -> None:
        """Ends every process that still runs."""
        with INTERRUPTS.held():
            for process in reversed(self._processes):
                process.tell_to_end()
            while self._processes:
                self._processes.pop().end()
