"""The data path: new connections per second and their latency, through edgeproxy and beside it.

Four ways lead from one client to the same two web servers, all on one flat network (`Kind.FLAT`):

direct               the client connects to backend `a`; one hop less than the others have
plain IPVS           a virtual server made by ipvsadm on a host of its own
edgeproxy VIP        cluster IP of a service of the daemon, on another host
edgeproxy node port  the same service by a port of that host

The plain host is the simplest that does the same work as the daemon's. Its virtual server has the daemon's
default scheduler and masquerading real servers; the address is on `lo`. As on any flat network, an
answer that is not masqueraded would go straight to the client, so `net.ipv4.vs.conntrack` is on and one nft
rule masquerades what leaves. `ip_forward` is on, everything else is as the kernel has it.

The load is `ab` with one connection for each request; its latency is from before the connect to the
end of the answer (wrk starts its clock after the handshake). Every web server says who it is and whom it saw,
and counts: an answer that is missing, differs, or comes from the wrong server or by another host ends the
run. Client, servers and both hosts share the processors, so connections per second are the cost of a whole
connection: the difference between two ways is the data path, their ratio is diluted by the rest.

Ports: the web servers close first, so the client keeps next to none in TIME_WAIT; it may use all ports
from 1024 on. A masqueraded flow occupies a port of its host for the two minutes of conntrack's TIME_WAIT:
on however fast a machine, `MOST` leaves three quarters of the 29,000 that the daemon masquerades to.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from edgeproxy.settings import Proxy
from tests.bench.book import Book
from tests.bench.figures import Figure, percentile
from tests.lab.daemon import Daemon
from tests.lab.etcd import Etcd
from tests.lab.namespace import Host
from tests.lab.topology import Kind, Topology
from tests.lab.wait import until

CONNECTIONS, LATENCY = "data path: connections", "data path: latency"
DIRECT, PLAIN, VIP, NODE_PORT = "direct", "plain IPVS", "edgeproxy VIP", "edgeproxy node port"
WAYS = (DIRECT, PLAIN, VIP, NODE_PORT)
ROUNDS, FEWEST_ROUNDS = 20, 3
PATIENCE = 120.0
"""Seconds after which the rounds end, whatever their number, but not before the fewest."""
SECONDS = 0.5
"""How long a run at full load is meant to last, by the rate of the warm-up."""
MOST = 250
"""Connections of a run, on however fast a machine."""
CONCURRENCY = 16
SINGLE = 100
"""Connections of a run one after the other. ab tells the percentiles 0 to 99: of a hundred, all."""

_PORT, _NODE_PORT = 80, 36200
_VIP, _PLAIN_VIP = "10.96.0.10", "10.97.0.10"
_MASQUERADING = """\
table ip plain {
    chain masquerading {
        type nat hook postrouting priority srcnat
        masquerade
    }
}
"""
_START = 60.0
_DEADLINE = 60.0
"""Seconds for a web server to start, and for a run of ab."""


class Unanswered(Exception):
    """Not every connection was answered as it should be: the figures would say nothing."""


class Way(msgspec.Struct, frozen=True):
    """One way from the client to the web servers.

    source: the address they see. backends: the names of those that must share the connections evenly.
    """

    name: str
    address: str
    port: int
    source: str
    backends: tuple[str, ...]

    @property
    def url(self) -> str:
        """For ab."""
        return f"http://{self.address}:{self.port}/"


class Outcome(msgspec.Struct, frozen=True):
    """What ab measured.

    rate: connections per second. latencies: seconds, the percentiles 0 to 99.
    """

    rate: float
    latencies: tuple[float, ...]


class Round(msgspec.Struct, frozen=True):
    """One way in one round: at full load, and one connection after the other."""

    busy: Outcome
    single: Outcome


def run(book: Book) -> None:
    """Measure all ways in turns, within three minutes with what it takes to start.

    Raises:
        Unanswered: a connection failed or took another way.
        AssertionError: ab, ipvsadm, nft or the daemon failed; the message has its output.
        subprocess.TimeoutExpired: ab hangs, because connections do.
    """
    with _network() as (net, ways), tempfile.TemporaryDirectory(prefix="bench-ab-") as directory:
        bench = _Bench(net, Path(directory))
        count = connections(max(bench.measure(way, SINGLE, CONCURRENCY).rate for way in ways))
        rounds: list[Mapping[str, Round]] = []
        end = time.monotonic() + PATIENCE
        while len(rounds) < ROUNDS and (len(rounds) < FEWEST_ROUNDS or time.monotonic() < end):
            # Back and forth: what changes in the course of a round hits each way alike.
            order = ways[:: -1 if len(rounds) % 2 else 1]
            rounds.append({way.name: bench.round(way, count) for way in order})
    for figure in figures(rounds):
        book.note(figure)


def figures(rounds: Sequence[Mapping[str, Round]]) -> Iterator[Figure]:
    """Connections per second of each round, latencies of all, and the ratios of both.

    A ratio is taken within a round, where both ways had the same machine; above 1, edgeproxy is better. The
    ratio of the 99th percentiles is that of all rounds together.
    """
    rates = {way: [one[way].busy.rate for one in rounds] for way in WAYS}
    medians = {way: [percentile(one[way].single.latencies, 50) for one in rounds] for way in WAYS}
    latencies = {way: [value for one in rounds for value in one[way].single.latencies] for way in WAYS}
    slowest = {way: [percentile(latencies[way], 99)] for way in WAYS}
    for way in WAYS:
        yield Figure(CONNECTIONS, way, "", "conn/s", tuple(rates[way]))
        yield Figure(LATENCY, way, "", "s", tuple(latencies[way]))
    for way, other in itertools.product((VIP, NODE_PORT), (DIRECT, PLAIN)):
        yield _ratio(CONNECTIONS, rates, way, other)
        yield _ratio(f"{LATENCY}, p50", medians, other, way)
        yield _ratio(f"{LATENCY}, p99", slowest, other, way)


def _ratio(case: str, samples: Mapping[str, Sequence[float]], above: str, below: str) -> Figure:
    pairs = zip(samples[above], samples[below], strict=True)
    return Figure(case, f"{above} / {below}", "", "ratio", tuple(a / b for a, b in pairs))


def connections(rate: float) -> int:
    """How many connections a run of about `SECONDS` has at that rate, within bounds."""
    return max(min(int(rate * SECONDS), MOST), SINGLE)


@contextlib.contextmanager
def _network() -> Iterator[tuple[Topology, Sequence[Way]]]:
    """Everything is up, and each way was seen to lead where it should."""
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(Topology(hosts=2, backends=2, kind=Kind.FLAT))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-nginx-")))
        for backend in net.backends:
            _serve(backend, directory)
        proxy, plain = net.hosts
        _balance(plain, net.backends)
        net.client.sysctl("net.ipv4.ip_local_port_range", "1024 65535")
        net.client.ip(
            f"route add {_VIP} via {proxy.address4}", f"route add {_PLAIN_VIP} via {plain.address4}"
        )
        etcd = stack.enter_context(Etcd(net.store))
        daemon = stack.enter_context(Daemon(proxy, etcd))
        daemon.put(_records(net.backends))
        ways = _ways(net)
        for way in ways:
            _walk(net.client, way)
        yield net, ways


def _ways(net: Topology) -> Sequence[Way]:
    proxy, plain = net.hosts
    first, names = net.backends[0], tuple(backend.name for backend in net.backends)
    return (
        Way(DIRECT, first.address4, _PORT, net.client.address4, (first.name,)),
        Way(PLAIN, _PLAIN_VIP, _PORT, plain.address4, names),
        Way(VIP, _VIP, _PORT, proxy.address4, names),
        Way(NODE_PORT, proxy.address4, _NODE_PORT, proxy.address4, names),
    )


def _records(backends: Sequence[Host]) -> Mapping[str, str | Mapping[str, object]]:
    port = {"port": _PORT, "targetPort": _PORT, "nodePort": _NODE_PORT}
    endpoints = {f"/services/web/endpoints/{b.name}": f"{b.address4}:{_PORT}" for b in backends}
    return {"/services/web": {"clusterIP": _VIP, "ports": [port]}, **endpoints}


def _balance(host: Host, backends: Sequence[Host]) -> None:
    server = f"{_PLAIN_VIP}:{_PORT}"
    rules = [f"-A -t {server} -s {Proxy().scheduler}"]
    rules += [f"-a -t {server} -r {backend.address4}:{_PORT} -m -w 1" for backend in backends]
    host.ip(f"addr add {_PLAIN_VIP}/32 dev lo")
    host.run(["ipvsadm", "-R"], stdin="".join(f"{rule}\n" for rule in rules))
    host.sysctl("net.ipv4.vs.conntrack", 1)
    host.run(["nft", "-f", "-"], stdin=_MASQUERADING)


def _serve(backend: Host, directory: Path) -> None:
    """Start nginx, in one process that ends with the topology; an answer is its name and whom it saw."""
    configuration = directory / f"{backend.name}.conf"
    configuration.write_text(f"""\
daemon off;
master_process off;
pid {directory}/{backend.name}.pid;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    default_type text/plain;
    server {{
        listen {_PORT} backlog=1024;
        location / {{ return 200 "{backend.name} $remote_addr"; }}
        location = /answered {{ stub_status; }}
    }}
}}
""")
    with (directory / f"{backend.name}.log").open("wb") as log:
        argv = ["nginx", "-p", str(directory), "-c", str(configuration), "-e", "stderr"]
        process = backend.popen(argv, stdout=log, stderr=log)

    def answers() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"nginx ended: {(directory / f'{backend.name}.log').read_text()}")
        with contextlib.suppress(ConnectionRefusedError):
            return bool(_get(backend, backend.address4, _PORT))
        return False

    until(answers, _START, f"nginx on {backend.name} answers")


def _walk(client: Host, way: Way) -> None:
    expected = {f"{name} {way.source}" for name in way.backends}
    found = {_get(client, way.address, way.port) for _ in range(2 * len(way.backends))}
    if found != expected:
        raise Unanswered(f"{way.name}: answers should be {sorted(expected)}, not {sorted(found)}")


def _get(host: Host, address: str, port: int, target: str = "/") -> str:
    connection = http.client.HTTPConnection(address, port, timeout=10)
    with contextlib.closing(connection):
        with host.inside():
            connection.connect()
        connection.request("GET", target)
        response = connection.getresponse()
        body = response.read().decode()
    if response.status != http.client.OK:
        raise Unanswered(f"http://{address}:{port}{target}: {response.status} {body}")
    return body


class _Bench:
    """Runs ab on the client and holds what it says against the web servers' counts."""

    def __init__(self, net: Topology, directory: Path) -> None:
        self._net = net
        self._table = directory / "percentiles.csv"

    def round(self, way: Way, count: int) -> Round:
        """Both runs of one way."""
        return Round(self.measure(way, count, CONCURRENCY), self.measure(way, SINGLE, 1))

    def measure(self, way: Way, count: int, concurrency: int) -> Outcome:
        """So many connections, at most `concurrency` of them at a time."""
        argv = ["ab", "-q", "-n", str(count), "-c", str(concurrency), "-e", str(self._table), way.url]
        before = self._answered()
        report = self._net.client.run(argv, timeout=_DEADLINE).stdout
        # Asking for the count counts, too.
        shares = {name: number - before[name] - 1 for name, number in self._answered().items()}
        check_shares(way, shares, count)
        return parse(report, self._table.read_text(), count)

    def _answered(self) -> dict[str, int]:
        """The requests that each web server has answered so far."""
        return {b.name: answered(_get(b, b.address4, _PORT, "/answered")) for b in self._net.backends}


def answered(status: str) -> int:
    """The requests in the answer of nginx's `stub_status`: the last of `accepts handled requests`."""
    return int(status.splitlines()[2].split()[2])


def check_shares(way: Way, shares: Mapping[str, int], count: int) -> None:
    """Hold the requests that each web server answered against its even share of them.

    Shares differ a little in spite of round robin: a client port that comes back while IPVS remembers it
    goes where it went before, and at its end ab opens a few connections that it has no request left for.

    Raises:
        Unanswered: a server the way leads to had not even half its share, or another one had any.
    """
    own = [shares[name] for name in way.backends]
    if not sum(own) == sum(shares.values()) == count or min(own) < count / len(own) / 2:
        raise Unanswered(f"{way.name}: {count} connections to {', '.join(way.backends)} came out as {shares}")


def parse(report: str, table: str, count: int) -> Outcome:
    """Read ab's report and its table of percentiles.

    Raises:
        Unanswered: not all `count` requests were answered with 200 and equally long bodies.
    """
    numbers = dict(re.findall(r"^([A-Z][^:\n]*):\s+([\d.]+)", report, re.MULTILINE))
    failed = [
        name
        for name in ("Failed requests", "Write errors", "Non-2xx responses")
        if float(numbers.get(name, 0))
    ]
    if failed or int(numbers["Complete requests"]) != count:
        raise Unanswered(f"of {count} connections some failed:\n{report}")
    # A heading, and at the end percentile 100, which is the last sample once more.
    milliseconds = (float(line.partition(",")[2]) for line in table.splitlines()[1:-1])
    return Outcome(float(numbers["Requests per second"]), tuple(value / 1000 for value in milliseconds))
