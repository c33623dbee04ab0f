"""The unit under systemd: readiness, rights, watchdog, reload, stop, exit codes, journal, reboot."""

from __future__ import annotations

from pathlib import Path

from tests.lab.wait import until
from tests.systemd.proxyhost import CONFIGURATION, MORE, RECORDS, SECONDS, UNIT, ProxyHost

CAP_NET_ADMIN = 1 << 12


def test_ready_means_that_the_first_complete_state_is_applied(bare: ProxyHost) -> None:
    assert "10.96" not in bare.kernel()
    installed = bare.edgeproxy("install-units")
    assert installed.code == 0, installed.stderr
    bare.must(bare.vm.run(["systemctl", "enable", "--now", UNIT]))
    # Type=notify: the command returned because the daemon said so; no waiting from here on.
    servers = [line for line in bare.kernel().splitlines() if line.startswith("-A ")]
    assert len(servers) == 1 + MORE + 1, "the VIP, the others, the node port's anchor"
    assert bare.unserved() == []
    revision = bare.run("etcdctl", "get", "", "--prefix", "--limit=1", "-w", "json").partition('revision":')[
        2
    ]
    number = revision.partition(",")[0]
    expected = f"revision {number}: {1 + MORE} services, {MORE + 2} virtual servers, 0 findings"
    assert bare.show()["StatusText"] == expected
    assert bare.code("/readyz") == 200
    assert "/opt/edgeproxy/bin/" in bare.run("cat", f"/proc/{bare.show()['MainPID']}/cmdline")


def test_it_has_one_capability_and_a_user_of_its_own(host: ProxyHost) -> None:
    shown = host.show()
    assert shown["User"] == "edgeproxy"
    text = host.run("cat", f"/proc/{shown['MainPID']}/status")
    fields = dict(line.split(":\t", 1) for line in text.splitlines())
    uid = host.run("id", "-u", "edgeproxy").strip()
    assert fields["Uid"].split() == [uid] * 4
    assert uid != "0"
    for name in ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd"):
        assert int(fields[name], 16) == CAP_NET_ADMIN, name
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"


def test_the_nft_child_inherits_the_capability(host: ProxyHost) -> None:
    host.run("nft", "delete table inet edgeproxy")
    until(lambda: not host.unserved(), SECONDS, "the frame is loaded again by the daemon's nft")


def test_kernel_settings_are_made_by_sysctl_and_only_read_by_the_daemon(host: ProxyHost) -> None:
    wanted = (Path(__file__).parents[2] / "contrib/systemd/sysctl.conf").read_text().splitlines()
    settings = dict(line.split(" = ") for line in wanted if " = " in line and not line.startswith("#"))
    assert "net.ipv4.vs.conntrack" in settings
    values = host.run("sysctl", "-n", *settings).split()
    assert values == list(settings.values())
    mounts = host.run("cat", f"/proc/{host.show()['MainPID']}/mountinfo").splitlines()
    [options] = [fields[5] for line in mounts if (fields := line.split())[4] == "/proc/sys"]
    assert "ro" in options.split(",")


def test_security_score_is_at_most_2(host: ProxyHost) -> None:
    analysed = host.vm.run(["systemd-analyze", "security", "--threshold=20", "--no-pager", UNIT])
    assert analysed.code == 0, analysed.stdout


def test_journal_fields(host: ProxyHost) -> None:
    host.run("etcdctl", "put", "/services/broken", '{"ports":[{"port":"x"}]}')
    entries = until(
        lambda: host.journal("EDGEPROXY_KEY=/services/broken"), SECONDS, "the finding is logged", 0.2
    )
    host.run("etcdctl", "put", "/services/web/endpoints/c", "10.1.1.2:8080")
    for key in ("web/endpoints/c", "broken"):
        host.run("etcdctl", "del", f"/services/{key}")
    until(lambda: host.journal("EDGEPROXY_SERVICE=web"), SECONDS, "operations name their service", 0.2)
    assert int(entries[0]["EDGEPROXY_REVISION"]) > 0
    assert entries[0]["PRIORITY"] == "4"
    assert entries[0]["MESSAGE"].startswith("/services/broken (revision ")
    assert "ports[0].port" in entries[0]["MESSAGE"]


def test_a_daemon_that_hangs_is_restarted_while_traffic_goes_on(host: ProxyHost) -> None:
    before = host.show()
    host.run("kill", "-STOP", before["MainPID"])
    assert host.unserved() == []
    until(
        lambda: int(host.show()["NRestarts"]) > int(before["NRestarts"]), SECONDS, "systemd restarts it", 0.5
    )
    assert host.unserved() == []
    until(host.is_active, SECONDS, "it is ready again", 0.5)
    assert any("Watchdog timeout" in entry["MESSAGE"] for entry in host.journal())
    assert host.unserved() == []


def test_reload_takes_a_good_file_and_leaves_a_bad_one(host: ProxyHost) -> None:
    text = host.run("cat", CONFIGURATION)
    pid = host.show()["MainPID"]
    host.configure(text.replace('#scheduler = "wrr"', 'scheduler = "rr"'))
    host.run("systemctl", "reload", UNIT)
    until(lambda: "-A -t 10.96.0.10:8000 -s rr" in host.kernel(), SECONDS, "the new default scheduler", 0.2)
    host.configure('[proxy]\nschedular = "lc"\n')
    host.run("systemctl", "reload", UNIT)
    errors = until(lambda: host.journal("PRIORITY=3", f"_PID={pid}"), SECONDS, "an error about the file", 0.2)
    assert CONFIGURATION in errors[0]["MESSAGE"]
    assert "schedular" in errors[0]["MESSAGE"]
    assert "-A -t 10.96.0.10:8000 -s rr" in host.kernel()
    host.configure(text)
    host.run("systemctl", "reload", UNIT)
    until(lambda: "-A -t 10.96.0.10:8000 -s wrr" in host.kernel(), SECONDS, "the old scheduler", 0.2)
    until(lambda: host.show()["ActiveState"] == "active", SECONDS, "the reload has ended")
    assert host.show()["MainPID"] == pid
    assert host.unserved() == []


def test_iptables_rules_can_be_written_from_the_sandbox(host: ProxyHost) -> None:
    text = host.run("cat", CONFIGURATION)
    host.configure(text.replace('#accept_in = "none"', 'accept_in = "iptables"'))
    host.run("systemctl", "reload", UNIT)
    saves = (["iptables-save"], ["ip6tables-save"])
    until(lambda: all("edgeproxy" in host.run(*save) for save in saves), SECONDS, "accept rules of ours", 0.5)
    host.configure(text)
    host.restart()
    host.status_says("revision ")
    assert host.show()["StatusText"].endswith(" 0 findings")


def test_stop_leaves_traffic_and_start_writes_nothing(host: ProxyHost) -> None:
    before = host.kernel()
    host.run("systemctl", "stop", UNIT)
    assert host.show()["Result"] == "success"
    assert host.kernel() == before
    assert host.unserved() == []
    host.run("systemctl", "start", UNIT)
    assert host.operations() == 0
    assert host.kernel() == before, "the same handles: nothing was written again"
    assert host.unserved() == []


def test_a_bad_configuration_is_no_restart_loop(host: ProxyHost) -> None:
    text = host.run("cat", CONFIGURATION)
    host.configure('[proxy]\nschedular = "lc"\nmark_bit = 99\n')
    assert host.vm.run(["systemctl", "restart", UNIT]).code != 0
    shown = host.show()
    assert (shown["ActiveState"], shown["ExecMainStatus"]) == ("failed", "78")
    assert shown["NRestarts"] == "0"
    told = "".join(entry["MESSAGE"] for entry in host.journal())
    assert "schedular" in told
    assert "mark_bit" in told
    assert host.unserved() == []
    host.configure(text)
    host.must(host.vm.run(["systemctl", "start", UNIT]))


def test_a_second_daemon_on_the_same_state_exits_1(host: ProxyHost) -> None:
    second = host.edgeproxy("run")
    assert second.code == 1
    assert f"pid {host.show()['MainPID']}" in second.stderr
    assert host.is_active()


def test_it_starts_without_etcd_and_waits_for_it(host: ProxyHost) -> None:
    text = host.run("cat", CONFIGURATION)
    host.configure(text.replace('#start_grace = "60s"', 'start_grace = "2s"'))
    host.run("systemctl", "stop", UNIT, "etcd")
    host.must(host.vm.run(["systemctl", "start", UNIT]))
    assert host.show()["StatusText"] == "waiting for etcd"
    assert (host.code("/readyz"), host.code("/livez")) == (503, 200)
    assert host.unserved() == []
    assert host.edgeproxy("check", "--store").code == 3
    found = host.edgeproxy("status")
    assert found.code == 0
    assert "127.0.0.1:2379" in found.stdout
    host.run("systemctl", "start", "etcd")
    host.status_says("revision ")
    assert host.code("/readyz") == 200
    assert host.operations() == 0
    host.configure(text)


def test_after_a_reboot_the_service_answers_again_without_help(host: ProxyHost) -> None:
    host.vm.reboot()
    until(host.is_active, 5 * SECONDS, "edgeproxy is active after the reboot", 2)
    host.status_says("revision ")
    until(lambda: not host.unserved(), SECONDS, "both backends answer after the reboot", 0.5)
    assert host.code("/readyz") == 200
    assert RECORDS["web"] in host.run("etcdctl", "get", "/services/web")
    assert host.show()["StatusText"].endswith(" 0 findings")
