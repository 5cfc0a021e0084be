"""A small network of namespaces on this machine, whose cables can be pulled; for tests.

Needs root and `ip` (Debian: apt-get install iproute2). All that is made carries a name of this
process and goes with `Network.close`.
"""

import os
import shutil
import subprocess
from pathlib import Path

CLOCKS = shutil.which("cc") is not None
"""Whether processes can be given a clock that is off: that takes a C compiler."""
CLOCK = r"""
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *t) {
  int failed = syscall(SYS_clock_gettime, id, t);
  if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
    t->tv_sec += atol(getenv("CLOCK_OFF"));
  return failed;
}
int gettimeofday(struct timeval *restrict t, void *restrict zone) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  t->tv_sec = now.tv_sec;
  t->tv_usec = now.tv_nsec / 1000;
  return 0;
}
time_t time(time_t *t) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (t) *t = now.tv_sec;
  return now.tv_sec;
}
"""


def missing() -> str:
    """Return why there can be no such network, empty where there can."""
    if shutil.which("ip") is None:
        return "needs `ip` (Debian: apt-get install iproute2)"
    if os.geteuid() != 0:
        return "needs root, which may make network namespaces"
    name = f"bt{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode != 0:
        return f"`ip netns add` is not allowed here: {tried.stderr.strip()}"
    _ip("netns", "del", name)
    return ""


def clock(folder: Path, hours: int) -> dict[str, str] | None:
    """Return the environment of processes whose clock is off; None without a C compiler.

    Time namespaces would not do: they move the clocks that count from the start of the machine,
    not the one that tells the time (time_namespaces(7)). Nor would Debian's `faketime`, under which
    `time.sleep` fails. So this stands before the C library in those processes.
    """
    if not CLOCKS:
        return None
    library = folder / "clock.so"
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=CLOCK, text=True, check=True)
    return {"LD_PRELOAD": str(library), "CLOCK_OFF": str(3600 * hours)}


class Network:
    """Two switches: the front, where this process is and asks, and the back, where it is not."""

    def __init__(self) -> None:
        self._name, self._part = f"b{os.getpid()}", os.getpid() % 250
        self._spaces: list[str] = []
        self._cables: list[str] = []
        for side in "fb":
            _ip("link", "add", self._name + side, "type", "bridge")
            _ip("link", "set", self._name + side, "up")
        _ip("addr", "add", f"{self.address('f', 1)}/24", "dev", f"{self._name}f")

    def address(self, side: str, number: int) -> str:
        """Return the address of a machine; 198.18.0.0/15 is for tests of networks (RFC 2544)."""
        return f"198.{18 if side == 'f' else 19}.{self._part}.{number}"

    def add(self, number: int, sides: str = "fb") -> list[str]:
        """Make a machine with a cable to each side; return what runs a command on it."""
        space = f"{self._name}n{number}"
        _ip("netns", "add", space)
        self._spaces.append(space)
        _ip("-n", space, "link", "set", "lo", "up")
        for side in sides:
            outer, inner = self._cable(number, side), f"eth-{side}"
            _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", space)
            self._cables.append(outer)
            _ip("link", "set", outer, "master", self._name + side, "up")
            _ip("-n", space, "addr", "add", f"{self.address(side, number)}/24", "dev", inner)
            _ip("-n", space, "link", "set", inner, "up")
        return ["ip", "netns", "exec", space]

    def cut(self, number: int, side: str) -> None:
        """Pull a cable out of the switch: what is sent is lost, and nobody is told."""
        _ip("link", "set", self._cable(number, side), "nomaster")

    def mend(self, number: int, side: str) -> None:
        """Put it back."""
        _ip("link", "set", self._cable(number, side), "master", self._name + side)

    def close(self) -> None:
        """Take it all down; machines would take their cables along only some time later."""
        for cable in self._cables:
            _ip("link", "del", cable)
        for space in self._spaces:
            _ip("netns", "del", space)
        for side in "fb":
            _ip("link", "del", self._name + side)

    def _cable(self, number: int, side: str) -> str:
        return f"{self._name}{side}{number}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
