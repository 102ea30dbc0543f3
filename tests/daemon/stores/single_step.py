"""A child process, stopped before each of its machine instructions (ptrace(2))."""

import ctypes
import os
import signal
from collections.abc import Callable

_TRACEME = 0
_SINGLESTEP = 9
_CONT = 7

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, pid: int = 0) -> None:
    if _libc.ptrace(request, pid, None, None) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def single_step(work: Callable[[], None], look: Callable[[], None]) -> int:
    """Does the work in a child, calls `look` before each instruction.

    Returns the child's exit status.
    """
    pid = os.fork()
    if pid == 0:
        try:
            _ptrace(_TRACEME)
            os.kill(os.getpid(), signal.SIGSTOP)
            work()
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(0)
        finally:
            os._exit(1)
    _wait_for(pid, signal.SIGSTOP)
    while True:
        look()
        _ptrace(_SINGLESTEP, pid)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            return os.waitstatus_to_exitcode(status)
        if os.WSTOPSIG(status) != signal.SIGTRAP:
            break
    _ptrace(_CONT, pid)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _wait_for(pid: int, number: int) -> None:
    _, status = os.waitpid(pid, 0)
    assert os.WIFSTOPPED(status)
    assert os.WSTOPSIG(status) == number
