"""Our nft tables in the kernel: the frame through `nft`, elements and look-ups through netlink.

A frame is loaded by one `nft -f -`; the elements that come from records change in batches of our own, each
one transaction, without a child process. The rule set's generation number, which every change by
anybody in the network namespace raises by one, tells cheaply whether a new look is due.

Errors:

    NftError                    the environment: what nft or the kernel refused, and why (nft_script)
    ├── ScriptError             nft refused a script: a bug in the frame, or an nft too old
    ├── FrameMissingError       one of our tables or sets is gone: load the frame
    └── ElementRefusedError     the kernel refused an element; nothing of that transaction was done
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

from edgeproxy.kernel.netlink import Answer, Flag, Message, NetlinkError, answer, message, string
from edgeproxy.kernel.netlink_socket import NETLINK_NETFILTER, NetlinkSocket, NetlinkUser
from edgeproxy.kernel.nft_codec import (
    Change,
    Command,
    Decoder,
    Generation,
    Held,
    begin,
    changes,
    end,
    generation,
    header,
    kind,
    list_head,
)
from edgeproxy.kernel.nft_frame import Parts, SetEntry, fingerprint, list_items, set_entry, table_of
from edgeproxy.kernel.nft_script import NftError, run
from edgeproxy.kernel.nft_sets import TABLE, Family, describe, place
from edgeproxy.kernel.notices import port_id
from edgeproxy.model import Element, SetName

_FAMILIES = (Family.INET, Family.ARP)
PATIENCE = 30.0
"""Seconds an `nft` child may take; shorter than the unit's WatchdogSec, for the daemon waits for it."""
_ATTEMPTS = 5
_T = TypeVar("_T")
_NO_TIMEOUTS: Mapping[Element, float] = {}


class FrameMissingError(NftError):
    """One of our tables or sets is gone, or was never loaded."""


class ElementRefusedError(NftError):
    """The kernel refused an element; nothing of that transaction was done.

    element: the refused one, None where the kernel did not say which.
    """

    def __init__(self, change: Change, element: Element | None, said: Answer) -> None:
        self.element = element
        self.errno = said.errno
        verb = "adding" if change.command is Command.NEW_ELEMENTS else "deleting"
        which = describe(element) if element is not None else f"one of {len(change.elements)} elements"
        hint = (
            ": it is there with other data; remove it in the same commit"
            if said.errno == errno.EEXIST
            else ""
        )
        super().__init__(f"{verb} {which}, {place(change.set)}: {said}{hint}")


class Nft(NetlinkUser):
    """Our tables `inet edgeproxy` and `arp edgeproxy` in the network namespace of the calling thread.

    Needs CAP_NET_ADMIN, which an `nft` child inherits only as an ambient capability. Methods block for the time of a
    system call (`load` and `check` for that of a child process) and belong to one thread.

    Raises:
        OSError: this kernel has no netfilter netlink.
    """

    def __init__(self) -> None:
        self._netlink = NetlinkSocket(NETLINK_NETFILTER)
        self.port_id = port_id(self._netlink)
        self.children: deque[int] = deque(maxlen=16)
        """Process ids of recent `nft` children: the port ids their changes come from."""
        self._seen = 0

    # -- generation ----------------------------------------------------------------------------

    def generation(self) -> Generation:
        """The rule set's present generation.

        Raises:
            NftError: the kernel refused.
        """
        replies, refusal = self._ask(Command.GET_GENERATION, header(Family.UNSPECIFIED), Flag.ACK)
        _must(refusal, "reading the generation of the rule set")
        return generation(replies[0].payload)

    def accept(self, number: int) -> None:
        """Take generation `number` as looked at: read it before a complete look. Our own commits go on from it."""
        self._seen = number

    def disturbed(self) -> bool:
        """Whether anybody else changed any table of the namespace since the accepted generation.

        Our own commits do not count: each goes through only on top of the generation before it. One
        system call; elements that expire make no generation.
        """
        return self.generation().number != self._seen

    # -- frame ---------------------------------------------------------------------------------

    def tables(self) -> tuple[Family, ...]:
        """The families in which our table exists.

        Raises:
            NftError: the kernel refused.
        """
        return tuple(family for family in _FAMILIES if self._table(family) is not None)

    def load(self, script: str, seconds: float = PATIENCE) -> None:
        """Run a script through `nft -f -`: one transaction, all or nothing.

        Raises:
            ScriptError: nft refused it; nothing was done.
            NftError: there is no nft, or it took longer than `seconds`.
        """
        before = self.generation().number
        self._run(script, seconds)
        after = self.generation().number
        if self._seen == before and after == _next(before):
            self._seen = after

    def check(self, script: str, seconds: float = PATIENCE) -> None:
        """Like :meth:`load`, but changes nothing."""
        self._run(script, seconds, "-c")

    def _run(self, script: str, seconds: float, *options: str) -> None:
        run(script, seconds, options, self.children.append)

    def fingerprint(self) -> str | None:
        """Digest of the frame as the kernel holds it, None if one of our tables is missing.

        Remember it after :meth:`load`; another value later means that somebody changed a chain, a rule, a set
        or a constant element of ours. Equal across daemon restarts for the same script and kernel.

        Raises:
            NftError: the kernel refused, or the rule set keeps changing.
        """
        return self._steadily(self._fingerprint)

    def _fingerprint(self) -> str | None:
        parts: list[Parts] = []
        for family in _FAMILIES:
            table = self._table(family)
            if table is None:
                return None
            sets = tuple(map(set_entry, self._listed(Command.GET_SET, family)))
            elements = {entry.name: self._items(family, entry) for entry in sets if entry.constant}
            chains = tuple(self._listed(Command.GET_CHAIN, family))
            rules = tuple(self._listed(Command.GET_RULE, family))
            parts.append(Parts(table, chains, rules, sets, elements))
        return fingerprint(parts)

    def _table(self, family: Family) -> bytes | None:
        replies, refusal = self._ask(Command.GET_TABLE, header(family) + string(1, TABLE), Flag(0))
        if refusal is not None and refusal.errno == errno.ENOENT:
            return None
        _must(refusal, f"reading table {family.word} {TABLE}")
        return replies[0].payload

    def _listed(self, command: Command, family: Family) -> Iterator[bytes]:
        replies, refusal = self._ask(command, header(family) + string(1, TABLE), Flag.DUMP)
        _must(refusal, f"listing table {family.word} {TABLE}")
        # Kernels that know no filter for this command list the other tables, too.
        return (reply.payload for reply in replies if table_of(reply.payload) == TABLE)

    def _items(self, family: Family, entry: SetEntry) -> tuple[bytes, ...]:
        payload = header(family) + string(1, TABLE) + string(2, entry.name)
        replies, refusal = self._ask(Command.GET_ELEMENTS, payload, Flag.DUMP)
        _must(refusal, f"listing set {entry.name} of table {family.word} {TABLE}")
        return tuple(item for reply in replies for item in list_items(reply.payload))

    # -- elements ------------------------------------------------------------------------------

    def commit(
        self,
        adds: Sequence[Element],
        removes: Sequence[Element] = (),
        timeouts: Mapping[Element, float] = _NO_TIMEOUTS,
    ) -> None:
        """Remove, then add elements, in one transaction: all of it happens, or nothing and an error.

        An element goes by its key: to change its verdict, data, comment or timeout, name the old one in `removes` and
        the new one in `adds`. Adding what is there with equal data is success and leaves its comment and
        timeout alone; removing what is not there is success.

        timeouts: seconds until an added element vanishes by itself (sets with `flags timeout` only).

        Raises:
            FrameMissingError: a table, set or chain that an element needs is not there.
            ElementRefusedError: the kernel refused an element.
            NftError: the kernel refused the whole (permissions, memory).
        """
        gone = list(removes)
        for _ in range(_ATTEMPTS):
            batch = [
                *changes(Command.DELETE_ELEMENTS, gone, {}),
                *changes(Command.NEW_ELEMENTS, adds, timeouts),
            ]
            if not batch:
                return
            refused = self._transact(batch)
            if not refused:
                return
            change, said = refused[0]
            if said.errno != errno.ENOENT:
                raise ElementRefusedError(change, change.at(said.offset), said)
            self.dump(change.set)  # names a missing set
            there = self._present(gone)
            if len(there) == len(gone):
                missing = sorted({element.verdict for element in change.elements})
                raise FrameMissingError(
                    f"table inet {TABLE} lacks one of the chains {missing}: load the frame"
                )
            gone = there
        raise NftError(
            f"our tables {TABLE} keep changing under our hands: another program deletes our elements"
        )

    def _present(self, elements: Sequence[Element]) -> list[Element]:
        """Those of the elements whose key the kernel holds."""
        keys = {
            name: {_identity(held.element) for held in self.dump(name)} for name in {e.set for e in elements}
        }
        return [element for element in elements if _identity(element) in keys[element.set]]

    def _transact(self, batch: Sequence[Change]) -> list[tuple[Change, Answer]]:
        """Send one transaction; the refused messages."""
        refused, stale = self._send(batch, self._seen)
        if stale:
            # Somebody else changed the rule set since we last looked: from here on, no claim about it.
            self._seen = 0
            refused, _ = self._send(batch, 0)
        # A batch that changes nothing (all of it is there) makes no generation.
        if not refused and self._seen and self.generation().number == _next(self._seen):
            self._seen = _next(self._seen)
        return refused

    def _send(self, batch: Sequence[Change], expected: int) -> tuple[list[tuple[Change, Answer]], bool]:
        sequences = self._netlink.sequences(len(batch) + 2)
        datagram = [message(begin()[0], Flag.REQUEST, sequences[0], begin(expected)[1])]
        for sequence, change in zip(sequences[1:-1], batch, strict=True):
            create = Flag.CREATE if change.command is Command.NEW_ELEMENTS else Flag(0)
            datagram.append(message(kind(change.command), Flag.REQUEST | create, sequence, change.payload))
        datagram.append(message(end()[0], Flag.REQUEST, sequences[-1], end()[1]))
        try:
            self._netlink.send(b"".join(datagram))
        except OSError as error:
            raise NftError(f"sending {len(batch)} messages on elements to the kernel: {error}") from error
        refused: list[tuple[Change, Answer]] = []
        for reply in self._queued():
            said = answer(reply)
            if said is None or not said.errno or reply.sequence not in sequences:
                continue
            if reply.sequence == sequences[0] and said.errno == errno.ERESTART:
                return [], True
            at = sequences.index(reply.sequence) - 1
            if not 0 <= at < len(batch):
                _must(said, "changing elements")
            refused.append((batch[at], said))
        return refused, False

    def dump(self, name: SetName) -> list[Held]:
        """The elements of one set, as they were at one moment.

        Just after thousands were added some may be left out: while the kernel makes the set's hash table larger,
        in the background, a walk through it can miss elements (nft_rhash_walk). Adding one that is there is success.

        Raises:
            FrameMissingError: the set is not there.
            NftError: the kernel refused, or the rule set keeps changing.
        """
        return self._steadily(lambda: self._dump(name))

    def _dump(self, name: SetName) -> list[Held]:
        replies, refusal = self._ask(Command.GET_ELEMENTS, list_head(name), Flag.DUMP)
        if refusal is not None and refusal.errno == errno.ENOENT:
            raise FrameMissingError(f"{place(name)} is not there: load the frame")
        _must(refusal, f"listing {place(name)}")
        decoder = Decoder(name)
        return [held for reply in replies for held in decoder.read(reply.payload)]

    # -- wire ----------------------------------------------------------------------------------

    def _steadily(self, read: Callable[[], _T]) -> _T:
        """What `read` gives when nobody changes the rule set meanwhile."""
        for _ in range(_ATTEMPTS):
            before = self.generation().number
            try:
                found = read()
            except NftError:
                if self.generation().number == before:
                    raise
                continue
            if self.generation().number == before:
                return found
        raise NftError(f"the rule set changed during each of {_ATTEMPTS} attempts to read it")

    def _ask(self, command: Command, payload: bytes, flags: Flag) -> tuple[list[Message], Answer | None]:
        """One question: the answers, and the refusal if it was one."""
        (sequence,) = self._netlink.sequences()
        datagram = message(kind(command), Flag.REQUEST | Flag.ACK | flags, sequence, payload)
        try:
            replies = self._netlink.exchange(datagram, (sequence,))
        except (NetlinkError, OSError) as error:
            raise NftError(f"asking the kernel about its rule set ({command.name}): {error}") from error
        refusal = None
        found: list[Message] = []
        for reply in replies:
            said = answer(reply)
            if said is None:
                found.append(reply)
            elif said.errno:
                refusal = said
        return found, refusal

    def _queued(self) -> Iterator[Message]:
        """Every answer there is; after an overrun only the first errors, which are enough."""
        try:
            while received := self._netlink.receive():
                yield from received
        except NetlinkError as error:
            self._netlink.drain()
            raise NftError(f"reading the kernel's answers on elements: {error}") from error


def _next(number: int) -> int:
    """The generation after `number`: 32 bits, 0 is left out (nf_tables_commit)."""
    return (number + 1) & 0xFFFFFFFF or 1


def _identity(element: Element) -> tuple[object, ...]:
    """What the kernel tells elements of a set apart by."""
    return (element.key, element.until)


def _must(refusal: Answer | None, doing: str) -> None:
    if refusal is None:
        return
    hint = ": edgeproxy needs CAP_NET_ADMIN" if refusal.errno == errno.EPERM else ""
    raise NftError(f"{doing}: {refusal}{hint}")
