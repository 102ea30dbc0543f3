"""Who holds what: the lock table as a state machine.

No I/O, no clock, no logging, no randomness, no trio in this room: commands go in,
effects come out, time is an argument. Everything goes through `LockEngine.handle`.
"""
