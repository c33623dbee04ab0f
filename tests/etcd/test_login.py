"""Users, passwords, tokens, and refusals that no retry mends."""

from __future__ import annotations

import asyncio
import logging

import pytest

from edgeproxy.etcd.errors import LoginRefused, PermissionRefused, TokenRefused
from edgeproxy.etcd.progress import Progress
from edgeproxy.etcd.settings import Timing

from .follower import QUICK, Follower
from .server import EtcdServer, until
from .test_outages import settled

SLOW_REFUSED = Timing(backoff_first=0.05, backoff_most=0.5, refused=600)


@pytest.fixture
def guarded(server: EtcdServer) -> EtcdServer:
    """A member with authentication on; see EtcdServer.enable_auth for who may what."""
    server.etcdctl("put", "/services/web", "1")
    server.etcdctl("put", "/secret", "1")
    server.enable_auth()
    return server


async def with_short_tokens(server: EtcdServer) -> None:
    server.kill()
    server.flags = ["--auth-token-ttl", "1"]
    server.start()
    await server.ready()


async def test_a_reader_follows_and_logs_in_again_after_a_restart(guarded: EtcdServer) -> None:
    async with Follower(guarded.settings(username="reader", password="reading")) as follower:
        await settled(follower, guarded)
        guarded.kill()
        await until(lambda: follower.health.endpoint is None, 5, "the loss is noticed")
        # Simple tokens live in etcd's memory: the restart makes the old one invalid.
        guarded.start()
        await guarded.ready()
        guarded.etcdctl("put", "/services/web", "2")
        await settled(follower, guarded)
        assert follower.health.resumes == 1
        assert follower.health.login_failures == 0


async def test_an_expired_token_is_renewed_on_the_running_connection(guarded: EtcdServer) -> None:
    await with_short_tokens(guarded)
    timing = Timing(probe=3.0)
    async with Follower(guarded.settings(username="reader", password="reading"), timing) as follower:
        await until(follower.following, 10, "following")
        confirmed = follower.health.confirmed_at
        # The next linearizable read comes after the token has expired.
        await until(lambda: follower.health.confirmed_at != confirmed, 10, "a confirmed read")
        assert follower.health.connects == 1
        assert follower.health.problem is None


async def test_a_new_watch_with_an_expired_token_is_a_refusal_and_login_mends_it(guarded: EtcdServer) -> None:
    await with_short_tokens(guarded)
    connection = guarded.connection(username="reader", password="reading")
    await connection.login()

    async def watched() -> None:
        stream = await connection.watch(b"/services/", 1)
        answer = await stream.read()
        stream.cancel()
        assert answer.created
        Progress(0, 0, guarded.url).receive(answer)

    await watched()
    with pytest.raises(TokenRefused, match="login has expired"):
        async with asyncio.timeout(30):
            # Every use renews the token, so ask again after ever longer pauses only.
            for pause in range(1, 10):
                await asyncio.sleep(pause)
                await watched()
    await connection.login()
    await watched()
    await connection.close()


async def test_a_wrong_password_is_told_and_not_hammered(
    guarded: EtcdServer, logged: pytest.LogCaptureFixture
) -> None:
    settings = guarded.settings(username="reader", password="open-sesame")
    async with Follower(settings, SLOW_REFUSED) as follower:
        await until(lambda: follower.health.operator_needed, 5, "the refusal is told")
        assert "wrong user name or password" in str(follower.health.problem)
        assert follower.health.login_failures == 1
        assert follower.health.connects == 1
        assert not follower.snapshots
    assert "open-sesame" not in logged.text
    assert "open-sesame" not in repr(settings)


async def test_it_goes_on_once_the_operator_has_mended_the_password(guarded: EtcdServer) -> None:
    async with Follower(guarded.settings(username="reader", password="new"), QUICK) as follower:
        await until(lambda: follower.health.login_failures >= 2, 10, "refusals")
        guarded.etcdctl("user", "add", "other:other")
        change = guarded.etcdctl
        change("user", "delete", "reader")
        change("user", "add", "reader:new")
        change("user", "grant-role", "reader", "reader")
        await until(follower.following, 10, "following")
        assert follower.health.problem is None
        assert not follower.health.operator_needed


async def test_permission_denied_is_told_and_not_hammered(guarded: EtcdServer) -> None:
    settings = guarded.settings(username="stranger", password="strange")
    async with Follower(settings, SLOW_REFUSED) as follower:
        await until(lambda: follower.health.operator_needed, 5, "the refusal is told")
        assert "permission denied" in str(follower.health.problem)
        assert follower.health.connects == 1
    connection = guarded.connection(username="stranger", password="strange")
    await connection.login()
    stream = await connection.watch(b"/services/", 1)
    with pytest.raises(PermissionRefused):
        Progress(0, 0, guarded.url).receive(await stream.read())
    stream.cancel()
    await connection.close()


async def test_a_right_taken_away_is_noticed_and_keeps_the_records(guarded: EtcdServer) -> None:
    timing = Timing(probe=0.3, refused=600)
    async with Follower(guarded.settings(username="reader", password="reading"), timing) as follower:
        await settled(follower, guarded)
        guarded.etcdctl("role", "revoke-permission", "reader", "/services/", "/services0")
        await until(lambda: follower.health.operator_needed, 10, "the refusal is told")
        assert "permission denied" in str(follower.health.problem)
        assert follower.state == {b"/services/web": b"1"}


async def test_no_user_where_one_is_wanted(guarded: EtcdServer) -> None:
    connection = guarded.connection(username=None, password=None)
    with pytest.raises(LoginRefused, match=r"set etcd\.username"):
        await connection.get(b"/services/")
    await connection.close()


async def test_a_user_where_none_is_wanted(server: EtcdServer, logged: pytest.LogCaptureFixture) -> None:
    async with Follower(server.settings(username="reader", password="reading")) as follower:
        await until(follower.following, 5, "following")
    assert any("authentication off" in record.message for record in logged.records)
    assert all(record.levelno < logging.ERROR for record in logged.records)
