"""What is lean is the same as the whole, as far as lockd uses it."""

import os
import signal
import socket
import threading
import weakref

from lockd import lean


def test_locks_and_references_are_those_of_the_whole_modules() -> None:
    assert type(lean.RLock()) is type(threading.RLock())
    assert type(lean.Lock()) is type(threading.Lock())
    assert lean.ref is weakref.ref
    assert lean.WeakSet is weakref.WeakSet
    assert issubclass(threading.local, lean.local)


def test_numbers_of_signals_are_those_of_the_whole_module() -> None:
    for name in signal.Signals.__members__:
        assert getattr(lean.signal, name) == getattr(signal, name)
    assert (lean.signal.SIG_DFL, lean.signal.SIG_IGN) == (0, 1)


def test_signal_state_is_that_of_the_whole_module() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    try:
        lean.signal.signal(signal.SIGUSR1, lean.signal.SIG_IGN)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        assert lean.signal.getsignal(signal.SIGUSR1) == lean.signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_lean_socket_talks_to_a_whole_one_and_no_program_inherits_it() -> None:
    pair = lean.socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours, theirs = pair[0], socket.socket(fileno=pair[1].detach())
    with theirs:
        assert not os.get_inheritable(ours.fileno())
        ours.sendmsg([b"x"])
        assert theirs.recv(2) == b"x"
        ours.close()
        assert theirs.recv(1) == b""
