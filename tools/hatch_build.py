"""Puts the compiled modules into a wheel (hatchling calls it).

Where nothing can be compiled, the wheel has the source alone, for every platform.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

COMPILE = Path(__file__).with_name("compiled.py")


class CompiledModules(BuildHookInterface[Any]):
    """Compiles for the interpreter that builds the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds what was compiled, and the platform for which it is."""
        if version == "editable":
            return
        self._directory = tempfile.TemporaryDirectory()
        top = Path(self._directory.name)
        (top / "lockd").mkdir()
        subprocess.run([sys.executable, COMPILE, "into", top], check=True)
        found = [path for path in top.rglob("*") if path.is_file()]
        build_data["force_include"] |= {
            str(path): str(path.relative_to(top)) for path in found
        }
        build_data["pure_python"] = not found
        build_data["infer_tag"] = bool(found)

    def finalize(
        self, version: str, build_data: dict[str, Any], artifact_path: str
    ) -> None:
        """Removes what is in the wheel now."""
        if version != "editable":
            self._directory.cleanup()
