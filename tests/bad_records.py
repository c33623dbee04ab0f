"""Records that can't be used, with the path and a part of the message each one must give.

`unit/test_records.py` reads each; the lab puts each into a store beside a good service, which must
not notice.
"""

from __future__ import annotations

import json

import msgspec


class BadRecord(msgspec.Struct, frozen=True):
    """A value below a service or endpoint key and what is said about it."""

    name: str
    value: bytes
    path: str
    message: str


def _service(name: str, path: str, message: str, /, **fields: object) -> BadRecord:
    """A service that is good but for the fields given; `...` takes a field away."""
    record = {"clusterIP": "10.96.77.1", "ports": [{"port": 80}], **fields}
    given = {field: value for field, value in record.items() if value is not ...}
    return BadRecord(name, json.dumps(given).encode(), path, message)


def _port(name: str, field: str, message: str, /, **fields: object) -> BadRecord:
    return _service(name, f"ports[0].{field}", message, ports=[{"port": 80, **fields}])


def _endpoint(name: str, path: str, message: str, /, **fields: object) -> BadRecord:
    return BadRecord(name, json.dumps({"address": "10.1.77.1", **fields}).encode(), path, message)


_A = {"name": "a", "port": 80}

BAD_SERVICES = (
    BadRecord("empty", b"", "", "found an empty value"),
    BadRecord("blank", b" \n", "", "found an empty value"),
    BadRecord("not UTF-8", b'{"clusterIP":"\xff"}', "", "found byte 0xff at offset 14"),
    BadRecord("byte order mark", b'\xef\xbb\xbf{"ports":[{"port":80}]}', "", "byte order mark"),
    BadRecord("not JSON", b"clusterIP: 10.96.0.10", "", "which is not JSON"),
    BadRecord("cut off", b'{"clusterIP":"10.96.0.10","ports":[{"po', "", "which is not JSON"),
    BadRecord("trailing comma", b'{"ports":[{"port":80},]}', "", "which is not JSON"),
    BadRecord("two values", b'{"ports":[{"port":80}]}{}', "", "which is not JSON"),
    BadRecord("list", b'[{"port":80}]', "", "expected a JSON object"),
    BadRecord("number", b"80", "", "found 80"),
    BadRecord("null", b"null", "", "found null"),
    BadRecord("nested too deep", b'{"selector":' + b"[" * 20000 + b"]" * 20000 + b"}", "", "nested too deep"),
    BadRecord("huge", b'{"selector":"' + b"x" * 300_000 + b'"}', "", "at most 262144 bytes, found 300015"),
    BadRecord(
        "manifest",
        b'{"apiVersion":"v1","kind":"Service","spec":{"ports":[{"port":80}]}}',
        "",
        "paste what is under `spec`",
    ),
    BadRecord("nothing asked for", b"{}", "ports", "expected at least one port"),
    _service("no ports", "ports", "expected at least one port", ports=[]),
    _service("ports of null", "ports", "expected at least one port", ports=[None]),
    _service("ports not a list", "ports", "expected a list, found an object", ports={"port": 80}),
    _service("port not an object", "ports[0]", "expected an object, found 80", ports=[80]),
    _service("type", "type", "ClusterIP, NodePort, LoadBalancer, ExternalName", type="Nodeport"),
    _service("type advice", "type", "did you mean NodePort?", type="nodeport"),
    _service(
        "clusterIP not an IP", "clusterIP", 'expected an IP address, found "10.96.0"', clusterIP="10.96.0"
    ),
    _service("clusterIP a network", "clusterIP", "expected an IP address", clusterIP="10.96.0.0/16"),
    _service("clusterIP leading zeros", "clusterIP", "expected an IP address", clusterIP="10.96.0.010"),
    _service("clusterIP a number", "clusterIP", "expected a text, found 10", clusterIP=10),
    _service("clusterIP loopback", "clusterIP", "which is loopback", clusterIP="127.0.0.1"),
    _service("clusterIP loopback 6", "clusterIP", "which is loopback", clusterIP="::1"),
    _service("clusterIP unspecified", "clusterIP", "which is unspecified", clusterIP="0.0.0.0"),
    _service("clusterIP link-local", "clusterIP", "which is link-local", clusterIP="169.254.1.1"),
    _service("clusterIP zone", "clusterIP", "expected an IP address", clusterIP="fe80::1%eth0"),
    _service("clusterIP mapped", "clusterIP", "IPv4-mapped", clusterIP="::ffff:10.96.0.1"),
    _service(
        "clusterIP differs",
        "clusterIP",
        'clusterIPs[0], "10.96.77.2"',
        clusterIPs=["10.96.77.2", "fd00:96::1"],
    ),
    _service(
        "clusterIPs of one family",
        "clusterIPs[1]",
        "a second of IPv4, 10.96.77.2",
        clusterIPs=["10.96.77.1", "10.96.77.2"],
    ),
    _service("clusterIPs not a list", "clusterIPs", "expected a list", clusterIPs="10.96.77.1"),
    _service("externalIPs multicast", "externalIPs[1]", "multicast", externalIPs=["192.0.2.1", "224.0.0.1"]),
    _service("externalIPs broadcast", "externalIPs[0]", "broadcast", externalIPs=["255.255.255.255"]),
    _service("externalIPs clusterIP", "externalIPs", "10.96.77.1 in both", externalIPs=["10.96.77.1"]),
    _service("loadBalancerIPs", "loadBalancerIPs[0]", "expected an IP address", loadBalancerIPs=["lb.test"]),
    _service("ranges", "loadBalancerSourceRanges[0]", "CIDR", loadBalancerSourceRanges=["10.0.0.0/33"]),
    _port("port zero", "port", "a number from 1 to 65535, found 0", port=0),
    _port("port too high", "port", "a number from 1 to 65535, found 65536", port=65536),
    _port("port a text", "port", 'found "80": leave out the quotes', port="80"),
    _port("port a fraction", "port", "expected a whole number, found 80.5", port=80.5),
    _port("port a truth value", "port", "expected a whole number, found true", port=True),
    _port("port absent", "port", "found none", port=None),
    _port("nodePort negative", "nodePort", "a number from 0 to 65535, found -1", nodePort=-1),
    _port("nodePort a text", "nodePort", "leave out the quotes", nodePort="36200"),
    _port("targetPort zero", "targetPort", "a number from 1 to 65535, found 0", targetPort=0),
    _port("targetPort a number as text", "targetPort", "leave out the quotes", targetPort="80"),
    _port("targetPort a list", "targetPort", "a whole number or a text, found a list", targetPort=[80]),
    _port("protocol", "protocol", "one of TCP, UDP, SCTP; found", protocol="HTTP"),
    _port("protocol lower-case", "protocol", "did you mean TCP?", protocol="tcp"),
    _port("port name", "name", "expected a name of a-z", name="Web_1"),
    _service("names missing", "ports[1].name", "the service has several ports", ports=[_A, {"port": 81}]),
    _service("names twice", "ports[1].name", "that of ports[0]", ports=[_A, {"name": "a", "port": 81}]),
    _service("ports twice", "ports[1].port", "TCP 80 like ports[0]", ports=[_A, {"name": "b", "port": 80}]),
    _service(
        "node ports twice",
        "ports[1].nodePort",
        "TCP 36200 like ports[0]",
        ports=[{**_A, "nodePort": 36200}, {"name": "b", "port": 81, "nodePort": 36200}],
    ),
    _service("policy", "externalTrafficPolicy", "one of Cluster, Local", externalTrafficPolicy="local"),
    _service("internal policy", "internalTrafficPolicy", "one of Cluster, Local", internalTrafficPolicy=""),
    _service("affinity", "sessionAffinity", "one of None, ClientIP", sessionAffinity="Client"),
    _service(
        "affinity timeout",
        "sessionAffinityConfig.clientIP.timeoutSeconds",
        "from 1 to 86400, found 86401",
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 86401}},
    ),
    _service("health check port", "healthCheckNodePort", "65535, found 70000", healthCheckNodePort=70000),
    _service(
        "health check port taken",
        "healthCheckNodePort",
        "found 36200 like ports[0].nodePort",
        type="LoadBalancer",
        externalTrafficPolicy="Local",
        healthCheckNodePort=36200,
        ports=[{"port": 80, "nodePort": 36200}],
    ),
    _service(
        "truth as text",
        "publishNotReadyAddresses",
        'expected true or false, found "true": leave out the quotes',
        publishNotReadyAddresses="true",
    ),
    _service(
        "distribution", "trafficDistribution", "PreferClose, PreferSameZone", trafficDistribution="Near"
    ),
    _service("scheduler", "scheduler", "rr, wrr, lc", scheduler="Round Robin"),
    _service("drain", "drainSeconds", "from 0 to 604800, found -1", drainSeconds=-1),
    _service("drain a duration", "drainSeconds", 'expected a whole number, found "5m"', drainSeconds="5m"),
    _service(
        "too many frontends",
        "ports",
        "at most 16384 pairs",
        externalIPs=[f"192.0.{i >> 8}.{i & 255}" for i in range(300)],
        ports=[{"name": f"p{i}", "port": i} for i in range(1, 101)],
    ),
)

BAD_ENDPOINTS = (
    BadRecord("empty", b"", "", "found an empty value"),
    BadRecord("a name", b"backend-1", "", "or the short form 10.1.1.2:8080"),
    BadRecord("a name and port", b"backend-1:80", "", "or the short form"),
    BadRecord("in quotes", b'"10.1.1.2:80"', "", 'found "10.1.1.2:80"'),
    BadRecord("in a list", b'["10.1.1.2"]', "", "the short form"),
    BadRecord("short port zero", b"10.1.1.2:0", "", "a port number from 1 to 65535 after 10.1.1.2"),
    BadRecord("short port too high", b"[fd00::2]:65536", "", "after fd00::2, found '65536'"),
    BadRecord("short port missing", b"10.1.1.2:", "", "after 10.1.1.2, found ''"),
    BadRecord("short network", b"10.1.1.0/24", "", "the short form"),
    BadRecord("short loopback", b"127.0.0.1:80", "", "which is loopback"),
    BadRecord("short unspecified", b"::", "", "which is unspecified"),
    BadRecord("two addresses", b"10.1.1.2,10.1.1.3", "", "the short form"),
    BadRecord("binary", bytes(range(128, 160)), "", "found byte 0x80 at offset 0"),
    BadRecord("no address", b"{}", "address", "expected the IP address of the backend, found none"),
    _endpoint("address a name", "address", "'backend-1' is not an IP address", address="backend-1"),
    _endpoint("address with port", "address", "not an IP address", address="10.1.1.2:80"),
    _endpoint("address a list", "address", "expected a text, found a list", address=["10.1.1.2"]),
    _endpoint("address loopback", "address", "which is loopback", address="127.0.0.53"),
    _endpoint("address link-local", "address", "which is link-local", address="fe80::1"),
    _endpoint("address multicast", "address", "which is multicast", address="ff02::1"),
    _endpoint("port", "port", "a number from 1 to 65535, found 0", port=0),
    _endpoint("port a text", "port", "leave out the quotes", port="8080"),
    _endpoint("ports a list", "ports", "expected an object, found a list", ports=[{"name": "a", "port": 80}]),
    _endpoint("ports out of range", "ports.http", "found 65536", ports={"http": 65536}),
    _endpoint("ports a text", "ports.http", "leave out the quotes", ports={"http": "80"}),
    _endpoint("weight negative", "weight", "a number from 0 to 65535, found -1", weight=-1),
    _endpoint("weight a fraction", "weight", "expected a whole number, found 0.5", weight=0.5),
    _endpoint("ready a text", "ready", "expected true or false", ready="yes"),
    _endpoint("hints a list", "hints", "expected an object, found a list", hints=["a"]),
    _endpoint("hints of numbers", "hints.forZones[1]", "found 7", hints={"forZones": ["a", 7]}),
    _endpoint("node name", "nodeName", "expected a text, found 5", nodeName=5),
)
