"""A machine with edgeproxy installed, as its operator sees it: commands, systemd, journal, packets.

Beside the machine itself there are three network namespaces, each a systemd service so that they
come back after a reboot: backends `a` (10.1.1.2) and `b` (10.1.2.2), and `client` (10.1.3.2).
The machine is their router, 10.1.x.1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from tests.lab.channel import Result
from tests.lab.vm import LabVM
from tests.lab.wait import until

# Not by its bare name: the image has a command of that name that runs a source tree.
COMMAND = "/usr/local/bin/edgeproxy"
CONFIGURATION = "/etc/edgeproxy/edgeproxy.toml"
UNIT = "edgeproxy.service"
VIP = "http://10.96.0.10:8000/"
NODE_PORT = "http://10.1.3.1:36200/"
HEALTH = "http://127.0.0.1:10256"
METRICS = "http://127.0.0.1:10249"
RECORDS = {
    "web": '{"clusterIP":"10.96.0.10","ports":[{"port":8000,"targetPort":80,"nodePort":36200}]}',
    "web/endpoints/a": '{"address":"10.1.1.2"}',
    "web/endpoints/b": "10.1.2.2:80",
}
MORE = 60
"""Further services without endpoints, so that a first apply is more than one operation."""
# Emulated and on a busy machine; no condition should ever take this long.
SECONDS = 120.0

# The request is read first: socat gives up on an answer whose maker has gone without hearing the question.
MACHINE_SCRIPT = """#!/bin/sh -e
ip netns del "$1" 2>/dev/null || true
ip netns add "$1"
ip link add "to-$1" type veth peer name eth0 netns "$1"
ip addr add "10.1.$2.1/24" dev "to-$1"
ip link set "to-$1" up
ip -n "$1" addr add "10.1.$2.2/24" dev eth0
ip -n "$1" link set lo up
ip -n "$1" link set eth0 up
ip -n "$1" route add default via "10.1.$2.1"
exec ip netns exec "$1" socat TCP-LISTEN:80,fork,reuseaddr,backlog=64 SYSTEM:'read line; echo HTTP/1.0 200 OK; echo; echo '"$1"
"""
MACHINE_UNIT = """[Service]
ExecStart=/usr/local/sbin/machine {name} {number}

[Install]
WantedBy=multi-user.target
"""
# The unit's minute is too long to wait for in a test; a drop-in is how an operator would change it.
DROP_IN = """[Service]
WatchdogSec=45s
"""
MACHINES = {"a": 1, "b": 2, "client": 3}

Properties = Mapping[str, str]


class ProxyHost:
    """See the module's text."""

    def __init__(self, vm: LabVM) -> None:
        self.vm = vm

    def prepare(self) -> None:
        """Everything that is there before edgeproxy comes: the network, etcd, records."""
        self.vm.put("/usr/local/sbin/machine", MACHINE_SCRIPT.encode(), 0o755)
        units = ["etcd.service"]
        for name, number in MACHINES.items():
            units.append(f"machine-{name}.service")
            text = MACHINE_UNIT.format(name=name, number=number)
            self.vm.put(f"/etc/systemd/system/{units[-1]}", text.encode())
        self.vm.put(f"/etc/systemd/system/{UNIT}.d/watchdog.conf", DROP_IN.encode())
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "enable", "--now", *units)
        more = {f"more{n}": f'{{"clusterIP":"10.96.1.{n}","ports":[{{"port":80}}]}}' for n in range(MORE)}
        self.put(RECORDS | more)

    # -- commands ------------------------------------------------------------------------------

    def run(self, *argv: str) -> str:
        """Runs a command, which must succeed; its output."""
        return self.vm.run(argv).check().stdout

    def sh(self, script: str) -> str:
        """Runs a shell script, which must succeed; its output."""
        return self.run("sh", "-ec", script)

    def edgeproxy(self, *words: str) -> Result:
        """Runs the installed command, whatever it answers."""
        return self.vm.run([COMMAND, *words])

    def put(self, records: Mapping[str, str]) -> None:
        """Writes records in one transaction."""
        puts = "".join(f"put /services/{key} {json.dumps(value)}\n" for key, value in records.items())
        self.vm.run(["etcdctl", "txn"], stdin=f"\n{puts}\n\n".encode()).check()

    def configure(self, text: str) -> None:
        """Writes the configuration."""
        self.vm.put(CONFIGURATION, text.encode())

    # -- systemd -------------------------------------------------------------------------------

    def show(self) -> Properties:
        """The unit's properties."""
        text = self.run("systemctl", "show", UNIT)
        return dict(line.split("=", 1) for line in text.splitlines())

    def is_active(self) -> bool:
        return self.vm.run(["systemctl", "is-active", "--quiet", UNIT]).code == 0

    def status_says(self, words: str) -> None:
        """Waits for a STATUS that begins with these words."""
        until(lambda: self.show()["StatusText"].startswith(words), SECONDS, f"STATUS is {words}", 0.2)

    def restart(self) -> None:
        """`systemctl restart`, which returns when the daemon is ready."""
        self.must(self.vm.run(["systemctl", "restart", UNIT]))

    def must(self, done: Result) -> None:
        """Fails with the journal if a command on the unit failed."""
        assert done.code == 0, done.stderr + self.run("journalctl", "-u", UNIT, "-n", "40")

    def journal(self, *matches: str) -> Sequence[Mapping[str, str]]:
        """The entries of this boot that match, as fields."""
        text = self.run("journalctl", "-b", "-o", "json", "-u", UNIT, *matches)
        return [json.loads(line) for line in text.splitlines()]

    # -- what it does --------------------------------------------------------------------------

    def get(self, url: str) -> tuple[int, str]:
        """Status, 0 if nobody answered, and body."""
        argv = ["curl", "-s", "--max-time", "10", "-w", "\n%{http_code}", url]
        body, _, code = self.vm.run(argv).stdout.rpartition("\n")
        return int(code), body

    def code(self, path: str) -> int:
        """The status of a path on the health address."""
        return self.get(HEALTH + path)[0]

    def unserved(self) -> Sequence[str]:
        """What does not answer with both backends: VIP and node port, from this machine and from a client."""
        script = 'for i in 1 2 3 4; do "$@" curl -sS --max-time 10 "$0" 2>&1; done'
        wrong = []
        for where in ((), ("ip", "netns", "exec", "client")):
            for url in (VIP, NODE_PORT):
                answers = self.vm.run(["sh", "-c", script, url, *where]).stdout.splitlines()
                if set(answers) != {"a", "b"}:
                    wrong.append(f"{' '.join(where)} curl {url}: {answers}")
        return wrong

    def kernel(self) -> str:
        """Everything three programs see of the data plane, with the handles nft gives to what is written, without counters."""
        return self.sh("ipvsadm -Sn; nft -a -s list ruleset; ip route show table local; ip route")

    def operations(self) -> float:
        """How many operations on the kernel the running daemon has counted."""
        code, text = self.get(f"{METRICS}/metrics")
        assert code == 200, text
        lines = [line for line in text.splitlines() if line.startswith("edgeproxy_operations_total{")]
        return sum(float(line.rpartition(" ")[2]) for line in lines)
