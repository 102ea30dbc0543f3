"""What `make install` puts where, as those see it who use it."""

import json
from pathlib import Path

import pytest

from compiled import INTERPRETED, Interpreter
from system.booted.machine import INTERPRETER, LIBDIR, Machine, make

PLACES = (
    "/usr/bin/lockd",
    "/usr/bin/lockctl",
    "/usr/lib/lockd",
    "/usr/lib/systemd/system/lockd.service",
    "/usr/lib/systemd/system/lockd.socket",
    "/usr/lib/systemd/system/lockd-admin.socket",
    "/usr/lib/systemd/system/lockd-hold@.service",
    "/usr/lib/systemd/system/lockd-virtlockd.socket",
    "/usr/lib/systemd/system/lockd-metrics.socket",
    "/usr/lib/systemd/user/lockd.service",
    "/usr/lib/systemd/user/lockd.socket",
    "/usr/lib/sysusers.d/lockd.conf",
    "/usr/lib/tmpfiles.d/lockd.conf",
    "/usr/share/doc/lockd/LICENSE",
    "/usr/share/doc/lockd/README.md",
    "/usr/share/doc/lockd/SECURITY.md",
    "/usr/share/doc/lockd/docs/how-to/install.md",
    "/usr/share/bash-completion/completions/lockctl",
    "/usr/share/zsh/site-functions/_lockctl",
    "/usr/share/fish/vendor_completions.d/lockctl.fish",
    "/usr/share/man/man1/lockctl.1",
    "/usr/share/man/man5/lockd.toml.5",
    "/usr/share/man/man8/lockd.8",
    "/etc/lockd/lockd.toml",
    "/etc/lockd/conf.d",
)


LINKS = {
    "system/sockets.target.wants/lockd.socket": "system/lockd.socket",
    "system/multi-user.target.wants/lockd.service": "system/lockd.service",
    "user/sockets.target.wants/lockd.socket": "user/lockd.socket",
}
"""How units are enabled: systemd makes such links, and nobody else takes them away."""


def test_everybody_can_use_it_and_nobody_change_it(machine: Machine) -> None:
    assert machine.say("find", *PLACES, "!", "-perm", "-o=r") == ""
    assert machine.say("find", *PLACES, "-type", "d", "!", "-perm", "-o=x") == ""
    assert machine.say("find", *PLACES, "-perm", "/022") == ""
    assert machine.say("find", *PLACES, "!", "-user", "root") == ""
    for program in ("lockd", "lockctl"):
        said = machine.say(program, "--version", user="stranger")
        assert said.startswith(f"{program} ")


@pytest.mark.parametrize("page", ["lockd", "lockd.toml", "lockctl"])
def test_manual_is_shown_without_a_warning(machine: Machine, page: str) -> None:
    done = machine.run("man", "-P", "cat", "--warnings", page, user="stranger")
    assert done.stderr == ""
    assert "SEE ALSO" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_it_is_compiled_where_that_can_be(machine: Machine) -> None:
    obstacle = Interpreter.of(INTERPRETER).obstacle()
    expected = "interpreted" if obstacle else "compiled"
    assert machine.say("lockd", "--version").endswith(f" ({expected})")
    said = INTERPRETED if obstacle else "lockd is compiled, for "
    assert machine.manner.startswith(said)
    status = json.loads(machine.say("lockctl", "status", "--json"))["status"]
    assert status["compiled"] is (obstacle is None)
    assert not [x for x in status["problems"] if "interpreted" in x]
    assert machine.say("cat", f"{LIBDIR}/compiled.txt") == machine.manner


def test_configuration_and_nothing_else_stays(tmp_path: Path) -> None:
    config = tmp_path / "etc" / "lockd" / "lockd.toml"
    config.parent.mkdir(parents=True)
    config.write_text("# the operator's own\n")
    make("install", tmp_path)
    found = {path for path in PLACES if (tmp_path / path[1:]).exists()}
    assert found == set(PLACES)
    for link, unit in LINKS.items():
        wanted = tmp_path / "etc" / "systemd" / link
        wanted.parent.mkdir(parents=True)
        wanted.symlink_to(f"/usr/lib/systemd/{unit}")
    make("uninstall", tmp_path)
    left = [path for path in tmp_path.rglob("*") if not path.is_dir()]
    assert left == [config]
    assert config.read_text() == "# the operator's own\n"
