"""Builds ocapn with codecs, protocol core, sends and calls compiled by mypyc where that can be done, else as it is.

`OCAPN_PURE=1` has it as it is; `OCAPN_COMPILED=1` fails where it cannot be compiled. An
editable installation is never compiled: what is edited is what runs. See spec/building.md.
"""

from __future__ import annotations

import atexit
import os
import shlex
import shutil
import sys
import sysconfig
import tempfile
import tomllib
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
#: What compiling needs: the types of what it uses, too.
NEEDS = ["mypy>=2.4,<3", *tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]]
#: What layers above derive from, and protocols: see the modules.
INTERPRETED = {"__init__.py", "bootstrap.py", "handles.py", "port.py"}

#: A new one each time: what an earlier build has left would be taken for this one's.
PLACE = Path(tempfile.mkdtemp(prefix="ocapn-build-"))
atexit.register(shutil.rmtree, PLACE, ignore_errors=True)


def asked(variable: str) -> bool:
    return os.environ.get(variable, "") not in ("", "0")


def not_compiled(why: str) -> None:
    print(f"ocapn is installed as pure Python, because it could not be compiled: {why}", file=sys.stderr)


def wanted() -> bool:
    """Whether this is to be compiled, and may be able to."""
    if asked("OCAPN_PURE") and asked("OCAPN_COMPILED"):
        sys.exit("OCAPN_PURE and OCAPN_COMPILED are both set: choose one")
    if asked("OCAPN_PURE") or "editable_wheel" in sys.argv:
        return False
    if asked("OCAPN_COMPILED"):
        return True
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "")
    return bool(
        sys.implementation.name == "cpython"
        and compiler
        and shutil.which(compiler[0])
        and Path(sysconfig.get_path("include"), "Python.h").exists()
    )


def extensions() -> list[Extension]:
    """Empty where mypy does not take the source: it says why."""
    try:
        from mypyc.build import mypycify
    except ImportError as error:  # pip was told to build without what the build needs
        if asked("OCAPN_COMPILED"):
            raise
        not_compiled(str(error))
        return []
    paths = [*glob("ocapn/codec/*.py"), *glob("ocapn/captp/*.py"), "ocapn/invoking.py", "ocapn/sending.py"]
    modules = [path for path in sorted(paths) if Path(path).name not in INTERPRETED]
    try:
        return mypycify(
            ["--explicit-package-bases", *modules],
            opt_level="2",
            debug_level="0",
            group_name="ocapn",
            target_dir=str(PLACE),
        )
    except SystemExit:
        if asked("OCAPN_COMPILED"):
            raise
        return []


class Build(build):
    """In a directory of its own."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.build_base = str(PLACE)


class Compile(build_ext):
    """Without what could not be compiled: all of it, as the modules are linked to each other."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:
            if asked("OCAPN_COMPILED"):
                raise
            not_compiled(f"{type(error).__name__}; above is what the compiler says")
            for output in self.get_outputs():
                Path(output).unlink(missing_ok=True)
            self.extensions = []


compiling = wanted()
asked_for_needs = "egg_info" in sys.argv or "dist_info" in sys.argv
setup(
    cmdclass={"build": Build, "build_ext": Compile},
    setup_requires=NEEDS if compiling and asked_for_needs else [],
    ext_modules=extensions() if compiling and "bdist_wheel" in sys.argv else [],
)
