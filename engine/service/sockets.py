"""Where the daemon listens: sockets in private folders, TCP, TLS, and whom the kernel says is at the other end."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import ssl
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.errors import UsageError
from engine.service.access import Peer
from engine.service.config import Address, Tls

BACKLOG: Final = 512
_CREDENTIALS: Final = struct.Struct("3i")
_PRIVATE: Final = 0o700
_PASSABLE: Final = 0o711
_OTHERS_MAY_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_LONGEST_PATH: Final = 107  # bytes of sun_path, less the zero at its end


@dataclass(slots=True)
class Listener:
    """An open socket that listens.  ``file``: device and inode of a Unix socket's file."""

    address: Address
    socket: socket.socket
    file: tuple[int, int] | None = None

    def url(self, *, tls: bool) -> str:
        """By what clients reach it."""
        if self.address.path is not None:
            return str(self.address)
        host = f"[{self.address.host}]" if ":" in self.address.host else self.address.host
        return f"{'https' if tls else 'http'}://{host}:{self.socket.getsockname()[1]}"

    def close(self) -> None:
        """Listen no longer.  The file of a Unix socket goes, unless it is another daemon's by now."""
        self.socket.close()
        if self.address.path is None or self.file is None:
            return
        path = Path(self.address.path)
        with contextlib.suppress(OSError), _alone_in(path.parent):
            status = path.lstat()
            if (status.st_dev, status.st_ino) == self.file:
                path.unlink()
        self.file = None


def listen(address: Address, *, others: bool = False) -> Listener:
    """Listen there.  A Unix socket that nobody listens on any more is replaced, a living one is not.

    ``others``: other users are listed and may connect to a Unix socket, to be told apart by the kernel; else only our
    own user can.  Raises ``UsageError`` when the address cannot be listened on.
    """
    try:
        return _unix(address, Path(address.path), others=others) if address.path is not None else _tcp(address)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {address}: {error.strerror or error}", hint="give another `listen`"
        ) from error


def _tcp(address: Address) -> Listener:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # What is accepted inherits these: a client whose machine vanished is noticed.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found.bind((address.host, address.port))
        found.listen(BACKLOG)
        found.setblocking(False)
    except OSError:
        found.close()
        raise
    return Listener(address, found)


def _unix(address: Address, path: Path, *, others: bool) -> Listener:
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise OSError(errno.ENAMETOOLONG, f"the path is longer than {_LONGEST_PATH} bytes")
    _prepare(path.parent, others=others)
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _alone_in(path.parent):
            _remove_stale(path)
            before = os.umask(0o111 if others else 0o177)
            try:
                found.bind(str(path))
            finally:
                os.umask(before)
            found.listen(BACKLOG)
            status = path.lstat()
        found.setblocking(False)
    except OSError:
        found.close()
        raise
    return Listener(address, found, (status.st_dev, status.st_ino))


def _prepare(folder: Path, *, others: bool) -> None:
    """Whoever can write in the folder could put a socket of his own in the place of ours."""
    try:
        folder.mkdir(mode=_PRIVATE)
        if others:
            folder.chmod(_PASSABLE)
    except FileExistsError:
        status = folder.stat()
        if status.st_uid not in (0, os.geteuid()):
            raise OSError(errno.EPERM, f"{folder} belongs to another user") from None
        if status.st_mode & _OTHERS_MAY_WRITE:
            raise OSError(
                errno.EPERM, f"other users can write in {folder}, and could put a socket of theirs there"
            ) from None


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Two daemons that start or end at the same moment look and act one after the other."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _remove_stale(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise OSError(errno.EEXIST, "something that is no socket is there")
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        probe.settimeout(1.0)
        # Only a refusal says that nobody listens: one who is busy shows as a time-out or a full queue.
        if probe.connect_ex(str(path)) != errno.ECONNREFUSED:
            raise OSError(errno.EADDRINUSE, "somebody listens there already")
    path.unlink()


def peer_of(accepted: socket.socket) -> Peer:
    """Who is at the other end of a socket.  Raises ``OSError`` when he is gone already."""
    if accepted.family == socket.AF_UNIX:
        packed = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, gid = _CREDENTIALS.unpack(packed)
        return Peer(uid=uid, gid=gid, pid=pid)
    return Peer(address=str(accepted.getpeername()[0]))


def certificate_names(certificate: object) -> tuple[str, ...]:
    """The common names of a client's certificate, as ``ssl`` shows one that was verified."""
    if not isinstance(certificate, dict):
        return ()
    return tuple(value for part in certificate.get("subject", ()) for key, value in part if key == "commonName")


def tls_context(tls: Tls) -> ssl.SSLContext:
    """What TLS listeners use; with ``client_ca``, clients may show a certificate of it.

    Raises ``UsageError`` when a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(tls.certificate, tls.key, password=_no_password)
        if tls.client_ca is not None:
            context.load_verify_locations(tls.client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "it is not PEM"
        raise UsageError(f"a TLS file cannot be used: {reason}", hint="see [tls] in backfill.toml") from None
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")
