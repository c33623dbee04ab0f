"""Configurations that must be refused, each with what the operator must read about it.

Used by the unit tests of the reader and, through the installed command, by the tests of `run` and `check`.
"""

from __future__ import annotations

from typing import NamedTuple


class Bad(NamedTuple):
    """A configuration and the fragments its complaint must contain, in this order."""

    name: str
    text: str
    fragments: tuple[str, ...]


BAD_CONFIGURATIONS = (
    Bad("syntax", '[proxy]\nresync = 30s"\n', ("not valid TOML", "line 2")),
    Bad("key twice", '[proxy]\ndrain = "1s"\ndrain = "2s"\n', ("not valid TOML", "line 3")),
    Bad("unknown section", '[proxi]\ndrain = "1s"\n', ("[proxi]: unknown section: did you mean [proxy]?",)),
    Bad(
        "unknown key",
        '[proxy]\nresynch = "30s"\n',
        ("proxy.resynch: unknown key: did you mean proxy.resync?",),
    ),
    Bad(
        "key with dashes",
        '[etcd]\nca-file = "/x"\n',
        ("etcd.ca-file: unknown key: did you mean etcd.ca_file?",),
    ),
    Bad(
        "key of another section",
        '[node]\ndrain = "1m"\n',
        ("node.drain: unknown key: did you mean proxy.drain?",),
    ),
    Bad(
        "key outside",
        'drain = "1m"\n',
        ("drain: unknown key outside any section: did you mean proxy.drain?",),
    ),
    Bad(
        "nothing like it",
        "[state]\nxyzzy = 1\n",
        ("state.xyzzy: unknown key, expected one of dir",),
    ),
    Bad("section is a value", "node = 3\n", ("node: found 3, expected a section [node]",)),
    Bad(
        "duration is a number",
        "[proxy]\nresync = 30\n",
        ('proxy.resync: found 30, expected a duration such as "90s", "1m30s" or "0s"',),
    ),
    Bad(
        "duration without unit", '[proxy]\ndrain = "30"\n', ('proxy.drain: found "30", expected a duration',)
    ),
    Bad("resync of nothing", '[proxy]\nresync = "0s"\n', ('proxy.resync: found "0s"', "longer than 0s")),
    Bad(
        "min_sync above resync",
        '[proxy]\nresync = "10s"\nmin_sync = "1m"\n',
        ("proxy.min_sync: found 60s, expected at most proxy.resync (10s)",),
    ),
    Bad(
        "CIDR",
        '[proxy]\nservice_cidrs = ["10.96.0.0/16", "10.97.0.0/33", "fd00::/x"]\n',
        (
            'proxy.service_cidrs[1]: found "10.97.0.0/33", expected a CIDR',
            'proxy.service_cidrs[2]: found "fd00::/x", expected a CIDR',
        ),
    ),
    Bad(
        "list is a string",
        '[proxy]\nservice_cidrs = "10.96.0.0/16"\n',
        ('proxy.service_cidrs: found "10.96.0.0/16", expected a list in square brackets',),
    ),
    Bad(
        "everything is a service address",
        '[proxy]\nservice_cidrs = ["0.0.0.0/0"]\n',
        ("proxy.service_cidrs[0]: 0.0.0.0/0 is too large, expected a prefix length of 8 or more",),
    ),
    Bad(
        "service CIDR is loopback",
        '[proxy]\nservice_cidrs = ["127.1.0.0/16"]\n',
        ("proxy.service_cidrs[0]: 127.1.0.0/16 overlaps 127.0.0.0/8",),
    ),
    Bad(
        "service CIDRs overlap",
        '[proxy]\nservice_cidrs = ["10.96.0.0/16", "10.96.4.0/24"]\n',
        ("proxy.service_cidrs[1]: 10.96.4.0/24 overlaps 10.96.0.0/16 of the same list",),
    ),
    Bad(
        "service CIDR and anchors overlap",
        '[proxy]\nservice_cidrs = ["fd96:6564::/32"]\n',
        ("proxy.service_cidrs[0]: fd96:6564::/32 overlaps fd96:6564:6765::/64 of proxy.anchor_cidrs",),
    ),
    Bad(
        "anchors of one family",
        '[proxy]\nanchor_cidrs = ["169.254.96.0/20"]\n',
        ("proxy.anchor_cidrs: found 0 IPv6 networks, expected exactly one",),
    ),
    Bad(
        "anchors too few",
        '[proxy]\nanchor_cidrs = ["169.254.96.0/30", "fd00:1::/64"]\n',
        ("proxy.anchor_cidrs: 169.254.96.0/30 is too small, expected a prefix length of 28 or less",),
    ),
    Bad(
        "node port range backwards",
        '[proxy]\nnode_port_range = "36999-30000"\n',
        ('proxy.node_port_range: found "36999-30000", expected two port numbers "FIRST-LAST"',),
    ),
    Bad(
        "privileged node ports",
        '[proxy]\nnode_port_range = "80-90"\n',
        ("proxy.node_port_range", "1024 <= FIRST"),
    ),
    Bad(
        "node port addresses",
        '[proxy]\nnode_port_addresses = ["primry"]\n',
        ('proxy.node_port_addresses[0]: found "primry"', 'or "primary"'),
    ),
    Bad("scheduler", '[proxy]\nscheduler = "Round Robin"\n', ('proxy.scheduler: found "Round Robin"', "wrr")),
    Bad(
        "masquerade",
        '[proxy]\nmasquerade = "yes"\n',
        ('proxy.masquerade: found "yes", expected "remote" or "all" or "none"',),
    ),
    Bad(
        "accept_in",
        '[proxy]\naccept_in = "nftables"\n',
        ('proxy.accept_in: found "nftables", expected "none" or "iptables"',),
    ),
    Bad(
        "mark bit",
        "[proxy]\nmark_bit = 32\n",
        ("proxy.mark_bit: found 32, expected the number of a bit, 0 to 31",),
    ),
    Bad("mark bit is a boolean", "[proxy]\nmark_bit = true\n", ("proxy.mark_bit: found true",)),
    Bad(
        "boolean in quotes",
        '[proxy]\nanswer_arp = "true"\n',
        ('proxy.answer_arp: found "true", expected true or false',),
    ),
    Bad("kernel timeout", '[ipvs]\nudp_timeout = "1500ms"\n', ("ipvs.udp_timeout", "whole seconds")),
    Bad(
        "listen without port",
        '[health]\nlisten = "0.0.0.0"\n',
        ('health.listen: found "0.0.0.0"', "HOST:PORT"),
    ),
    Bad(
        "listen on IPv6 without brackets", '[health]\nlisten = "::1:10256"\n', ("health.listen", "HOST:PORT")
    ),
    Bad(
        "listen twice on one port",
        '[health]\nlisten = "127.0.0.1:10249"\n',
        ("metrics.listen: 127.0.0.1:10249 is health.listen already",),
    ),
    Bad("no endpoints", "[etcd]\nendpoints = []\n", ("etcd.endpoints: found an empty list",)),
    Bad(
        "endpoint without scheme",
        '[etcd]\nendpoints = ["etcd1:2379"]\n',
        ('etcd.endpoints[0]: found "etcd1:2379", expected a URL such as "http://127.0.0.1:2379"',),
    ),
    Bad(
        "endpoint with a path",
        '[etcd]\nendpoints = ["http://etcd1:2379/v3"]\n',
        ("etcd.endpoints[0]", "with nothing but scheme, host and port"),
    ),
    Bad(
        "endpoint port",
        '[etcd]\nendpoints = ["http://etcd1:99999"]\n',
        ("etcd.endpoints[0]", "expected a URL"),
    ),
    Bad(
        "endpoints mixed",
        '[etcd]\nendpoints = ["http://a:2379", "https://b:2379"]\n',
        ("etcd.endpoints: found http and https mixed",),
    ),
    Bad(
        "TLS files without TLS",
        '[etcd]\nca_file = "/etc/ssl/ca.pem"\n',
        ("etcd.ca_file: needs https endpoints, found http",),
    ),
    Bad(
        "certificate without key",
        '[etcd]\nendpoints = ["https://a:2379"]\ncert_file = "/etc/ssl/me.pem"\n',
        ("etcd.cert_file: needs etcd.key_file",),
    ),
    Bad("user without password", '[etcd]\nusername = "edge"\n', ("etcd.username: needs etcd.password_file",)),
    Bad(
        "password without user",
        '[etcd]\npassword_file = "/x"\n',
        ("etcd.password_file: needs etcd.username",),
    ),
    Bad(
        "relative path", '[state]\ndir = "state"\n', ('state.dir: found "state", expected an absolute path',)
    ),
    Bad("empty prefix", '[etcd]\nprefix = "/"\n', ('etcd.prefix: found "/", expected a key prefix',)),
    Bad("blank node name", '[node]\nname = "  "\n', ('node.name: found "  ", expected a name',)),
    Bad(
        "node address",
        '[node]\naddresses = ["10.0.0.256"]\n',
        ("node.addresses[0]", "expected an IP address"),
    ),
    Bad(
        "several at once",
        '[etcd]\nprefx = "/x/"\n[proxy]\nmark_bit = -1\n[health]\nlisten = 10256\n',
        (
            "proxy.mark_bit: found -1",
            "health.listen: found 10256",
            "etcd.prefx: unknown key: did you mean etcd.prefix?",
        ),
    ),
)
