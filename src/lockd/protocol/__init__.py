"""How lockd looks on the wire: bytes, messages, methods. No I/O happens in this room.

docs/protocol.md is the normative text; clauses are cited by number.
"""
