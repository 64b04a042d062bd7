#!/usr/bin/env python3
"""Makes `.venv` with the pinned dependencies of this checkout, or finds that it is already there.

With the version of a Databricks Runtime, `bootstrap.py 17.3`, it makes `.venv-databricks-17.3` with the Spark of that
runtime instead: what `constraints-databricks-17.3.txt` pins differs from `constraints.txt`. `bootstrap.py bench` makes
`.venv-bench` with what `make bench` measures loads against, whose pins would not fit ours.

Needs nothing but Python. Written so that an old Python 3 can read it too and say which one is needed.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time

OLDEST, NEWEST = (3, 11), (3, 13)
OLDEST_JAVA = 17
ROOT = os.path.dirname(os.path.abspath(__file__))
RUNTIME = sys.argv[1] if len(sys.argv) > 1 else ""
BENCH = RUNTIME == "bench"
NAME = ".venv-bench" if BENCH else ".venv-databricks-" + RUNTIME if RUNTIME else ".venv"
VENV = os.path.join(ROOT, NAME)
PYTHON = os.path.join(VENV, "bin", "python")
STAMP = os.path.join(VENV, "bronze-installed")
OTHERS = "benchmarks/constraints-bench.txt" if BENCH else "constraints-databricks-%s.txt" % RUNTIME
INPUTS = (OTHERS,) if BENCH else ("pyproject.toml", "constraints.txt", "setup.py") + ((OTHERS,) if RUNTIME else ())
EXTRAS = ["demo", "dev"]
RIVALS = ["dlt[deltalake,sql-database]", "connectorx", "adbc-driver-postgresql", "psycopg2-binary", "numpy"]
# Measured with the versions of constraints.txt; said before anything is downloaded.
BENCH_DOWNLOAD_MB, BENCH_DISK_MB = 200, 740
DOWNLOAD_MB, DISK_MB, JAVA_DOWNLOAD_MB, JAVA_DISK_MB, JARS_MB, HOME_MB, MEMORY_GB = 730, 1760, 35, 105, 11, 150, 3


def main():
    # type: () -> int
    """Make or complete the environment; returns the exit code."""
    if os.name == "nt":
        return fail("Windows is not served directly.", "use WSL2 (`wsl --install`) and run this inside it.")
    if RUNTIME and not os.path.isfile(os.path.join(ROOT, OTHERS)):
        known = sorted(name[len("constraints-databricks-") : -len(".txt")] for name in os.listdir(ROOT) if is_set(name))
        return fail("Nothing is pinned for Databricks Runtime %r." % RUNTIME, "use one of %s." % ", ".join(known))
    extras = list(EXTRAS)
    wanted = fingerprint()
    if read(STAMP) == wanted and os.access(PYTHON, os.X_OK):
        return 0
    python = interpreter()
    if python is None:
        return fail(
            "Python %d.%d to %d.%d is needed; this is %s and no other was found."
            % (OLDEST + NEWEST + (sys.version.split()[0],)),
            "install Python 3.11 or newer and run `make` again, or name it: `make PYTHON=/path/to/python3.11 demo`.",
        )
    # Spark's older lines do not run on each newer Java.
    if not BENCH and (RUNTIME or not has_java()):
        extras.append("java")
    if BENCH:
        print(
            "First run of the benchmark: installing dlt, ConnectorX and ADBC into %s, to measure against.\n"
            "  to download   about %d MB, %d MB on disk" % (NAME, BENCH_DOWNLOAD_MB, BENCH_DISK_MB),
            flush=True,
        )
    else:
        announce("java" in extras)
    if not os.access(PYTHON, os.X_OK) or subprocess.call([PYTHON, "-c", "import pip"], stderr=subprocess.DEVNULL):
        error = make_venv(python)
        if error:
            return fail(error[0], error[1])
    failure = install(RIVALS if BENCH else ["--editable", ".[%s]" % ",".join(extras)])
    if failure:
        return fail(failure, "check the network and the proxy settings, then run the same command again; it goes on.")
    write(STAMP, wanted)
    print("Installed.", flush=True)
    return 0


def interpreter():
    # type: () -> str | None
    """A Python of a served version: this one if it is, else the newest found on PATH."""
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return sys.executable
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        found = shutil.which("python3.%d" % minor)
        # A shim of pyenv or asdf may be there without the version behind it.
        if found and quiet([found, "-c", "import sys; sys.exit(sys.version_info[:2] != (3, %d))" % minor]) == 0:
            return found
    return None


def has_java():
    # type: () -> bool
    """Whether JAVA_HOME or PATH has a Java that Spark can run on."""
    home = os.environ.get("JAVA_HOME")
    for java in (home and os.path.join(home, "bin", "java"), shutil.which("java")):
        if not java:
            continue
        try:
            answer = subprocess.run(
                [java, "-version"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=60,
            )
        except (OSError, subprocess.SubprocessError):
            continue
        version = re.search(r'version "(?:1\.)?(\d+)', answer.stdout.decode("utf-8", "replace"))
        if answer.returncode == 0 and version and int(version.group(1)) >= OLDEST_JAVA:
            return True
    return False


def announce(java):
    # type: (bool) -> None
    """Say what is about to be downloaded and what it takes, before it happens."""
    download = DOWNLOAD_MB + (JAVA_DOWNLOAD_MB if java else 0)
    disk = DISK_MB + (JAVA_DISK_MB if java else 0)
    print(
        "First run in this checkout: installing the pinned dependencies into %s%s."
        % (NAME, ", a Java runtime among them" + ("" if RUNTIME else " (none was found)") if java else "")
    )
    print(
        "  to download   about %d MB of Python packages, and %d MB of jars when Spark first starts\n"
        "  disk          about %d MB in %s, and %d MB in .bronze after the demo\n"
        "  memory        up to %d GB while tables are loaded" % (download, JARS_MB, disk, NAME, HOME_MB, MEMORY_GB),
        flush=True,
    )


def make_venv(python):
    # type: (str) -> tuple[str, str] | None
    """Make the environment with the first tool that can; returns what is wrong and the fix, or None."""
    attempts = [[python, "-m", "venv", VENV]]
    uv, virtualenv = shutil.which("uv"), shutil.which("virtualenv")
    if uv:
        attempts.append([uv, "venv", "--seed", "--python", python, VENV])
    if virtualenv:
        attempts.append([virtualenv, "--quiet", "--python", python, VENV])
    attempts.append([python, "-m", "virtualenv", "--quiet", VENV])
    for command in attempts:
        # What a failed attempt left would be in the way of the next.
        shutil.rmtree(VENV, ignore_errors=True)
        if quiet(command) == 0 and quiet([PYTHON, "-m", "pip", "--version"]) == 0:
            return None
    version = "%d.%d" % sys.version_info[:2] if python == sys.executable else os.path.basename(python)[len("python") :]
    return (
        "%s cannot make a virtual environment: ensurepip is missing, and there is neither uv nor virtualenv." % python,
        "install one of them, for example `sudo apt install python%s-venv` (Debian, Ubuntu), or uv or virtualenv "
        "in your home; then run the same command again." % version,
    )


def install(wanted):
    # type: (list[str]) -> str | None
    """Install what pip's arguments name, and what that depends on; returns what went wrong, or None."""
    command = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    pinned = os.path.join(VENV, "constraints.txt")
    write(pinned, constraints())
    command += ["--constraint", pinned, *wanted]
    begin = said = time.time()
    last = []  # type: list[str]
    done = 0
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        for raw in process.stdout:
            line = raw.decode("utf-8", "replace").strip()
            last.append(line)
            del last[:-6]
            seconds = time.time() - begin
            if line.startswith("Collecting "):
                done += 1
                if time.time() - said > 3:
                    said = time.time()
                    print("  %3d s  %d packages found, now %s" % (seconds, done, line.split()[1]), flush=True)
            elif line.startswith("Downloading "):
                size = re.search(r"\(([0-9.]+) MB\)", line)
                if size and float(size.group(1)) > 20:
                    said = time.time()
                    name = os.path.basename(line.split()[1]).split("-")[0]
                    print("  %3d s  downloading %s (%s MB)" % (seconds, name, size.group(1)), flush=True)
            elif line.startswith("Building wheels for"):
                print("  %3d s  building %s" % (seconds, line.partition(": ")[2]), flush=True)
            elif line.startswith("Installing collected packages"):
                print("  %3d s  unpacking (%d)" % (seconds, line.count(",") + 1), flush=True)
    if process.returncode == 0:
        return None
    return "pip could not install the dependencies:\n  " + "\n  ".join(last)


def is_set(name):
    # type: (str) -> bool
    """Whether a file pins the Spark of a Databricks Runtime."""
    return name.startswith("constraints-databricks-") and name.endswith(".txt")


def constraints():
    # type: () -> str
    """The pinned versions; pip refuses two for one package, so those of the runtime take the place of the others."""
    pins = {}  # type: dict[str, str]
    for name in INPUTS:
        if os.path.basename(name).startswith("constraints"):
            pins.update((line.partition("==")[0], line) for line in read(os.path.join(ROOT, name)).splitlines())
    return "".join(line + "\n" for line in pins.values())


def fingerprint():
    # type: () -> str
    """What an installation depends on, hashed; a moved checkout counts as another one, for its paths are in it."""
    digest = hashlib.sha256(ROOT.encode("utf-8", "surrogateescape"))
    for name in INPUTS:
        digest.update(read(os.path.join(ROOT, name)).encode("utf-8"))
    return digest.hexdigest()


def quiet(command):
    # type: (list[str]) -> int
    """Run the command without its output; returns its exit code, 127 when it cannot be run."""
    try:
        return subprocess.call(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
        )
    except OSError:
        return 127


def read(path):
    # type: (str) -> str
    """The file's text; empty when there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError:
        return ""


def write(path, text):
    # type: (str, str) -> None
    """Write the file as a whole: a half-written stamp would count as an installation."""
    with open(path + ".part", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(path + ".part", path)


def fail(culprit, fix):
    # type: (str, str) -> int
    """Tell what is wrong and what to do; returns the exit code."""
    sys.stderr.write("%s\nFix: %s\n" % (culprit, fix))
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. The next `make` goes on from here.\n")
        sys.exit(130)
