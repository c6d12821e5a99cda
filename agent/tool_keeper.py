"""The process between the program and its tools: it ends both with what the tools have started.

    program   agent/toolbox.py
    keeper    this file; it runs no tool, so no tool's end or hang stops it
    worker    agent/tool_worker.py: runs the user's file, in a session of its own

A killed program can clean nothing up, so the keeper waits for three things: the end of the worker,
a signal, and the end of the program, which closes the pipe that is the keeper's standard input.
Then it kills everything below itself. Linux helps twice: a child subreaper inherits the processes
that daemonise themselves, so they stay below it, and a parent-death signal comes where a copy of
the pipe stays open in another child of the program. Source: prctl(2).

macOS has neither. There the pipe alone tells the program's end, and only the worker's process group
is killed: a process that a tool has put into a session of its own outlives it. No system keeps a
tool from killing the keeper first; this is order, and no sandbox. Standard library only.
"""

import contextlib
import glob
import os
import resource
import select
import signal
import sys
import time

# <linux/prctl.h>
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
WAKING = (*ENDING, signal.SIGCHLD, signal.SIGUSR1)
SWEEP_SECONDS = 5.0  # a program with more rights than ours, such as sudo, cannot be killed
MAX_FILE_BYTES = 1 << 30


def descendants(root: int) -> list[int]:
    """The numbers of all processes below `root`; none on a system without /proc."""
    children: dict[int, list[int]] = {}
    for path in glob.glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            # "number (name) state parent ...", and a name may hold spaces and brackets
            parent = int(file.read().rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.split("/")[2]))
    found = [root]
    for number in found:  # grows on the way
        found += children.get(number, [])
    return found[1:]


def kill(number: int) -> None:
    """SIGKILL to a process that may have ended already, or belong to somebody else."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(number, signal.SIGKILL)


def sweep() -> None:
    """Kills everything below this process, round by round until it has no child."""
    deadline = time.monotonic() + SWEEP_SECONDS
    while time.monotonic() < deadline:
        for number in descendants(os.getpid()):
            kill(number)
        # One look at /proc may miss a process whose parent ends meanwhile. It becomes a child of
        # this one, so only "no child" means that nothing is left.
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def prctl(option: int, value: int) -> None:
    """One call of Linux's prctl; nothing on other systems, nor where Python has no ctypes."""
    if sys.platform == "linux":
        with contextlib.suppress(ImportError, OSError, AttributeError):
            import ctypes

            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def limit_resources(memory: int) -> None:
    """Bounds for this process and all that it starts. memory: bytes of address space, 0 for any."""
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: MAX_FILE_BYTES}
    if memory:
        limits[resource.RLIMIT_AS] = memory
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # macOS refuses a limit of the address space that is below what the process has mapped.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, value))


def take_streams() -> tuple[int, int]:
    """(the pipe that closes when the program ends, the channel of the protocol), as descriptors.

    What a tool prints goes to standard error, where it cannot mix with the answers; what it reads
    is empty, so that it cannot take a request away. Done on descriptors, because the programs that
    a tool starts inherit those.
    """
    nothing = os.open(os.devnull, os.O_RDWR)  # its number is 2 where the program has no stderr
    lifeline, channel = os.dup(0), os.dup(1)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.set_inheritable(2, True)
    return lifeline, channel


def has_ended(worker: int) -> bool:
    """True once the worker has ended; reaps whatever has, orphans of the tools among them."""
    while True:
        try:
            number = os.waitpid(-1, os.WNOHANG)[0]
        except ChildProcessError:
            return True
        if number in (0, worker):
            return number == worker


def watch(worker: int, program: int, lifeline: int, woken: int) -> None:
    """Returns when worker or program has ended, or a signal says that this process should."""
    # A program's thread that ends sends the parent-death signal too: only the number is proof.
    while os.getppid() == program and not has_ended(worker):
        ready, _, _ = select.select([lifeline, woken], [], [])
        if lifeline in ready:  # nobody writes to it, so this is its end
            return
        if set(os.read(woken, 1024)) & set(ENDING):
            return


def become_worker(keeper: int, memory: int) -> None:
    """Undoes, in the forked process, what is the keeper's; and binds it to the keeper's life."""
    signal.set_wakeup_fd(-1)
    for number in WAKING:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()  # a tool that signals its own group does not reach the keeper
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper:  # it ended before the line above
        os._exit(1)
    limit_resources(memory)


def main() -> None:
    """Forks the worker, waits, and sweeps."""
    path, memory = sys.argv[1], min(int(sys.argv[2]), sys.maxsize)
    keeper, program = os.getpid(), os.getppid()
    lifeline, channel = take_streams()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)  # a signal handler must never wait
    for number in WAKING:  # before the fork: a worker that ends at once must wake the keeper too
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGUSR1)
    worker = os.fork()
    if worker == 0:
        become_worker(keeper, memory)
        for descriptor in (lifeline, woken, wake):
            os.close(descriptor)
        # Not earlier: the keeper stays a few megabytes without it. The folder of this script is the
        # first place where Python looks.
        import tool_worker

        tool_worker.serve(path, channel)
        return
    os.close(channel)  # the program must see its end as soon as the worker's copy is closed
    try:
        watch(worker, program, lifeline, woken)
    finally:
        # Where there is no /proc the group is what can be found; elsewhere the sweep finds all.
        if not os.path.exists("/proc/self/stat"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(worker, signal.SIGKILL)
        sweep()


if __name__ == "__main__":
    main()
