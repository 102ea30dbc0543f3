"""What the tests of this folder share."""

from pathlib import Path


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "lockd.toml"
    path.write_text(text)
    return str(path)


def written_parts(tmp_path: Path, **parts: str) -> str:
    (tmp_path / "conf.d").mkdir()
    for name, text in parts.items():
        (tmp_path / "conf.d" / f"{name}.toml").write_text(text)
    return written(tmp_path, "log_level = 'error'\n[limits]\nsessions = 1\n")
