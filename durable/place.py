"""The directory of a baggage: whether one can be kept there, and who owns it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from durable.errors import BaggageInUse, BaggageRefused

LOCK: Final = "LOCK"
_MOUNTS: Final = Path("/proc/self/mountinfo")
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
#: Filesystems whose locks and shared memory other machines do not see, or see late.
_NETWORK: Final = frozenset(
    (
        "9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda",
        "davfs", "fuse.ceph", "fuse.davfs", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs",
        "fuse.vmhgfs-fuse", "gfs2", "gpfs", "lustre", "ncpfs", "nfs", "nfs4",
        "ocfs2", "orangefs", "prl_fs", "smb3", "smbfs", "vboxsf", "vmhgfs",
    )
)  # fmt: skip


def settle(path: Path, known: Collection[str]) -> None:
    """Makes the directory if it is absent. Raises BaggageRefused unless it is private, local and free or a baggage.

    `known` are the files that a baggage has, or that making one leaves behind. Raises OSError.
    """
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700)
        sync(path.parent)
    kind = filesystem(path)
    if kind in _NETWORK:
        raise BaggageRefused(
            f"{path} is on a network filesystem ({kind}), where a lock does not keep other machines out: "
            "choose a local directory"
        )
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise BaggageRefused(f"{path} is open to other users, and keys will be in it: chmod 700 {path}")
    others = {entry.name for entry in path.iterdir()} - {LOCK, *known}
    if others and not any((path / name).exists() for name in known):
        raise BaggageRefused(f"{path} holds something else ({min(others)}): choose an empty directory")


def filesystem(path: Path) -> str:
    """The type of the filesystem that `path` is on, as Linux calls it; "" where that cannot be known."""
    try:
        mounts = _MOUNTS.read_text(errors="surrogateescape")
    except OSError:
        return ""
    place = os.path.realpath(path)
    best, kind = "", ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        mount = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), before.split(" ")[4])
        # A later mount on the same point covers the earlier one.
        if len(mount) >= len(best) and (place == mount or place.startswith(mount.rstrip("/") + "/")):
            best, kind = mount, after.split(" ")[0]
    return kind


class Lock:
    """The file LOCK, locked as long as this object is not closed and its process lives. Raises BaggageInUse, OSError.

    It holds the owner's process id and the machine's boot id, a line each; only the lock on it means anything.
    """

    def __init__(self, directory: Path) -> None:
        self._fd = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            boot = _BOOT.read_text().strip() if _BOOT.exists() else "-"
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n{boot}\n".encode(), 0)
        except BlockingIOError:
            owner = os.pread(self._fd, 20, 0).split(b"\n")[0]
            os.close(self._fd)
            raise BaggageInUse(directory, int(owner) if owner.isdigit() else None) from None
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Unlocks, also for children that were forked and have the file open. May be called again."""
        if self._fd >= 0:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)
            self._fd = -1


def sync(directory: Path) -> None:
    """Brings the names in a directory to disk. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def rewrite(path: Path) -> None:
    """Brings a file to disk that may be there for this machine's memory alone, as after a failed sync. Raises OSError.

    What a failed sync left is marked clean, and another sync would not write it: the same bytes are written again.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        at = 0
        while data := os.pread(fd, 1 << 20, at):
            at += os.pwrite(fd, data, at)
        if at:
            os.fsync(fd)
    finally:
        os.close(fd)


def copy_files(directory: Path, suffix: str, names: Iterable[str]) -> Path:
    """Copies files into a new directory beside this one, on disk when it bears its name. Raises OSError."""
    number = 1
    while True:
        copy = directory.with_name(directory.name + suffix + (f"-{number}" if number > 1 else ""))
        if not copy.exists():
            break
        number += 1
    unfinished = copy.with_name(f"{copy.name}.new")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(mode=0o700)
    for name in names:
        shutil.copyfile(directory / name, unfinished / name)
        (unfinished / name).chmod(0o600)
        fd = os.open(unfinished / name, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    sync(unfinished)
    unfinished.rename(copy)
    sync(copy.parent)
    return copy


def remove(directory: Path, names: Iterable[str]) -> None:
    """Removes those of the files that are there."""
    for name in names:
        (directory / name).unlink(missing_ok=True)


def replace(directory: Path, name: str, temporary: str, data: bytes) -> None:
    """Writes a file so that after a crash either the old one is there or the new one, whole. Raises OSError."""
    write_synced(directory, temporary, data, names=False)
    os.rename(directory / temporary, directory / name)
    sync(directory)


def write_synced(directory: Path, name: str, data: bytes, *, names: bool = True) -> None:
    """Writes a file of mode 0600 and brings it to disk, with its name unless `names` is False. Raises OSError."""
    fd = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if os.write(fd, data) != len(data):
            raise OSError(f"{name} was written in part")
        os.fsync(fd)
    finally:
        os.close(fd)
    if names:
        sync(directory)
