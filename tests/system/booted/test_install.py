"""What `make install` puts where, as those see it who use it."""

import json
import re
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
    "/usr/share/doc/lockd/CONTRIBUTING.md",
    "/usr/share/doc/lockd/SECURITY.md",
    "/usr/share/doc/lockd/docs/how-to/install.md",
    "/usr/share/doc/lockd/conf/lockd.toml",
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
    "system/multi-user.target.wants/lockd-hold@a.service": "system/lockd-hold@.service",
    "system/virtlockd.socket": "system/lockd-virtlockd.socket",
    "user/sockets.target.wants/lockd.socket": "user/lockd.socket",
}
"""How units are enabled: systemd makes such links, and nobody else takes them away."""

OF_OTHERS = "/etc/systemd/system/sockets.target.wants/dbus.socket"


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


def test_interpreter_has_the_name_of_its_version(machine: Machine) -> None:
    # `python3` may become another version, and what is compiled is for this one.
    interpreter = machine.say("readlink", "-f", INTERPRETER)
    assert re.fullmatch(r"/usr/bin/python3\.\d+", interpreter)
    for program in ("lockd", "lockctl"):
        first = machine.say("head", "-n", "1", f"/usr/bin/{program}")
        assert first == f"#!{interpreter} -IS"


def test_pages_lead_only_to_what_is_installed(machine: Machine) -> None:
    place = machine.root / "usr/share/doc/lockd"
    pages = list(place.rglob("*.md"))
    assert len(pages) > 20
    links = {
        page.parent / target.partition("#")[0]
        for page in pages
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text())
    }
    assert [link for link in links if not link.exists()] == []


NAMES_OF_FILES = ("lib/systemd", "share/man", "share/doc/lockd/conf")


def test_files_name_the_places_where_they_are(tmp_path: Path) -> None:
    make("install", tmp_path, "PREFIX=/opt", "SYSCONFDIR=/opt/etc", "COMPILED=no")
    text = "".join(
        path.read_text()
        for place in NAMES_OF_FILES
        for path in (tmp_path / "opt" / place).rglob("*.*")
        if path.is_file()
    )
    assert set(re.findall(r"[\w/]*/lockd\.toml", text)) == {
        "/opt/etc/lockd/lockd.toml",
        "XDG_CONFIG_HOME/lockd/lockd.toml",
    }
    assert set(re.findall(r"[\w/]*/(?=lockctl |lockd --)", text)) == {"/opt/bin/"}
    assert set(re.findall(r"[\w/]*/docs/", text)) == {"/opt/share/doc/lockd/docs/"}
    config = (tmp_path / "opt/etc/lockd/lockd.toml").read_text()
    assert "/opt/etc/lockd/lockd.toml" in config


def test_configuration_and_nothing_else_stays(tmp_path: Path) -> None:
    config = tmp_path / "etc" / "lockd" / "lockd.toml"
    config.parent.mkdir(parents=True)
    config.write_text("# the operator's own\n")
    make("install", tmp_path)
    found = {path for path in PLACES if (tmp_path / path[1:]).exists()}
    assert found == set(PLACES)
    for link, unit in LINKS.items():
        wanted = tmp_path / "etc" / "systemd" / link
        wanted.parent.mkdir(parents=True, exist_ok=True)
        wanted.symlink_to(f"/usr/lib/systemd/{unit}")
    other = tmp_path / OF_OTHERS[1:]
    other.symlink_to("/usr/lib/systemd/system/dbus.socket")
    make("uninstall", tmp_path)
    left = [path for path in tmp_path.rglob("*") if not path.is_dir()]
    assert sorted(left) == sorted([config, other])
    assert config.read_text() == "# the operator's own\n"
