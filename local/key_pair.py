"""A self-signed certificate and its key, with which the parts of one server authenticate each other.

It creates and renews the two files. It knows no server and no certificate authority: possession of the key
is the proof.
"""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from local.ports import LOOPBACK
from local.state import write_privately

VALID_DAYS = 3650
RENEW_DAYS = 365
"""The next start replaces a pair that expires sooner than this."""


def ensure_key_pair(
    certificate: Path, key: Path, *, name: str, host: str = LOOPBACK, now: datetime | None = None
) -> None:
    """Create both files (mode 0600, for `host`) unless they match, name it and stay valid for a year."""
    now = now or datetime.now(UTC)
    if _is_good(certificate, key, host, now):
        return
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # valid also for a clock that is a little slow
        .not_valid_after(now + timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False
        )
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .sign(private, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    write_privately(key, pem.decode())
    write_privately(certificate, made.public_bytes(serialization.Encoding.PEM).decode())


def _is_good(certificate: Path, key: Path, host: str, now: datetime) -> bool:
    try:
        shown = x509.load_pem_x509_certificate(certificate.read_bytes())
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
        names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound):
        return False
    if ipaddress.ip_address(host) not in names.get_values_for_type(x509.IPAddress):
        return False
    left = shown.not_valid_after_utc - now
    return private.public_key() == shown.public_key() and left > timedelta(days=RENEW_DAYS)
