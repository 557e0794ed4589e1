"""HTTPS for a live server: the user's certificate, or one of its own for the local network."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import socket
import ssl
import tempfile
from pathlib import Path

from streamfix.errors import UsageError

_DAYS = 30


def server_context(cert: Path | None, key: Path | None, *, hosts: list[str]) -> tuple[ssl.SSLContext, str | None]:
    """The context, and the SHA-256 fingerprint of a certificate made here (None for the user's own).

    cert, key: PEM files; None for both makes a self-signed certificate for these hosts. Raises UsageError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if cert is not None:
        try:
            context.load_cert_chain(cert, key)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"the certificate {cert} cannot be used; give PEM files that belong together") from error
        return context, None
    if key is not None:
        raise UsageError("a key without its certificate is of no use; give --tls-cert too")
    certificate, secret, fingerprint = self_signed(hosts)
    descriptor, name = tempfile.mkstemp(prefix="streamfix-", suffix=".pem")  # readable by this user alone
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(certificate + secret)
        context.load_cert_chain(name)
    finally:
        os.unlink(name)
    return context, fingerprint


def self_signed(hosts: list[str]) -> tuple[bytes, bytes, str]:
    """(certificate, key, SHA-256 fingerprint) in PEM, for these names and addresses, valid for a month."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "streamfix live")])
    alternatives: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            with contextlib.suppress(UnicodeError):  # no name: where it matters, listening there fails and says so
                alternatives.append(x509.DNSName(host.encode("idna").decode()))
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    digest = certificate.fingerprint(hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM), secret, digest.hex(":").upper()


def own_names(host: str) -> list[str]:
    """Names and addresses by which this machine may be called when it listens there, first the one to tell people."""
    names = [socket.gethostname(), "localhost"]
    match host:
        case "0.0.0.0":
            return [*_addresses("192.0.2.1"), *names, "127.0.0.1"]
        case "::":  # asyncio takes it for IPv6 alone, and a name may lead to IPv4
            return [*_addresses("2001:db8::1"), "::1", *names]
        case "":
            return [*_addresses("192.0.2.1", "2001:db8::1"), *names, "127.0.0.1", "::1"]
        case _:
            return [host, "localhost", "127.0.0.1", "::1"]


def _addresses(*targets: str) -> list[str]:
    """Addresses of this machine on its networks: those from which it would reach the targets."""
    found = []
    for target in targets:
        try:
            with socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect((target, 9))  # sends nothing: it only asks for the route
                found.append(str(probe.getsockname()[0]))
        except OSError:
            continue
    return found
