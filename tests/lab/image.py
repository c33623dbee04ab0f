"""The disk of the lab's virtual machine, built from the distribution's packages.

The image is kept in `.cache/lab/<hash>`; the hash covers all that goes in: the package list,
the files under `guest/`, the versions of the Python packages and this file. The project itself
is not in it, the runner puts the current tree into the running machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "lab"
GUEST = Path(__file__).parent / "guest"
SUITE = "bookworm"
DISK_SIZE = "3G"
PACKAGES = (
    "apache2-utils",
    "conntrack",
    "curl",
    "dbus",
    "etcd-client",
    "etcd-server",
    "ipset",
    "iptables",
    "iputils-ping",
    "iproute2",
    "ipvsadm",
    "keepalived",
    "kmod",
    "less",
    "linux-image-cloud-amd64",
    "ncat",
    "nftables",
    "nginx",
    "procps",
    "python3",
    "python3-systemd",
    "python3-venv",
    "socat",
    "strace",
    "systemd",
    "systemd-sysv",
    "tcpdump",
    "udev",
)
# Development tools that no test inside the machine needs.
NATIVE_ONLY = frozenset({"grpcio-tools", "mypy", "ruff"})
# Started by a test that wants them, not at boot.
DISABLED = ("etcd", "keepalived", "nftables", "nginx", "ipvsadm")
# Each costs boot time under emulation or acts on its own in the middle of a test.
MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "console-getty.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "getty-static.service",
    "ldconfig.service",
    "logrotate.timer",
    "man-db.timer",
    "serial-getty@ttyS0.service",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-journal-flush.service",
    "systemd-networkd.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-pcrphase.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-timesyncd.service",
    "systemd-update-done.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
)
NAME = re.compile(r"[A-Za-z0-9._-]+")


class ImageError(Exception):
    """The image could not be built; the message says which step failed and where its log is."""


@dataclass(frozen=True)
class Image:
    """What a machine boots from."""

    disk: Path
    kernel: Path
    initrd: Path


def python_packages() -> list[importlib.metadata.Distribution]:
    """The project's and the tests' installed dependencies, sorted by name.

    The machine gets the very versions that the native tests run with. What the system's own
    Python packages provide (systemd-python) is left out: the machine has those by apt.
    """
    found: dict[str, importlib.metadata.Distribution] = {}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = _names([*project["dependencies"], *project["optional-dependencies"]["dev"]])
    while wanted:
        name = wanted.pop()
        if name in found or name in NATIVE_ONLY:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform or interpreter
        if Path(str(distribution.locate_file(""))).is_relative_to(sys.prefix):
            found[name] = distribution
            wanted += _names(line for line in distribution.requires or [] if "extra ==" not in line)
    return [found[name] for name in sorted(found)]


def _names(requirements: Iterable[str]) -> list[str]:
    matches = (NAME.match(requirement) for requirement in requirements)
    return [re.sub(r"[-_.]+", "-", match.group()).lower() for match in matches if match]


def digest() -> str:
    """Names the image: what went in, in short."""
    total = hashlib.sha256()
    files = (path for path in sorted(GUEST.rglob("*")) if path.is_file())
    # A compiled copy of the agent comes and goes with whoever imports it.
    inputs = [Path(__file__), *(path for path in files if "__pycache__" not in path.parts)]
    for path in inputs:
        total.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    for package in python_packages():
        total.update(f"{package.name}=={package.version}\n".encode())
    return total.hexdigest()[:16]


def image() -> Image:
    """The current image; builds it (a minute or two) when there is none in the cache."""
    directory = CACHE / digest()
    result = Image(directory / "disk.raw", directory / "vmlinuz", directory / "initrd.img")
    CACHE.mkdir(parents=True, exist_ok=True)
    with _locked(CACHE / "build.lock"):
        if not directory.exists():
            _build(directory)
    os.utime(directory)
    return result


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(directory: Path) -> None:
    if os.geteuid() != 0:
        raise ImageError("building the lab's image needs root: run as root")
    work = CACHE / "building"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    log = CACHE / "build.log"
    log.unlink(missing_ok=True)
    tree = work / "root"
    print(f"lab: building the machine's image (log: {log})", file=sys.stderr, flush=True)
    _step(log, "distribution packages", _mmdebstrap(tree))
    _step(log, "initial ramdisk", ["chroot", str(tree), "update-initramfs", "-u"])
    print("lab:   Python packages", file=sys.stderr, flush=True)
    _install_python(tree, log)
    _finish_root(tree, log)
    ready = work / "ready"
    ready.mkdir()
    shutil.copy(next(tree.glob("boot/vmlinuz-*")), ready / "vmlinuz")
    shutil.copy(next(tree.glob("boot/initrd.img-*")), ready / "initrd.img")
    _step(
        log,
        "disk",
        [
            "mke2fs",
            "-q",
            "-t",
            "ext4",
            "-O",
            "^has_journal",
            "-d",
            str(tree),
            str(ready / "disk.raw"),
            DISK_SIZE,
        ],
    )
    ready.rename(directory)
    shutil.rmtree(work)
    _prune(keep=directory)


def _prune(keep: Path) -> None:
    """Drops images that nobody used for two weeks."""
    for old in CACHE.glob("????????????????"):
        if old != keep and old.stat().st_mtime < keep.stat().st_mtime - 14 * 86400:
            shutil.rmtree(old, ignore_errors=True)


def _step(log: Path, what: str, argv: list[str]) -> None:
    print(f"lab:   {what}", file=sys.stderr, flush=True)
    with log.open("a") as output:
        output.write(f"$ {' '.join(argv)}\n")
        output.flush()
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False)
    if done.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise ImageError(
            f"{what}: {argv[0]} failed with exit code {done.returncode}:\n{tail}\n(full log: {log})"
        )


def _mmdebstrap(tree: Path) -> list[str]:
    return [
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        "--aptopt=Apt::Install-Recommends false",
        *(f"--aptopt={option}" for option in _apt_settings()),
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        f"--setup-hook=cp -r {GUEST}/etc {GUEST}/usr $1/",
        SUITE,
        str(tree),
        *_archive(),
    ]


def _apt_settings() -> list[str]:
    """How this machine's apt reaches the archive: proxies, checks that are switched off."""
    dump = subprocess.run(
        ["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=True
    ).stdout
    wanted = ("Check-Valid-Until", "Check-Date", "http::", "https::", "Retries")
    return [
        line
        for line in dump.splitlines()
        if line.startswith(tuple(f"Acquire::{name}" for name in wanted)) and '"";' not in line
    ]


def _archive() -> list[str]:
    """This machine's own sources of Debian packages; mmdebstrap's default where it has none."""
    listing = subprocess.run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "deb $(REPO_URI) $(RELEASE) $(COMPONENT)",
            "Created-By: Packages",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = dict.fromkeys(listing.splitlines())
    debian = re.compile(rf"deb \S+ {SUITE}(-updates|-security)? main")
    return [line for line in lines if debian.fullmatch(line)]


def _install_python(tree: Path, log: Path) -> None:
    """Two environments: the product's, as an operator makes it, and the tests' on top of it."""
    for name in ("edgeproxy", "lab"):
        _step(
            log,
            f"environment /opt/{name}",
            ["chroot", str(tree), "python3", "-m", "venv", "--system-site-packages", f"/opt/{name}"],
        )
    site = tree / "opt/edgeproxy/lib/python3.11/site-packages"
    for package in python_packages():
        base = Path(str(package.locate_file("")))
        for file in package.files or []:
            source = Path(str(package.locate_file(file)))
            if ".." in file.parts or "__pycache__" in file.parts or not source.is_file():
                continue  # scripts and caches
            target = site / source.relative_to(base)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    # The tree under test comes before what may be installed in the product's environment.
    (tree / "opt/lab/lib/python3.11/site-packages/lab.pth").write_text(
        "/src\n/opt/edgeproxy/lib/python3.11/site-packages\n"
    )
    for command, module in (("pytest", "pytest"), ("edgeproxy", "edgeproxy.cli")):
        script = tree / "opt/lab/bin" / command
        script.write_text(
            f"#!/opt/lab/bin/python3\nimport sys\n\nfrom {module} import main\n\nsys.exit(main())\n"
        )
        script.chmod(0o755)
    _step(
        log,
        "byte code",
        ["chroot", str(tree), "python3", "-m", "compileall", "-q", "/opt", "/usr/lib/python3.11"],
    )


def _finish_root(tree: Path, log: Path) -> None:
    shutil.copy(GUEST / "lab-agent.py", tree / "usr/local/lib/lab-agent.py")
    for directory in ("src", "results"):
        (tree / directory).mkdir()
    (tree / "etc/resolv.conf").unlink(missing_ok=True)
    inside = ["chroot", str(tree)]
    _step(log, "units", [*inside, "systemctl", "enable", "lab-agent.service"])
    _step(log, "units", [*inside, "systemctl", "disable", *DISABLED])
    _step(log, "units", [*inside, "systemctl", "mask", *MASKED])
    _step(log, "machine id", [*inside, "systemd-machine-id-setup"])
    shutil.rmtree(tree / "var/lib/apt/lists", ignore_errors=True)
    shutil.rmtree(tree / "var/cache/apt", ignore_errors=True)
