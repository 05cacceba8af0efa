"""The certificate of the server, and the authorities of its clients: checked before they are used, and read again."""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
import stat
import time
from pathlib import Path
from typing import NamedTuple

from airflow_provider_air_executor.exceptions import SettingsError

log = logging.getLogger("air_executor.server")

_SOON_DAYS = 14  # before its end, a certificate is warned of


class TlsFiles(NamedTuple):
    """The files of a TLS server, in PEM."""

    certificate: Path  # and the intermediate ones that belong to it
    key: Path  # without a password
    client_ca: Path | None = None  # the authorities one of which has signed each client's certificate


class Tls:
    """The TLS of a server.

    :param paths: the files.
    :raises SettingsError: if they cannot be used; the message says why.
    """

    def __init__(self, paths: TlsFiles) -> None:
        self._paths = paths
        self.context = _checked(paths)  # for connections that are accepted from now on

    def reload(self) -> None:
        """Read the files again. What cannot be used is logged, and the old ones stay in use."""
        try:
            self.context = _checked(self._paths)
        except SettingsError as error:
            log.error("%s; the certificate that was read before stays in use", error)
        else:
            log.info("the certificate %s was read again", self._paths.certificate)


def _checked(paths: TlsFiles) -> ssl.SSLContext:
    """A context that works with these files.

    :raises SettingsError: if none does.
    """
    context = _context(paths)
    expires = _try(paths.certificate, context)
    days = int((ssl.cert_time_to_seconds(expires) - time.time()) // 86400)
    if days < _SOON_DAYS:
        log.warning("the certificate %s expires in %d days, on %s", paths.certificate, days, expires)
    _warn_of_readers(paths.key)
    if paths.client_ca is not None:
        _load_authorities(context, paths.client_ca)
    return context


def _context(paths: TlsFiles) -> ssl.SSLContext:
    """A context with a certificate and its key.

    :raises SettingsError: if they cannot be read, or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    for path in (paths.certificate, paths.key):
        _check_readable(path)
    try:
        context.load_cert_chain(paths.certificate, paths.key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise SettingsError(f"the key {paths.key} does not belong to the certificate {paths.certificate}") from None
        raise SettingsError(f"the certificate {paths.certificate} or its key {paths.key}: {_why(error)}") from None
    except (_EncryptedError, OSError) as error:
        raise SettingsError(f"the key {paths.key} cannot be read: {error}") from None
    return context


class _EncryptedError(Exception):
    """A key needs a password."""


def _no_password() -> str:
    raise _EncryptedError("it is encrypted; give one without a password, which only the server's user can read")


def _check_readable(path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None


def _try(certificate: Path, server: ssl.SSLContext) -> str:
    """Let a client who trusts the certificate itself try it: it must be valid today, and one of a server.

    :return: until when it is valid.
    :raises SettingsError: if no client will accept it.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(certificate)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(to_client, to_server)
    there = server.wrap_bio(to_server, to_client, server_side=True)
    try:
        for side in (here, there, here):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        raise SettingsError(f"no client will accept the certificate {certificate}: {error.verify_message}") from None
    except ssl.SSLError as error:
        raise SettingsError(f"the certificate {certificate} cannot be used: {_why(error)}") from None
    return str((here.getpeercert() or {})["notAfter"])


def _load_authorities(context: ssl.SSLContext, path: Path) -> None:
    """Ask each client for a certificate that one of these authorities has signed.

    :raises SettingsError: if there is none.
    """
    _check_readable(path)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise SettingsError(f"the authorities of clients in {path} cannot be used: {_why(error)}") from None
    context.verify_mode = ssl.CERT_REQUIRED


def _warn_of_readers(key: Path) -> None:
    mode = stat.S_IMODE(os.stat(key).st_mode)
    if mode & stat.S_IROTH:
        log.warning("every user of this machine can read the key %s (mode %04o); chmod 600 it", key, mode)


def _why(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).lower().replace("_", " ")
