"""`make demo`: the main job in one screenful, with a real etcd, the real daemon and real packets.

Every answer is compared with what it should be: an unexpected one ends the demo with exit code 1.
"""

from __future__ import annotations

import contextlib
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.lab.daemon import Daemon, ipvs
from tests.lab.echo import EchoServers
from tests.lab.etcd import Etcd
from tests.lab.namespace import Host
from tests.lab.progress import progress
from tests.lab.topology import Topology

WALK_THROUGH = Path(__file__).parents[2] / "examples" / "walk-through.sh"
VIP = "10.96.0.10:8000"
NODE_PORT = 36200
ANCHOR = f"169.254.96.1:{NODE_PORT}"
Seen = set[tuple[str, str]]


class Unexpected(Exception):
    """Something was not as it should be."""


def main() -> int:
    with contextlib.ExitStack() as stack:
        try:
            Demo(stack).run()
        except (Unexpected, AssertionError) as error:
            print(f"\ndemo: FAILED: {error}", file=sys.stderr)
            return 1
    print("\nEverything was as it should be. Next: README.md, examples/, `make lab-shell`, `make test`.")
    return 0


class Demo:
    """A client, a proxy host, three backends and etcd, each in a network namespace."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        title("edgeproxy: service records in etcd become IPVS virtual servers and node ports of a host")
        say(f"Linux {platform.release()}; client 10.1.0.2, host 10.1.0.11, backends a 10.1.1.2, b 10.1.2.2,")
        say("c 10.1.3.2 and etcd 10.255.0.1 are network namespaces; backends tell their name and the source.")
        title("1. etcd and edgeproxy start")
        with step("network and backends"):
            self.net = stack.enter_context(Topology(hosts=1, backends=3))
            self.net.client.ip("route add 10.96.0.0/16 via 10.1.0.11")
            servers = stack.enter_context(EchoServers())
            for backend in self.net.backends:
                servers.listen(backend, tcp=[80])
        with step("etcd"):
            self.etcd = stack.enter_context(Etcd(self.net.store))
        with step("edgeproxy run, until its first complete state is in the kernel"):
            self.daemon = stack.enter_context(Daemon(self.net.hosts[0], self.etcd))
        self.host, self.client = self.net.hosts[0], self.net.client

    def run(self) -> None:
        """The steps after the start."""
        title("2. Records are put: node port 36200 -> service port 8000 -> backend port 80")
        self.walk_through()
        title("3. Who answers, and which source address do the backends see?")
        self.every_way_in()
        title("4. Backend c is added, then a is removed: the answers follow")
        self.endpoint("put", "c", "10.1.3.2:80")
        self.ask(self.client, f"http://{VIP}/", "abc")
        self.endpoint("del", "a")
        say("a drains: it keeps the connections it has and gets no new ones")
        self.ask(self.client, f"http://{VIP}/", "bc")
        title("5. The daemon is killed: traffic goes on")
        assert self.daemon.process is not None
        say(f"host$ kill -9 {self.daemon.process.pid}")
        self.daemon.kill()
        self.ask(self.client, f"http://{VIP}/", "bc")
        self.ask(self.client, f"http://10.1.0.11:{NODE_PORT}/", "bc")
        title("6. What the kernel of the host holds")
        self.kernel()

    def walk_through(self) -> None:
        """The example script as it is, on the host."""
        script = self.host.run(
            [
                "env",
                f"ETCDCTL_ENDPOINTS={self.etcd.endpoint}",
                "sh",
                "-c",
                'exec sh "$@" 2>&1',
                "sh",
                str(WALK_THROUGH),
                self.host.address4,
            ]
        )
        answers = []
        for line in script.stdout.splitlines():
            if line.startswith(("etcdctl ", "curl ")):
                say(f"host$ {line.replace('$host', self.host.address4)}")
            elif line != "OK":
                say(f"      {line}")
                answers.append(line)
        expect("answers of the walk-through", len(answers), 2)
        for answer in answers:
            expect("backend of the walk-through", answer.split()[0] in "ab", True)
        self.daemon.settled()

    def every_way_in(self) -> None:
        """VIP and node port, from the client and from the host."""
        masqueraded = {"a": "10.1.1.11", "b": "10.1.2.11"}
        own = dict.fromkeys("ab", self.host.address4)
        node_port = f"http://{self.host.address4}:{NODE_PORT}/"
        self.ask(self.client, f"http://{VIP}/", masqueraded)
        self.ask(self.host, f"http://{VIP}/", own)
        self.ask(self.client, node_port, masqueraded)
        self.ask(self.host, node_port, masqueraded)

    def endpoint(self, verb: str, name: str, value: str = "") -> None:
        """Puts or deletes an endpoint record with etcdctl, and waits until that is in the kernel."""
        words = [verb, f"/services/web/endpoints/{name}", *([value] if value else [])]
        say(f"host$ etcdctl {' '.join(words)}")
        self.host.run(["etcdctl", "--endpoints", self.etcd.endpoint, *words])
        self.daemon.settled()

    def ask(self, machine: Host, url: str, wanted: str | dict[str, str]) -> None:
        """Two requests for each backend wanted; they, and nobody else, must answer.

        wanted: the names of the backends, or with the source address each of them sees.
        """
        seen: Seen = set()
        for _ in range(2 * len(wanted)):
            name, source = machine.run(["curl", "-sS", "--max-time", "20", url]).stdout.split()
            seen.add((name, source))
        who = "client" if machine is self.client else "host"
        answers = ", ".join(f"{name} saw {source}" for name, source in sorted(seen))
        say(f"{f'{who}$ curl {url}':<40} {answers}")
        if isinstance(wanted, dict):
            expect(f"answers of {url}", seen, set(wanted.items()))
        expect(f"backends of {url}", sorted({name for name, _ in seen}), sorted(wanted))

    def kernel(self) -> None:
        """What IPVS and nft hold, compared and printed."""
        wanted = {f"-A -t {at} -s wrr" for at in (VIP, ANCHOR)}
        wanted |= {f"-a -t {at} -r 10.1.{n}.2:80 -m -w 1" for at in (VIP, ANCHOR) for n in (2, 3)}
        # a may still be there, at weight 0: it drains until its last connections are forgotten.
        held = {line for line in ipvs(self.host) if "-r 10.1.1.2:80 -m -w 0" not in line}
        expect("virtual servers", sorted(held), sorted(wanted))
        say("host$ ipvsadm -Ln")
        for line in self.host.run(["ipvsadm", "-Ln"]).stdout.splitlines()[2:]:
            say(f"      {line.rstrip()}")
        for name, part in (("frontends4", "10.96.0.10 . tcp . 8000"), ("node_ports4", f"tcp . {NODE_PORT}")):
            command = ["nft", "list", "map", "inet", "edgeproxy", name]
            text = self.host.run(command).stdout
            say(f"host$ {' '.join(command)}")
            found = re.search(r"elements = \{(.*?)\}", text, re.DOTALL)
            elements = " ".join(found[1].split()) if found else ""
            say(f"      {elements}")
            expect(f"{part} in {name}", part in elements, True)


def title(text: str) -> None:
    """The head of a step."""
    print(f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text, flush=True)


def say(text: str) -> None:
    """A line of a step."""
    print(f"  {text}", flush=True)


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """Something that takes a while."""
    with progress(f"  {what}", sys.stdout):
        yield


def expect(what: str, found: object, wanted: object) -> None:
    """Ends the demo unless both are equal."""
    if found != wanted:
        raise Unexpected(f"{what}: expected {wanted}, found {found}")


if __name__ == "__main__":
    sys.exit(main())
