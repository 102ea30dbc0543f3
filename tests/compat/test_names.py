import hashlib

import pytest

from lockd.compat.names import default_name


@pytest.mark.parametrize("name", ["backup", "/srv/a.lock", "ü" * 127, "a b", "x" * 255])
def test_name_stays_as_it_is(name: str) -> None:
    assert default_name(name) == name


@pytest.mark.parametrize("name", ["x" * 256, "ü" * 128, "a\nb", "\udcff"])
def test_what_no_name_may_be_is_hashed(name: str) -> None:
    sent = name.encode("utf-8", "surrogateescape")
    assert default_name(name) == hashlib.sha256(sent).hexdigest()
