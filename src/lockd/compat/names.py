"""Names of locks in the lockspace `default`, from what other libraries allow as one."""

import hashlib

from lockd.errors import InvalidRequestError
from lockd.names import MAX_NAME_BYTES, check_text


def default_name(text: str) -> str:
    """Returns a text if it is a name; else its SHA-256, in hexadecimal.

    A name has at most 255 bytes of UTF-8, and no control or invisible characters.
    """
    try:
        check_text(text, "name", MAX_NAME_BYTES)
    except InvalidRequestError:
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    return text
