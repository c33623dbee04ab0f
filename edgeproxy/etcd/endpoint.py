"""The address of one etcd member as the configuration writes it."""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec

DEFAULT_PORT = 2379


class Endpoint(msgspec.Struct, frozen=True, order=True):
    """One client URL of etcd. `host` is a name or an address, IPv6 without brackets."""

    host: str
    port: int
    tls: bool

    @property
    def target(self) -> str:
        """`host:port` as gRPC wants it; also the name the certificate is checked against."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.target}"


def parse_endpoint(text: str) -> Endpoint:
    """`http://host:port`, `https://host:port` or, as etcdctl takes it, `host:port` (no TLS).

    The port defaults to 2379. Raises ValueError with a sentence that names what is wrong.
    """
    url = urlsplit(text if "://" in text else f"http://{text}")
    if url.scheme not in ("http", "https"):
        raise ValueError(f"etcd endpoint {text!r}: expected http:// or https://, found {url.scheme}://")
    if url.username is not None or url.password is not None:
        raise ValueError("etcd endpoint: no user or password in the URL; use username and password_file")
    if url.path not in ("", "/") or url.query or url.fragment:
        raise ValueError(f"etcd endpoint {text!r}: expected nothing behind host and port")
    try:
        port = url.port or DEFAULT_PORT
    except ValueError:
        raise ValueError(f"etcd endpoint {text!r}: the port is not a number from 1 to 65535") from None
    if not url.hostname:
        raise ValueError(f"etcd endpoint {text!r}: the host name is missing")
    return Endpoint(host=url.hostname, port=port, tls=url.scheme == "https")
