"""An encrypted connection that cannot be made ends the download at once, with its cause and its cure."""

import datetime
import http.server
import ipaddress
import ssl
import threading
import urllib.error

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipeline.errors import InputError
from pipeline.kaggle.download import download_file


@pytest.fixture
def connections():
    """Count the connections that the servers of a test take."""
    return []


@pytest.fixture
def serve(connections):
    """Return a function that starts a file server, with the certificate in a file or without, and returns its port."""
    servers = []

    class Server(http.server.ThreadingHTTPServer):
        def get_request(self):
            connections.append(1)
            return super().get_request()

        def handle_error(self, *_):
            pass

    def serve(certificate=None):
        server = Server(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server.server_port

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def certificate(tmp_path):
    """Return a file with a key and a certificate for 127.0.0.1 that it signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    kind = serialization.Encoding.PEM
    private = key.private_bytes(kind, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "server.pem").write_bytes(private + signed.public_bytes(kind))
    return tmp_path / "server.pem"


def test_a_certificate_that_does_not_verify_is_named_and_not_tried_again(serve, certificate, connections, tmp_path):
    url = f"https://127.0.0.1:{serve(certificate)}/x.zip"
    with pytest.raises(InputError, match=r"x\.zip: the server's certificate does not verify \(self.signed") as error:
        download_file(url, tmp_path / "partial", attempts=5, pause_s=60)
    assert "Install Certificates.command" in str(error.value)
    assert "SSL_CERT_FILE" in str(error.value)
    assert len(connections) == 1
    assert not (tmp_path / "partial").exists()


def test_a_server_that_does_not_encrypt_is_named_and_not_tried_again(serve, connections, tmp_path):
    url = f"https://127.0.0.1:{serve()}/x.zip"
    with pytest.raises(InputError, match=r"x\.zip: no encrypted connection .*; check the address"):
        download_file(url, tmp_path / "partial", attempts=5, pause_s=60)
    assert len(connections) == 1


@pytest.mark.parametrize(
    "reason", [ssl.SSLEOFError(8, "EOF occurred"), OSError(-2, "Name or service not known"), TimeoutError("timed out")]
)
def test_what_may_pass_is_tried_again(monkeypatch, tmp_path, reason):
    tries = []

    def refuse(*_, **__):
        tries.append(1)
        raise urllib.error.URLError(reason)

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(InputError, match=r"no connection .*, 3 times in a row; fetch again later"):
        download_file("https://nowhere.test/x.zip", tmp_path / "partial", attempts=3, pause_s=0)
    assert len(tries) == 3
