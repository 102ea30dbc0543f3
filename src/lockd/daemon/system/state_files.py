"""Files of the state directory: read without surprises, replaced at once.

Apart from `epoch` and `instance`, which both need it.
"""

import os
from typing import Final

READ_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
NEW_FILE_FLAGS: Final = (
    os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
)
"""No symbolic link or FIFO is acceptable there."""


def replace_file(directory_fd: int, name: str, content: bytes) -> None:
    """Replaces a file. Nobody reads half of it, not even after a power cut.

    Raises:
        OSError: it cannot be written. The old file stays.
    """
    new = f"{name}.new"
    fd = os.open(new, NEW_FILE_FLAGS, 0o600, dir_fd=directory_fd)
    with open(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
    os.rename(new, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
    os.fsync(directory_fd)
