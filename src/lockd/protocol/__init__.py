"""The wire format of lockd: bytes, messages, methods. This room does no I/O.

docs/reference/protocol.md is normative. Docstrings cite its clauses by number.
"""
