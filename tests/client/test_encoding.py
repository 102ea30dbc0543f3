"""A request that is encoded in two parts is the one that is encoded at once."""

import pytest

from lockd.client.encoding import encode, encode_rest, with_number

PARAMS = {"lockspace": "default", "resource": "disk", "timeout": 0.5, "strand": 3}


@pytest.mark.parametrize("msgid", [0, 1, 127, 128, 255, 256, 2**16, 2**32 - 1])
@pytest.mark.parametrize("params", [PARAMS, {}, {"resources": ["n" * 16_000] * 3}])
def test_rest_of_a_request_fits_every_number(
    msgid: int, params: dict[str, object]
) -> None:
    rest = encode_rest("acquire", params)
    assert with_number(msgid, rest) == encode(msgid, "acquire", params)
