"""The lines of `lockctl top`, of which one is chosen."""

from ctl.top.screen import Screen, line_of, play
from lockd import Client


def test_choice_stays_with_its_lock_while_lines_move(sock: str, client: Client) -> None:
    for name in ("b", "c", "d"):
        client.acquire(name)

    async def part(screen: Screen) -> None:
        await screen.until("3 held", "d  ")
        await screen.press("down", "j")
        assert line_of(screen.text, "> ").split()[1] == "d"
        client.acquire("a")
        shown = await screen.until("4 held", "a  ")
        assert line_of(shown, "> ").split()[1] == "d"
        await screen.press("home")
        assert line_of(screen.text, "> ").split()[1] == "a"

    play(sock, part)


def test_scrolls_through_more_than_fits(sock: str, client: Client) -> None:
    for number in range(60):
        client.acquire(f"lock-{number:02}")

    async def part(screen: Screen) -> None:
        await screen.until("60 held", "lock-00")
        await screen.press("end")
        await screen.until("> lock-59", gone=("lock-00",))
        await screen.press("pageup", "pageup", "pageup")
        await screen.until("> lock-0")

    play(sock, part)
