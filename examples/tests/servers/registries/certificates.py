"""An authority of our own and a server's certificate, for tests: certificates.py FOLDER NAME... writes ca.pem, server.pem, server.key."""
import datetime, ipaddress, sys
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

folder, names = sys.argv[1], sys.argv[2:]
now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)

def certificate(called, of, issuer, by, extensions):
    made = (x509.CertificateBuilder().subject_name(called).issuer_name(issuer).public_key(of.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + day))
    for extension in extensions:
        made = made.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    return made.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

def called(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

def san(name):
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)

authority, server = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
# Of a name of its own: authorities of one name are told apart by signatures only.
root = called(f"dth tests {x509.random_serial_number():x}")
written = {
    "ca.pem": certificate(root, authority, root, authority, [x509.BasicConstraints(True, None)]),
    "server.pem": certificate(called("server"), server, root, authority,
                              [x509.BasicConstraints(False, None), x509.SubjectAlternativeName([san(name) for name in names])]),
    "server.key": server.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
}
for name, text in written.items():
    open(f"{folder}/{name}", "wb").write(text)
