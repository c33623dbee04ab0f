"""The configuration reader: defaults of the contract, every kind of value, and every complaint."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeproxy.address import parse as address
from edgeproxy.address import parse_network as network
from edgeproxy.config import ConfigurationError, etcd_settings, load, parse, restart_needed
from edgeproxy.config_values import Unexpected, duration
from edgeproxy.settings import (
    SECTIONS,
    AcceptIn,
    Listen,
    Masquerade,
    NodePortAddresses,
    PortRange,
    Settings,
    changed,
)
from tests.bad_configurations import BAD_CONFIGURATIONS, Bad


def test_an_empty_file_gives_the_defaults_of_the_contract() -> None:
    settings = parse("", "empty.toml")

    assert settings == Settings()
    assert settings.etcd.endpoints == ("http://127.0.0.1:2379",)
    assert settings.etcd.prefix == "/services/"
    assert (settings.etcd.dial_timeout, settings.etcd.audit, settings.etcd.start_grace) == (5, 2700, 60)
    assert settings.proxy.service_cidrs == (network("10.96.0.0/16"),)
    assert settings.proxy.node_port_addresses.every_local
    assert settings.proxy.node_port_range == PortRange(30000, 36999)
    assert 36200 in settings.proxy.node_port_range
    assert settings.proxy.scheduler == "wrr"
    assert settings.proxy.masquerade is Masquerade.REMOTE
    assert settings.proxy.external_cidrs == (network("0.0.0.0/0"), network("::/0"))
    assert settings.proxy.anchor_cidrs[0] == network("169.254.96.0/20")
    assert (settings.proxy.mark_bit, settings.proxy.answer_arp) == (14, False)
    assert (settings.proxy.drain, settings.proxy.resync, settings.proxy.min_sync) == (300, 30, 0)
    assert settings.proxy.accept_in is AcceptIn.NONE
    assert settings.health.listen == Listen("0.0.0.0", 10256)
    assert settings.metrics.listen == Listen("127.0.0.1", 10249)
    assert settings.state.dir == Path("/var/lib/edgeproxy")


def test_every_key_can_be_set() -> None:
    settings = parse(
        """
        [etcd]
        endpoints = ["https://etcd1.example/", "https://[fd00::2]:2379"]
        prefix = "/edge/services"
        ca_file = "/run/ca.pem"
        cert_file = "/run/cert.pem"
        key_file = "/run/key.pem"
        username = "edge"
        password_file = "/run/password"
        dial_timeout = "500ms"
        audit = "1h"
        start_grace = "0s"
        [node]
        name = " Edge-1 "
        zone = "a"
        addresses = ["192.0.2.1", "fd00::1"]
        [proxy]
        service_cidrs = ["10.96.0.0/16", "fd00:96::/112"]
        node_port_addresses = ["primary", "192.0.2.0/24"]
        node_port_range = "20000-20010"
        scheduler = "mh"
        masquerade = "none"
        local_cidrs = ["172.17.0.0/16"]
        external_cidrs = ["203.0.113.0/24"]
        anchor_cidrs = ["169.254.200.0/24", "fd11::/64"]
        answer_arp = true
        mark_bit = 0
        drain = "1m30s"
        resync = "10s"
        min_sync = "10s"
        accept_in = "iptables"
        [ipvs]
        tcp_timeout = "15m"
        tcp_fin_timeout = ""
        udp_timeout = "0s"
        [health]
        listen = "[::]:10256"
        [metrics]
        listen = ""
        [state]
        dir = "/tmp/state"
        """,
        "full.toml",
    )

    assert settings.etcd.endpoints == ("https://etcd1.example:2379", "https://[fd00::2]:2379")
    assert settings.etcd.prefix == "/edge/services/"
    assert settings.etcd.dial_timeout == 0.5
    assert settings.node.name == "edge-1"
    assert settings.node.addresses == (address("192.0.2.1"), address("fd00::1"))
    assert settings.proxy.node_port_addresses == NodePortAddresses((network("192.0.2.0/24"),), primary=True)
    assert settings.proxy.drain == 90
    assert (settings.ipvs.tcp_timeout, settings.ipvs.tcp_fin_timeout, settings.ipvs.udp_timeout) == (
        900,
        None,
        None,
    )
    assert str(settings.health.listen) == "[::]:10256"
    assert settings.metrics.listen is None
    every_key = {f"{section}.{key}" for section, keys in SECTIONS.items() for key in keys}
    assert every_key - set(changed(Settings(), settings)) == {"ipvs.tcp_fin_timeout", "ipvs.udp_timeout"}


def test_primary_may_stand_alone() -> None:
    settings = parse('[proxy]\nnode_port_addresses = "primary"', "edgeproxy.toml")
    assert settings.proxy.node_port_addresses == NodePortAddresses((), primary=True)


@pytest.mark.parametrize("bad", BAD_CONFIGURATIONS, ids=lambda bad: bad.name)
def test_a_bad_configuration_is_refused_with_a_precise_message(bad: Bad) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(bad.text, "edge.toml")

    message = str(caught.value)
    position = 0
    for fragment in bad.fragments:
        assert fragment in message[position:], message
        position = message.index(fragment, position) + len(fragment)
    assert all(line.startswith("edge.toml: ") for line in message.splitlines())


def test_a_wrong_value_does_not_bring_up_complaints_about_its_companions() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse('[etcd]\nendpoints = ["https://a:2379"]\ncert_file = "rel.pem"\nkey_file = "/k.pem"\n', "x")

    assert [problem.where for problem in caught.value.problems] == ["etcd.cert_file"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("1m30s", 90), ("0s", 0), ("1h2m3s4ms", 3723.004), ("250ms", 0.25), ("2m", 120)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "90", "s", "1s1m", "-1s", "1.5s", "1 s", "1d", "٣s", 5, True, None])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(Unexpected):
        duration(text)


def test_loading_fills_in_the_host_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Edge-7.Example ")
    path = tmp_path / "edgeproxy.toml"
    path.write_text("")

    assert load(path).node.name == "edge-7.example"
    path.write_text('[node]\nname = "other"\n')
    assert load(path).node.name == "other"


def test_a_missing_file_says_which_and_what_writes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.toml: cannot be read: No such file.*install-units"):
        load(tmp_path / "none.toml")


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "edgeproxy.toml"
    path.write_bytes(b"[node]\nname = '\xff'\n")

    with pytest.raises(ConfigurationError, match="not UTF-8 text: byte 15 is 0xff"):
        load(path)


def test_files_the_configuration_names_must_be_readable(tmp_path: Path) -> None:
    path = tmp_path / "edgeproxy.toml"
    path.write_text(
        f'[etcd]\nendpoints = ["https://a:2379"]\nca_file = "{tmp_path}/ca.pem"\n'
        f'cert_file = "{tmp_path}"\nkey_file = "{path}"\n'
    )

    with pytest.raises(ConfigurationError) as caught:
        load(path)

    assert [problem.where for problem in caught.value.problems] == ["etcd.ca_file", "etcd.cert_file"]
    assert f"{tmp_path}/ca.pem cannot be read: No such file" in str(caught.value)


def test_the_password_is_read_from_its_file_without_the_line_end(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text(" hunter2 \n")
    settings = parse(f'[etcd]\nusername = "edge"\npassword_file = "{secret}"\nprefix = "/x"\n', "x")

    etcd = etcd_settings(settings)

    assert (etcd.username, etcd.password, etcd.prefix) == ("edge", " hunter2 ", b"/x/")
    secret.write_text("\n")
    with pytest.raises(ConfigurationError, match=r"password_file: .* is empty"):
        etcd_settings(settings)


def test_what_needs_a_restart() -> None:
    old = parse("", "old")
    new = parse('[proxy]\nresync = "5s"\nmark_bit = 3\n[state]\ndir = "/x"\n[etcd]\naudit = "1m"\n', "new")

    assert changed(old, new) == ("etcd.audit", "proxy.mark_bit", "proxy.resync", "state.dir")
    assert restart_needed(old, new) == ("etcd.audit", "proxy.mark_bit", "state.dir")
    assert restart_needed(old, old) == ()
