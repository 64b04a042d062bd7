#!/usr/bin/env python3
"""Releases of the platform on a machine: which are there, which one runs, which ones were good, and the way back.

A release is a folder with everything that a deployment needs: wheel, pinned versions, Dagster's deployment, the bundle,
and a manifest with the hash of each file. `pack` makes one (the build does), the other commands keep a root folder:

    <root>/settings.env           the environment's settings, made by hand; never part of a release
    <root>/releases/<name>/       releases that are here
    <root>/state.json             which runs, which were good, in order

Needs Python 3.11 and nothing else: it runs where nothing of the platform is installed.

What does not belong here: judging a release (gate.py), and the state of data. A rollback leaves tables and Dagster's
storage as they are: what a newer release wrote must be readable by the one before it (docs/deploy.md).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

MANIFEST = "release.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_PROJECT = Path(__file__).parents[1]
STEPS = ("dagster", "bundle")
Run = Callable[[Sequence[str], Path, dict[str, str]], None]
"""Runs a command in a folder with more environment; raises CalledProcessError."""


class ReleaseError(Exception):
    """What is wrong, and the fix."""

    def __init__(self, culprit: str, fix: str) -> None:
        super().__init__(f"{culprit} Fix: {fix}")


@dataclass
class State:
    """What a root folder knows.

    Attributes:
        current: the release that was activated last; None before the first.
        activating: the release whose activation has begun and not ended: it failed, or was killed.
        good: releases that were accepted, the latest last.
    """

    current: str | None = None
    activating: str | None = None
    good: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, root: Path) -> State:
        """The root's state; that of a new root if there is none."""
        try:
            return cls(**json.loads((root / "state.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls()
        except (ValueError, TypeError):
            raise ReleaseError(
                f"{root / 'state.json'} is damaged.", "write it anew: current, activating and good are names."
            ) from None

    def write(self, root: Path) -> None:
        """Replace the root's state as a whole."""
        unfinished = root / "state.json.part"
        unfinished.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        unfinished.replace(root / "state.json")

    def way_back(self) -> str:
        """The release that a rollback activates: the last good one that does not run, or has not been begun."""
        failed = self.activating or self.current
        for name in reversed(self.good):
            if name != failed:
                return name
        raise ReleaseError("there is no good release to go back to.", "activate one that is known to work, by name.")


def pack(wheel: Path, name: str, output: Path, project: Path = _PROJECT) -> Path:
    """Make a release of this checkout's deployment and that wheel; returns its folder.

    Raises:
        ReleaseError: the name or the wheel cannot be used, or the folder is there already.
    """
    _check_name(name)
    if wheel.suffix != ".whl" or not wheel.is_file():
        raise ReleaseError(f"{wheel} is no wheel.", "build one: `python -m pip wheel --no-deps --wheel-dir dist .`.")
    folder = output / name
    if folder.exists():
        raise ReleaseError(f"{folder} is there already.", "remove it, or give the release another name.")
    folder.mkdir(parents=True)
    deploy = project / "deploy"
    shutil.copytree(deploy / "dagster", folder / "dagster")
    shutil.copytree(deploy / "bundle", folder / "bundle", ignore=shutil.ignore_patterns("__pycache__", ".databricks"))
    shutil.copy(wheel, folder / "dagster" / wheel.name)
    shutil.copy(project / "constraints.txt", folder / "dagster" / "constraints.txt")
    for script in ("release.py", "gate.py"):
        shutil.copy(deploy / script, folder / script)
    manifest = {"name": name, "wheel": f"dagster/{wheel.name}", "files": _hashes(folder)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    return folder


def verify(folder: Path) -> str:
    """The name of the release in a folder, whose files are what its manifest says.

    Raises:
        ReleaseError: a file is missing, changed or not in the manifest.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        name, files = str(manifest["name"]), dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ReleaseError(f"{folder} is no release.", f"name a folder with a {MANIFEST}.") from None
    _check_name(name)
    found = _hashes(folder)
    wrong = sorted(path for path in {*files, *found} if files.get(path) != found.get(path))
    if wrong:
        raise ReleaseError(
            f"release {name} is not as it was packed: {', '.join(wrong[:5])}.", "fetch it again from its build."
        )
    return name


def install(folder: Path, root: Path) -> str:
    """Bring a release into the root; one that is there already, and is the same, is left alone. Returns its name."""
    name = verify(folder)
    place = _place(root, name)
    if place.exists():
        if _hashes(place) != _hashes(folder):
            raise ReleaseError(f"another release named {name} is here already.", "give the new one another name.")
        return name
    part = place.with_name(f".{name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(folder, part)
    part.rename(place)
    return name


def activate(root: Path, name: str, target: str, run: Run, steps: Sequence[str] = STEPS) -> None:
    """Deploy a release that is here: Dagster's containers, and the bundle.

    Args:
        target: the bundle's target, which is the environment.
        run: runs the commands.
        steps: of `STEPS`, in order.

    Raises:
        ReleaseError: it is not here, or not as it was packed, or the settings are missing.
        CalledProcessError: a command failed; `state.json` goes on naming the release as `activating`.
    """
    place = _place(root, name)
    if verify(place) != name:
        raise ReleaseError(f"{place} holds another release.", "install it again.")
    settings = root / "settings.env"
    if "dagster" in steps:
        _check_settings(settings)
    state = State.read(root)
    state.activating = name
    state.write(root)
    # A tag of an image has no plus sign.
    environment = {"BRONZE_IMAGE_TAG": name.replace("+", "-"), "BUNDLE_VAR_release": name}
    for step in steps:
        for command in _commands(step, target, settings):
            run(command, place / step, environment)
    state.current, state.activating = name, None
    state.write(root)


def accept(root: Path, name: str) -> None:
    """Note that the running release is good: it is what a later rollback goes back to.

    Raises:
        ReleaseError: another one runs.
    """
    state = State.read(root)
    if state.activating is not None or state.current != name:
        raise ReleaseError(f"{name} does not run: {_words(state)}", "accept the one that was judged.")
    state.good = [*(other for other in state.good if other != name), name]
    state.write(root)


def roll_back(root: Path, target: str, run: Run, steps: Sequence[str] = STEPS, to: str | None = None) -> str:
    """Activate the last good release, or a named one; returns its name.

    Going back from a release that was accepted takes it off the list: whoever goes back has found it not to be good.

    Raises:
        ReleaseError: there is none.
    """
    state = State.read(root)
    failed = state.activating or state.current
    name = to or state.way_back()
    activate(root, name, target, run, steps)
    state = State.read(root)
    state.good = [other for other in state.good if other != failed or other == name]
    state.write(root)
    return name


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, or 1 for an error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="make a release from this checkout and a wheel")
    packing.add_argument("--wheel", type=Path, required=True)
    packing.add_argument("--name", required=True, help="for example 0.1.0+4f2a91c")
    packing.add_argument("--output", type=Path, required=True, help="the folder to make the release in")
    installing = commands.add_parser("install", help="verify a release and bring it into the root")
    installing.add_argument("folder", type=Path)
    activating = commands.add_parser("activate", help="deploy a release that is here")
    activating.add_argument("name")
    accepting = commands.add_parser("accept", help="note that the running release is good")
    accepting.add_argument("name")
    rolling = commands.add_parser("rollback", help="deploy the last good release again")
    rolling.add_argument("--to", help="this one instead")
    showing = commands.add_parser("status", help="say what runs and what was good")
    for command in (installing, activating, accepting, rolling, showing):
        command.add_argument("--root", type=Path, required=True, help="where releases and state are kept")
    for command in (activating, rolling):
        command.add_argument("--target", required=True, choices=["dev", "qa", "prod"])
        command.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), help="only these (default all)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "pack":
            print(pack(options.wheel, options.name, options.output))
            return 0
        with _held(options.root):
            match options.command:
                case "install":
                    print(install(options.folder, options.root))
                case "activate":
                    activate(options.root, options.name, options.target, _run, options.steps)
                case "accept":
                    accept(options.root, options.name)
                case "rollback":
                    print(roll_back(options.root, options.target, _run, options.steps, options.to))
            if options.command != "install":
                print(_words(State.read(options.root)), file=sys.stderr)
    except ReleaseError as error:
        print(error, file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"{error.cmd[0]} failed with exit code {error.returncode}; see above.", file=sys.stderr)
        return 1
    return 0


def _commands(step: str, target: str, settings: Path) -> list[list[str]]:
    compose = ["docker", "compose", "--file", "compose.yaml", "--env-file", str(settings.absolute())]
    return {
        "dagster": [[*compose, "up", "--detach", "--build", "--wait", "--wait-timeout", "300", "--remove-orphans"]],
        "bundle": [
            ["databricks", "bundle", "validate", "--strict", "--target", target],
            ["databricks", "bundle", "deploy", "--target", target],
        ],
    }[step]


def _check_settings(settings: Path) -> None:
    """Raise unless it is told where the source and the master key are; what else must be set, compose names."""
    try:
        lines = settings.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise ReleaseError(f"{settings} is missing.", "copy dagster/settings.env.example and fill it in.") from None
    told = dict(line.partition("=")[::2] for line in lines if not line.lstrip().startswith("#"))
    found = {name.strip() for name, value in {**told, **os.environ}.items() if value.strip(" \t'\"")}
    if "BRONZE_SETTINGS_FILE" in found:
        return
    for names in (("BRONZE_SOURCE_URL_FILE",), ("BRONZE_MASTER_KEY_FILE", "BRONZE_MASTER_KEY")):
        if not found.intersection(names):
            raise ReleaseError(
                f"{settings} has neither BRONZE_SETTINGS_FILE nor {' or '.join(names)}.",
                "set one of them; dagster/settings.env.example says what they are.",
            )


def _run(command: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
    try:
        subprocess.run(command, cwd=folder, env={**os.environ, **environment}, check=True)
    except FileNotFoundError:
        raise ReleaseError(f"{command[0]} is not installed.", "install it, or leave its step out (--steps).") from None


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ReleaseError(f"{name!r} is no name of a release.", "use letters, digits, dots, plus signs and hyphens.")


def _place(root: Path, name: str) -> Path:
    _check_name(name)
    return root / "releases" / name


def _hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST and ".databricks" not in path.parts
    }


def _words(state: State) -> str:
    running = f"{state.current} runs" if state.current else "nothing runs"
    begun = f", the activation of {state.activating} has not ended" if state.activating else ""
    return f"{running}{begun}; good: {', '.join(state.good) or 'none'}."


@contextlib.contextmanager
def _held(root: Path) -> Iterator[None]:
    """One command at a time."""
    (root / "releases").mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ReleaseError(f"another command is at work in {root}.", "wait for it.") from None
        yield


if __name__ == "__main__":
    sys.exit(main())
