# Written by scripts/etcd-descriptor from etcd.proto: do not edit.
from collections.abc import Iterable, Sequence
from typing import Self

class Message:
    """Base of every message: only what edgeproxy calls."""

    def SerializeToString(self) -> bytes: ...
    @classmethod
    def FromString(cls, data: bytes) -> Self: ...
    def ByteSize(self) -> int: ...

class ResponseHeader(Message):
    cluster_id: int
    member_id: int
    revision: int
    raft_term: int
    def __init__(
        self,
        *,
        cluster_id: int = ...,
        member_id: int = ...,
        revision: int = ...,
        raft_term: int = ...,
    ) -> None: ...

class KeyValue(Message):
    key: bytes
    create_revision: int
    mod_revision: int
    version: int
    value: bytes
    lease: int
    def __init__(
        self,
        *,
        key: bytes = ...,
        create_revision: int = ...,
        mod_revision: int = ...,
        version: int = ...,
        value: bytes = ...,
        lease: int = ...,
    ) -> None: ...

class Event(Message):
    type: int
    kv: KeyValue
    PUT: int
    DELETE: int
    def __init__(
        self,
        *,
        type: int = ...,
        kv: KeyValue | None = ...,
    ) -> None: ...

class RangeRequest(Message):
    key: bytes
    range_end: bytes
    limit: int
    revision: int
    serializable: bool
    keys_only: bool
    count_only: bool
    min_mod_revision: int
    def __init__(
        self,
        *,
        key: bytes = ...,
        range_end: bytes = ...,
        limit: int = ...,
        revision: int = ...,
        serializable: bool = ...,
        keys_only: bool = ...,
        count_only: bool = ...,
        min_mod_revision: int = ...,
    ) -> None: ...

class RangeResponse(Message):
    header: ResponseHeader
    kvs: Sequence[KeyValue]
    more: bool
    count: int
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        kvs: Iterable[KeyValue] = ...,
        more: bool = ...,
        count: int = ...,
    ) -> None: ...

class PutRequest(Message):
    key: bytes
    value: bytes
    lease: int
    def __init__(
        self,
        *,
        key: bytes = ...,
        value: bytes = ...,
        lease: int = ...,
    ) -> None: ...

class PutResponse(Message):
    header: ResponseHeader
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...

class DeleteRangeRequest(Message):
    key: bytes
    range_end: bytes
    def __init__(
        self,
        *,
        key: bytes = ...,
        range_end: bytes = ...,
    ) -> None: ...

class DeleteRangeResponse(Message):
    header: ResponseHeader
    deleted: int
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        deleted: int = ...,
    ) -> None: ...

class RequestOp(Message):
    request_range: RangeRequest
    request_put: PutRequest
    request_delete_range: DeleteRangeRequest
    def __init__(
        self,
        *,
        request_range: RangeRequest | None = ...,
        request_put: PutRequest | None = ...,
        request_delete_range: DeleteRangeRequest | None = ...,
    ) -> None: ...

class ResponseOp(Message):
    response_range: RangeResponse
    response_put: PutResponse
    response_delete_range: DeleteRangeResponse
    def __init__(
        self,
        *,
        response_range: RangeResponse | None = ...,
        response_put: PutResponse | None = ...,
        response_delete_range: DeleteRangeResponse | None = ...,
    ) -> None: ...

class Compare(Message):
    result: int
    target: int
    key: bytes
    version: int
    create_revision: int
    mod_revision: int
    value: bytes
    EQUAL: int
    GREATER: int
    LESS: int
    NOT_EQUAL: int
    VERSION: int
    CREATE: int
    MOD: int
    VALUE: int
    LEASE: int
    def __init__(
        self,
        *,
        result: int = ...,
        target: int = ...,
        key: bytes = ...,
        version: int = ...,
        create_revision: int = ...,
        mod_revision: int = ...,
        value: bytes = ...,
    ) -> None: ...

class TxnRequest(Message):
    compare: Sequence[Compare]
    success: Sequence[RequestOp]
    failure: Sequence[RequestOp]
    def __init__(
        self,
        *,
        compare: Iterable[Compare] = ...,
        success: Iterable[RequestOp] = ...,
        failure: Iterable[RequestOp] = ...,
    ) -> None: ...

class TxnResponse(Message):
    header: ResponseHeader
    succeeded: bool
    responses: Sequence[ResponseOp]
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        succeeded: bool = ...,
        responses: Iterable[ResponseOp] = ...,
    ) -> None: ...

class CompactionRequest(Message):
    revision: int
    physical: bool
    def __init__(
        self,
        *,
        revision: int = ...,
        physical: bool = ...,
    ) -> None: ...

class CompactionResponse(Message):
    header: ResponseHeader
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...

class WatchRequest(Message):
    create_request: WatchCreateRequest
    cancel_request: WatchCancelRequest
    progress_request: WatchProgressRequest
    def __init__(
        self,
        *,
        create_request: WatchCreateRequest | None = ...,
        cancel_request: WatchCancelRequest | None = ...,
        progress_request: WatchProgressRequest | None = ...,
    ) -> None: ...

class WatchCreateRequest(Message):
    key: bytes
    range_end: bytes
    start_revision: int
    progress_notify: bool
    prev_kv: bool
    watch_id: int
    fragment: bool
    def __init__(
        self,
        *,
        key: bytes = ...,
        range_end: bytes = ...,
        start_revision: int = ...,
        progress_notify: bool = ...,
        prev_kv: bool = ...,
        watch_id: int = ...,
        fragment: bool = ...,
    ) -> None: ...

class WatchCancelRequest(Message):
    watch_id: int
    def __init__(
        self,
        *,
        watch_id: int = ...,
    ) -> None: ...

class WatchProgressRequest(Message):
    def __init__(self) -> None: ...

class WatchResponse(Message):
    header: ResponseHeader
    watch_id: int
    created: bool
    canceled: bool
    compact_revision: int
    cancel_reason: str
    fragment: bool
    events: Sequence[Event]
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        watch_id: int = ...,
        created: bool = ...,
        canceled: bool = ...,
        compact_revision: int = ...,
        cancel_reason: str = ...,
        fragment: bool = ...,
        events: Iterable[Event] = ...,
    ) -> None: ...

class LeaseGrantRequest(Message):
    TTL: int
    ID: int
    def __init__(
        self,
        *,
        TTL: int = ...,
        ID: int = ...,
    ) -> None: ...

class LeaseGrantResponse(Message):
    header: ResponseHeader
    ID: int
    TTL: int
    error: str
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        ID: int = ...,
        TTL: int = ...,
        error: str = ...,
    ) -> None: ...

class LeaseRevokeRequest(Message):
    ID: int
    def __init__(
        self,
        *,
        ID: int = ...,
    ) -> None: ...

class LeaseRevokeResponse(Message):
    header: ResponseHeader
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...

class LeaseKeepAliveRequest(Message):
    ID: int
    def __init__(
        self,
        *,
        ID: int = ...,
    ) -> None: ...

class LeaseKeepAliveResponse(Message):
    header: ResponseHeader
    ID: int
    TTL: int
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        ID: int = ...,
        TTL: int = ...,
    ) -> None: ...

class AuthenticateRequest(Message):
    name: str
    password: str
    def __init__(
        self,
        *,
        name: str = ...,
        password: str = ...,
    ) -> None: ...

class AuthenticateResponse(Message):
    header: ResponseHeader
    token: str
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        token: str = ...,
    ) -> None: ...

class StatusRequest(Message):
    def __init__(self) -> None: ...

class StatusResponse(Message):
    header: ResponseHeader
    version: str
    dbSize: int
    leader: int
    raftIndex: int
    raftTerm: int
    errors: Sequence[str]
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        version: str = ...,
        dbSize: int = ...,
        leader: int = ...,
        raftIndex: int = ...,
        raftTerm: int = ...,
        errors: Iterable[str] = ...,
    ) -> None: ...
