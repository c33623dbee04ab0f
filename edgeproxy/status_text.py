"""`edgeproxy status` for people: one paragraph, one table of findings."""

from __future__ import annotations

from typing import IO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from edgeproxy.model import Finding
from edgeproxy.status import KernelCounts, Status

# Where nobody watches (a pipe, a log) lines must not be folded at 80 columns.
PIPE_WIDTH = 1000


def print_status(status: Status, out: IO[str]) -> None:
    """Write it to `out`, in colour if that is a terminal."""
    console = Console(file=out, width=None if out.isatty() else PIPE_WIDTH, highlight=False)
    console.print(_headline(status))
    summary = Table.grid(padding=(0, 2))
    for label, value in _summary(status):
        summary.add_row(label, value)
    console.print(summary)
    if status.findings:
        console.print()
        console.print(_findings(status.findings, folded=out.isatty()))


def _headline(status: Status) -> Text:
    words = [
        ("ready", "green") if status.ready else ("not ready", "red"),
        ("healthy", "green") if status.healthy else ("late: changes wait for the kernel", "red"),
    ]
    if status.cordoned:
        words.append(("cordoned", "yellow"))
    text = Text(f"edgeproxy {status.version} on {status.node} (pid {status.pid}): ")
    for index, (word, colour) in enumerate(words):
        text.append(", " if index else "").append(word, style=colour)
    return text


def _summary(status: Status) -> list[tuple[str, str]]:
    store = status.store
    seen = "" if status.revision_seen == status.revision else f", {status.revision_seen} received"
    state = "connected" if store.connected else "not connected"
    return [
        ("running", _age(status.uptime, "for ")),
        ("revision", f"{status.revision} in the kernel{seen}, last sync {_ago(status.synced)}"),
        ("store", f"{store.endpoint or 'none'} {state}, last confirmed {_ago(store.age)}"),
        ("records", f"{status.services} services, {status.endpoints} endpoints"),
        ("kernel", _kernel(status.kernel)),
        ("findings", str(len(status.findings)) if status.findings else "none"),
    ]


def _kernel(counts: KernelCounts) -> str:
    servers = f"{counts.virtual_servers} virtual servers, {counts.real_servers} real servers"
    return f"{servers}, {counts.node_ports} node ports, {counts.drains} draining"


def _findings(findings: tuple[Finding, ...], *, folded: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("KEY", "REVISION", "PATH", "REASON"):
        table.add_column(column, no_wrap=not folded)
    table.add_column("MESSAGE", overflow="fold")
    for finding in findings:
        # Text, not markup: `ports[0]` is no style.
        cells = (
            finding.key or "(host)",
            str(finding.revision or ""),
            finding.path,
            finding.reason,
            finding.message,
        )
        table.add_row(*map(Text, cells))
    return table


def _ago(seconds: float | None) -> str:
    return "never" if seconds is None else f"{_age(seconds)} ago"


def _age(seconds: float, before: str = "") -> str:
    if seconds < 120:
        return f"{before}{seconds:.0f} s"
    if seconds < 7200:
        return f"{before}{seconds / 60:.0f} min"
    return f"{before}{seconds / 3600:.0f} h"
