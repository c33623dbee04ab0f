"""`edgeproxy check --store` against a real store."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from .server import EtcdServer


async def check(folder: Path, *endpoints: str) -> tuple[int, str, str]:
    config = folder / "edgeproxy.toml"
    config.write_text(f"[etcd]\nendpoints = {json.dumps(endpoints)}\n")
    command = (sys.executable, "-m", "edgeproxy", "check", "--store", "--json", "--config", str(config))
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, talk = await asyncio.wait_for(child.communicate(), 30)
    assert child.returncode is not None
    return child.returncode, out.decode(), talk.decode()


async def test_good_and_bad_records_of_a_store(server: EtcdServer, folder: Path) -> None:
    server.etcdctl(
        "put", "/services/web", '{"clusterIP":"10.96.0.10","ports":[{"port":8000,"nodePort":36200}]}'
    )
    server.etcdctl("put", "/services/web/endpoints/a", '{"address":"10.1.1.2"}')
    code, out, _ = await check(folder, server.url)
    assert (code, json.loads(out)["findings"]) == (0, [])

    server.etcdctl("put", "/services/api", '{"clusterIP":"10.96.0.300"}')
    # The first endpoint is dead: the next one is asked.
    code, out, talk = await check(folder, "http://127.0.0.1:1", server.url)

    found = json.loads(out)
    assert code == 4
    assert (found["source"], found["services"], found["endpoints"]) == (server.url, 1, 1)
    assert {finding["key"] for finding in found["findings"]} == {"/services/api"}
    assert found["findings"][0]["revision"] == found["revision"]
    assert "1 services, 1 endpoints" in talk
