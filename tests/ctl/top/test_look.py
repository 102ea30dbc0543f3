"""The screen of `lockctl top` about one lock."""

import pytest

from ctl.top.screen import Screen, play
from lockd import Client, connect
from lockd.ctl.top.lines import Lines


def test_looks_into_a_lock(sock: str, client: Client) -> None:
    client.release(client.acquire("job"))
    client.acquire("job", reason="nightly")

    async def part(screen: Screen) -> None:
        await screen.until("job", "1 held")
        await screen.press("enter")
        shown = await screen.until("holds", "held by 1, waited for by 0")
        assert "held last by the test" in shown
        assert "released" in shown
        await screen.press("escape")
        await screen.until("[1 locks]")

    play(sock, part)


@pytest.mark.parametrize("size", [(60, 10), (80, 24), (100, 24), (200, 50)])
def test_look_shows_all_of_the_line_that_is_chosen(
    sock: str, client: Client, size: tuple[int, int]
) -> None:
    client.acquire("job", mode="shared", reason="nightly dump")
    with connect(sock, name="other") as other:
        grant = other.acquire("job", mode="shared", reason="a copy of it")

        async def part(screen: Screen) -> None:
            await screen.until("job", "2 held", "the test +1")
            await screen.press("enter")
            shown = await screen.until("nightly dump", "COMMAND")
            assert shown.count("nightly dump") == 1
            await screen.press("down")
            await screen.until("a copy of it")
            lines = screen.pilot.app.screen.query_one(Lines)
            assert lines.size.height >= 3
            if size[1] > 10:
                await screen.until(str(grant.fencing_token))

        play(sock, part, size)
