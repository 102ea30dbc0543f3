import anyio
import pytest
from anyio.from_thread import start_blocking_portal
from anyio.to_thread import run_sync

from lockd.client.tasks.loop import Loop, current_loop


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_loop_knows_its_own_code_and_its_tasks(backend: str) -> None:
    tasks: list[object] = []

    async def note_task(loop: Loop) -> None:
        assert loop.runs_here
        tasks.append(loop.task())

    async def main() -> Loop:
        loop = current_loop()
        assert not await run_sync(lambda: loop.runs_here)
        await note_task(loop)
        await note_task(loop)
        async with anyio.create_task_group() as group:
            group.start_soon(note_task, loop)
        return loop

    loop = anyio.run(main, backend=backend)
    first, again, other = tasks
    assert first is again
    assert first is not other
    assert not loop.runs_here


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("other", ["asyncio", "trio"])
def test_other_loops_are_told_apart(backend: str, other: str) -> None:
    async def runs_here(loop: Loop) -> bool:
        return loop.runs_here

    with start_blocking_portal(backend) as portal, start_blocking_portal(other) as far:
        loop = portal.call(current_loop)
        assert portal.call(runs_here, loop)
        assert not far.call(runs_here, loop)
