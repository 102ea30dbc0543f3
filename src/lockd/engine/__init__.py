"""The lock table as a state machine: who holds what.

This room has no I/O, clock, logging, randomness or trio. Commands go in, effects come
out, and time is an argument. `LockEngine.handle` is the only way to change the state.
"""
