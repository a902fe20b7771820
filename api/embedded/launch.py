"""Become another program: confined, and tied to the life of the process that asked for it.

This file is run as a script in a fresh interpreter (`python -I -S launch.py ...`) and ends in `exec`, so
it imports only the standard library. It exists because what it does must happen between fork and exec,
and Python code at that point is unsafe in a parent that has threads. It knows nothing of what it starts.

Usage: launch.py CONFINEMENT ORPHAN_SIGNAL PARENT_PID PROGRAM [ARGUMENT ...]
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

# An account that owns nothing. Servers that refuse to run as root (PostgreSQL) are shown this one.
UNPRIVILEGED_ID = 65534

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Confine this process, tie it to its parent, and become the program."""
    confinement, orphan_signal, parent, *command = arguments
    # What the state folder holds is nobody else's, and neither is what a crash would write beside it.
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A shell without job control starts background programs deaf to these, and deafness is inherited.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if confinement == "namespace":
        enter_user_namespace()
    elif confinement == "account":
        os.setgroups([])
        os.setgid(UNPRIVILEGED_ID)
        os.setuid(UNPRIVILEGED_ID)
    # Only now: the kernel forgets this wish whenever the credentials of a process change.
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_PDEATHSIG, int(orphan_signal), 0, 0, 0)
        if os.getppid() != int(parent):
            raise SystemExit("launch: the parent has gone already")
    os.execvp(command[0], command)


def enter_user_namespace() -> None:
    """Look unprivileged from the inside, while files stay reachable as the user outside.

    So root can run a server that refuses root, on a data folder below a home that is closed to others.
    """
    user, group = os.geteuid(), os.getegid()
    if _libc().unshare(_CLONE_NEWUSER) != 0:
        number = ctypes.get_errno()
        raise SystemExit(f"launch: no user namespace: {os.strerror(number)}")
    # The kernel lets a group be mapped only by who has given up setgroups() first.
    for name, line in (
        ("setgroups", "deny"),
        ("uid_map", f"{UNPRIVILEGED_ID} {user} 1"),
        ("gid_map", f"{UNPRIVILEGED_ID} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(line)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


if __name__ == "__main__":
    main(sys.argv[1:])
