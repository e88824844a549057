"""How do these tests use the command line? As a process of its own, with pipes or on a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-m", "codomyrmex_containerization")
LIMIT_SECONDS = 120

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command printed and exited with."""

    status: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.stdout)


def cxc(
    *arguments: str | Path, stdin: bytes = b"", folder: Path | None = None, environment: dict[str, str] | None = None
) -> Ended:
    """Run a command with pipes."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=LIMIT_SECONDS,
        cwd=folder,
        env={**os.environ, **(environment or {})},
    )
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())


@contextmanager
def started(*arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command with pipes and see to it that it is gone at the end."""
    with subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)


class Terminal:
    """A command whose stdin, stdout and stderr are a terminal."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self._master = master
        self._seen = ""

    def read_until(self, text: str) -> str:
        """Read until a text comes; fails when the command ends before."""
        while text not in self._seen:
            if not self._read():
                raise AssertionError(f"the command ended without {text!r}: {self._seen!r}")
        return self._seen

    def type(self, text: str) -> None:
        """Type something."""
        os.write(self._master, text.encode())

    def end(self) -> Ended:
        """Read what is left and return all of it as stdout, line ends as programs write them."""
        while self._read():
            pass
        return Ended(self.process.wait(LIMIT_SECONDS), self._seen.replace("\r\n", "\n"), "")

    def _read(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], LIMIT_SECONDS)
        if not ready:
            raise AssertionError(f"nothing came: {self._seen!r}")
        try:
            data = os.read(self._master, 65536)
        except OSError:  # how Linux says that the other side is closed
            return False
        self._seen += data.decode(errors="replace")
        return bool(data)


@contextmanager
def on_terminal(*arguments: str | Path, environment: dict[str, str] | None = None) -> Iterator[Terminal]:
    """Start a command on a terminal of 200 columns and see to it that it is gone at the end."""
    master, slave = pty.openpty()
    own = {"TERM": "xterm-256color", "COLUMNS": "200", **(environment or {})}
    removed = {"NO_COLOR", "FORCE_COLOR"} - own.keys()
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={name: value for name, value in {**os.environ, **own}.items() if name not in removed},
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def without_escapes(text: str) -> str:
    """Take colours and cursor movements out."""
    return _ESCAPE.sub("", text)


def options_before(image: str, *options: str) -> Sequence[str]:
    """`run` with options that keep everything on this machine: the image is never pulled."""
    return ("run", "--pull", "never", *options, image)
