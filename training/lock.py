"""One run at a time in a folder: a file that names the process that writes there.

Two runs in one folder would replace each other's checkpoints and mix their lines of metrics.
"""

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

LOCK = "run.lock"


class Lock:
    """The lock of `folder`, from here to `release`.

    Raises: ValueError for a folder that another process writes to, naming that process.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        while True:
            # Not through a link: the owner's line replaces whatever the file held
            self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            try:
                self._take()
            except BaseException:
                os.close(self.descriptor)
                raise
            # Whoever had it may have removed the file between the two lines above: then this is
            # a lock on a file without a name, and the next one would make another.
            if self._is_there():
                break
            os.close(self.descriptor)
        owner = {
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, (json.dumps(owner) + "\n").encode(), 0)

    def release(self) -> None:
        """Removes the file; the lock ends with it."""
        with suppress(OSError):
            # While the lock is held: once it is closed, the file may be another run's
            if self._is_there():
                self.path.unlink()
        os.close(self.descriptor)

    def _take(self) -> None:
        # Two signs of life, because neither is enough: the kernel's lock ends with its process but
        # is missing from some network file systems; a process number means nothing elsewhere.
        is_held = False
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_held = True
        except OSError:
            pass  # no such lock here: the process number decides
        owner = self._owner()
        if is_held or (owner and _may_live(owner)):
            raise ValueError(_describe(self.path, owner))

    def _owner(self) -> dict[str, Any]:
        """What the file says; empty where a stop came before it was written."""
        text = os.pread(self.descriptor, 10_000, 0)
        try:
            owner = json.loads(text)
        except ValueError:
            return {}
        return owner if isinstance(owner, dict) else {}

    def _is_there(self) -> bool:
        try:
            found, mine = os.stat(self.path, follow_symlinks=False), os.fstat(self.descriptor)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, mine)


def _may_live(owner: dict[str, Any]) -> bool:
    """False only for a process of this machine that has ended."""
    if owner.get("host") != socket.gethostname():
        return True
    pid = owner.get("pid")
    if type(pid) is not int or not 0 < pid < 2**31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's: it lives
    # Numbers are given again: a process that started at another moment is another process.
    return owner.get("started") == _started(pid)


def _started(pid: int) -> str | None:
    """When a process started, in clock ticks since boot, and of which boot; None where unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return f"{fields[19]} {boot}"


def _describe(path: Path, owner: dict[str, Any]) -> str:
    pid, host, since = (owner.get(name, "unknown") for name in ("pid", "host", "since"))
    advice = "wait for it, stop it, or choose another folder"
    if host != socket.gethostname():
        advice += f"; remove {path} if that process is no more"
    return (
        f"--output {path.parent}: process {pid} on {host} has written there since {since}; {advice}"
    )
