"""The kernel edge works for an ordinary user with CAP_NET_ADMIN as ambient capability, as the unit grants it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.native.conftest import sh

PROGRAM = """
import socket, sys
sys.path.insert(0, {root!r})
from edgeproxy.address import parse, parse_network
from edgeproxy.kernel.conntrack import Conntrack, Selection
from edgeproxy.kernel.nft import Nft
from edgeproxy.kernel.nft_events import RuleSetWatch
from edgeproxy.kernel.routes import PutRoute, Routes
from edgeproxy.model import Element, SetName

def rule_set():
    with Nft() as nft:
        nft.load("table inet edgeproxy {{\\nset addresses4 {{ type ipv4_addr; }}\\n}}\\ntable arp edgeproxy {{\\n}}\\n")
        nft.commit([Element(SetName.ADDRESSES4, (parse("10.96.0.1"),))])
        return len(nft.dump(SetName.ADDRESSES4)), nft.fingerprint() is not None

def notices():
    with Nft() as nft, RuleSetWatch(nft) as watch:
        return watch.read()

def flows():
    return len(list(Conntrack().flows(Selection(socket.AF_INET))))

def route():
    return Routes().apply([PutRoute(parse_network("10.96.0.0/16"), None)])[0]

for part in (rule_set, notices, flows, route):
    try:
        print(part())
    except Exception as error:
        print(type(error).__name__, error)
"""


def _as_nobody(*options: str) -> list[str]:
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    root = str(Path(__file__).parents[2])
    user = ("--reuid", "nobody", "--regid", "nogroup", "--clear-groups", "--no-new-privs")
    return sh("setpriv", *user, *options, sys.executable, "-c", PROGRAM.format(root=root)).splitlines()


@pytest.mark.usefixtures("netns")
def test_with_the_capability() -> None:
    said = _as_nobody(
        "--inh-caps",
        "-all,+net_admin",
        "--ambient-caps",
        "-all,+net_admin",
        "--bounding-set",
        "-all,+net_admin",
    )
    assert said[0] == "(1, True)"
    assert "lost=False" in said[1]
    assert said[2] == "0"
    assert "State.DONE" in said[3]


@pytest.mark.usefixtures("netns")
def test_without_it_the_errors_say_what_is_missing() -> None:
    said = _as_nobody("--inh-caps", "-all", "--ambient-caps", "-all", "--bounding-set", "-all")
    assert said[0].startswith("NftError")
    for line in (said[0], said[2], said[3]):
        assert "CAP_NET_ADMIN" in line
    assert "not permitted" in said[1] or "lost=False" in said[1]
