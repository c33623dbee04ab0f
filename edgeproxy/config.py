"""The configuration file: TOML text in, :class:`~edgeproxy.settings.Settings` or every problem out.

    ConfigurationError      the file cannot be read or says something wrong; lists all problems

:func:`parse` is pure. :func:`load` is its shell: reads the file, fills in the host name, checks that
the files the configuration names can be read.
"""

from __future__ import annotations

import difflib
import json
import socket
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from edgeproxy import config_values as values
from edgeproxy.config_rules import contradictions
from edgeproxy.config_values import Unexpected
from edgeproxy.settings import (
    SECTIONS,
    AcceptIn,
    Etcd,
    Health,
    Ipvs,
    Listen,
    Masquerade,
    Metrics,
    Node,
    NodePortAddresses,
    PortRange,
    Proxy,
    Settings,
    State,
    changed,
    restart_needed,
)

if TYPE_CHECKING:
    from edgeproxy.etcd.settings import EtcdSettings

__all__ = [
    "DEFAULT_PATH",
    "AcceptIn",
    "ConfigurationError",
    "Listen",
    "Masquerade",
    "NodePortAddresses",
    "PortRange",
    "Problem",
    "Settings",
    "changed",
    "etcd_settings",
    "load",
    "parse",
    "restart_needed",
]

DEFAULT_PATH = Path("/etc/edgeproxy/edgeproxy.toml")

T = TypeVar("T")


class Problem(msgspec.Struct, frozen=True, order=True):
    """One thing wrong: `where` is `section.key` (or `[section]`, or "" for the whole file)."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class ConfigurationError(Exception):
    """The configuration cannot be used. `problems` holds all of them, in the order of the file's sections."""

    def __init__(self, source: str, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))
        self.source = source
        self.problems = problems


def parse(text: str, source: str) -> Settings:
    """Read a configuration from its text. `source` names it in messages.

    Keys that are absent have their defaults; `node.name` stays `""` if absent.

    Raises:
        ConfigurationError: not TOML, unknown keys, bad values, values that contradict each other.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(source, (Problem("", f"not valid TOML: {error}"),)) from None
    problems = _unknown_sections(document)
    sections = {name: Section(name, document.get(name, {}), problems) for name in SECTIONS}
    settings = Settings(
        etcd=_etcd(sections["etcd"]),
        node=_node(sections["node"]),
        proxy=_proxy(sections["proxy"]),
        ipvs=_ipvs(sections["ipvs"]),
        health=Health(listen=sections["health"].take("listen", Health().listen, values.listen)),
        metrics=Metrics(listen=sections["metrics"].take("listen", Metrics().listen, values.listen)),
        state=State(dir=sections["state"].take("dir", State().dir, values.absolute_path)),
    )
    for section in sections.values():
        section.finish()
    wrong = {problem.where.partition("[")[0] for problem in problems}
    problems += [
        Problem(rule.where, rule.message)
        for rule in contradictions(settings)
        if not wrong.intersection(rule.keys)
    ]
    if problems:
        raise ConfigurationError(source, tuple(problems))
    return settings


def load(path: Path, *, check_files: bool = True) -> Settings:
    """Read the configuration file of this host.

    check_files: whether the files it names must be readable, as the daemon needs; who only asks the
        daemon may lack the right to read its keys.

    Raises:
        ConfigurationError: as :func:`parse`; also when the file, or one that it names, cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        hint = "; `edgeproxy install-units` writes one" if isinstance(error, FileNotFoundError) else ""
        raise ConfigurationError(
            str(path), (Problem("", f"cannot be read: {error.strerror}{hint}"),)
        ) from None
    except UnicodeDecodeError as error:
        message = f"not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}"
        raise ConfigurationError(str(path), (Problem("", message),)) from None
    settings = parse(text, str(path))
    unreadable = tuple(_unreadable(settings.etcd)) if check_files else ()
    if unreadable:
        raise ConfigurationError(str(path), unreadable)
    if settings.node.name:
        return settings
    node = msgspec.structs.replace(settings.node, name=socket.gethostname().strip().lower())
    return msgspec.structs.replace(settings, node=node)


def etcd_settings(settings: Settings) -> EtcdSettings:
    """The store client's part, with the password read from its file (called again on each reload).

    Raises:
        ConfigurationError: the password file cannot be read or is empty.
    """
    from edgeproxy.etcd.settings import EtcdSettings

    etcd = settings.etcd
    password = None
    if etcd.password_file is not None:
        try:
            password = etcd.password_file.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise _password_error(etcd.password_file, f"cannot be read: {error}") from None
        if not password:
            raise _password_error(etcd.password_file, "is empty, expected the password on one line")
    return EtcdSettings(
        endpoints=etcd.endpoints,
        prefix=etcd.prefix.encode(),
        ca_file=etcd.ca_file,
        cert_file=etcd.cert_file,
        key_file=etcd.key_file,
        username=etcd.username,
        password=password,
        dial_timeout=etcd.dial_timeout,
        audit=etcd.audit,
    )


def _password_error(path: Path, message: str) -> ConfigurationError:
    return ConfigurationError(str(path), (Problem("etcd.password_file", f"{path} {message}"),))


class Section:
    """One table of the file: gives each key's parsed value and notes what is wrong with it."""

    def __init__(self, name: str, table: object, problems: list[Problem]) -> None:
        self.name = name
        self.problems = problems
        self.table: dict[str, object] = {}
        if isinstance(table, dict):
            self.table = dict(table)
        else:
            self.problems.append(Problem(name, f"found {_shown(table)}, expected a section [{name}]"))

    def take(self, key: str, default: T, read: Callable[[object], T]) -> T:
        """The value of a key, or its default if absent or wrong."""
        if key not in self.table:
            return default
        value = self.table.pop(key)
        try:
            return read(value)
        except Unexpected as error:
            self._wrong(key, value, str(error))
            return default

    def take_list(
        self, key: str, default: tuple[T, ...], read: Callable[[object], T], *, alone: str = ""
    ) -> tuple[T, ...]:
        """The items of a list, duplicates left out. alone: a word that may stand for a list of itself."""
        if key not in self.table:
            return default
        found = self.table.pop(key)
        if alone and found == alone:
            found = [found]
        if not isinstance(found, list):
            self._wrong(
                key,
                found,
                f'"{alone}" or a list in square brackets' if alone else "a list in square brackets",
            )
            return default
        items: dict[T, None] = {}
        for index, value in enumerate(found):
            try:
                items[read(value)] = None
            except Unexpected as error:
                self._wrong(f"{key}[{index}]", value, str(error))
        return tuple(items)

    def finish(self) -> None:
        """Note the keys nobody asked for."""
        for key in self.table:
            self.problems.append(Problem(f"{self.name}.{key}", f"unknown key{_key_hint(self.name, key)}"))

    def _wrong(self, key: str, value: object, expected: str) -> None:
        self.problems.append(Problem(f"{self.name}.{key}", f"found {_shown(value)}, expected {expected}"))


def _etcd(section: Section) -> Etcd:
    default = Etcd()
    return Etcd(
        endpoints=section.take_list("endpoints", default.endpoints, values.endpoint),
        prefix=section.take("prefix", default.prefix, values.prefix),
        ca_file=section.take("ca_file", default.ca_file, values.optional_path),
        cert_file=section.take("cert_file", default.cert_file, values.optional_path),
        key_file=section.take("key_file", default.key_file, values.optional_path),
        username=section.take("username", default.username, values.optional_string),
        password_file=section.take("password_file", default.password_file, values.optional_path),
        dial_timeout=section.take("dial_timeout", default.dial_timeout, values.positive_duration),
        audit=section.take("audit", default.audit, values.duration),
        start_grace=section.take("start_grace", default.start_grace, values.duration),
    )


def _node(section: Section) -> Node:
    default = Node()
    return Node(
        name=section.take("name", default.name, values.node_name),
        zone=section.take("zone", default.zone, values.string),
        addresses=section.take_list("addresses", default.addresses, values.address),
    )


def _proxy(section: Section) -> Proxy:
    default = Proxy()
    node_ports = section.take_list("node_port_addresses", (), values.network_or_primary, alone="primary")
    return Proxy(
        service_cidrs=section.take_list("service_cidrs", default.service_cidrs, values.network),
        node_port_addresses=NodePortAddresses(
            networks=tuple(network for network in node_ports if network is not None),
            primary=None in node_ports,
        ),
        node_port_range=section.take("node_port_range", default.node_port_range, values.port_range),
        scheduler=section.take("scheduler", default.scheduler, values.scheduler),
        masquerade=section.take(
            "masquerade", default.masquerade, values.choice(Masquerade, tuple(Masquerade))
        ),
        local_cidrs=section.take_list("local_cidrs", default.local_cidrs, values.network),
        external_cidrs=section.take_list("external_cidrs", default.external_cidrs, values.network),
        anchor_cidrs=section.take_list("anchor_cidrs", default.anchor_cidrs, values.network),
        answer_arp=section.take("answer_arp", default.answer_arp, values.boolean),
        mark_bit=section.take("mark_bit", default.mark_bit, values.mark_bit),
        drain=section.take("drain", default.drain, values.duration),
        resync=section.take("resync", default.resync, values.positive_duration),
        min_sync=section.take("min_sync", default.min_sync, values.duration),
        accept_in=section.take("accept_in", default.accept_in, values.choice(AcceptIn, tuple(AcceptIn))),
    )


def _ipvs(section: Section) -> Ipvs:
    return Ipvs(
        tcp_timeout=section.take("tcp_timeout", None, values.kernel_timeout),
        tcp_fin_timeout=section.take("tcp_fin_timeout", None, values.kernel_timeout),
        udp_timeout=section.take("udp_timeout", None, values.kernel_timeout),
    )


def _unreadable(etcd: Etcd) -> list[Problem]:
    found = []
    for key in ("ca_file", "cert_file", "key_file", "password_file"):
        path: Path | None = getattr(etcd, key)
        if path is None:
            continue
        try:
            with path.open("rb") as file:
                file.read(1)
        except OSError as error:
            message = f"{path} cannot be read: {error.strerror}; expected a file this user can read"
            found.append(Problem(f"etcd.{key}", message))
    return found


def _unknown_sections(document: dict[str, object]) -> list[Problem]:
    found = []
    for name, value in document.items():
        if name in SECTIONS:
            continue
        if isinstance(value, dict):
            found.append(Problem(f"[{name}]", f"unknown section{_nearest(name, tuple(SECTIONS), '[{}]')}"))
        else:
            found.append(Problem(name, f"unknown key outside any section{_key_hint('', name)}"))
    return found


def _key_hint(section: str, key: str) -> str:
    """The nearest key of this section, else the section that has this very key, else of any section."""
    homes = [name for name, keys in SECTIONS.items() if key in keys]
    if homes and (section not in SECTIONS or not _close(key, SECTIONS[section])):
        return f": did you mean {homes[0]}.{key}?"
    if section in SECTIONS:
        return _nearest(key, SECTIONS[section], section + ".{}")
    return _nearest(key, tuple(f"{name}.{own}" for name, keys in SECTIONS.items() for own in keys), "{}")


def _nearest(word: str, known: tuple[str, ...], form: str) -> str:
    close = _close(word, known)
    if close:
        return f": did you mean {form.format(close)}?"
    return f", expected one of {', '.join(known)}" if len(known) <= max(map(len, SECTIONS.values())) else ""


def _close(word: str, known: tuple[str, ...]) -> str | None:
    matches = difflib.get_close_matches(word.lower().replace("-", "_"), known, n=1)
    return matches[0] if matches else None


def _shown(value: object) -> str:
    """A TOML value as the operator wrote it, shortened."""
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, bool | str | int | float | list):
        shown = json.dumps(value, default=str, ensure_ascii=False)
        return shown if len(shown) <= 60 else shown[:57] + "..."
    return str(value)
