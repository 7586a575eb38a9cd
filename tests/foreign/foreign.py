"""Larder from outside: the stock Python client, generated code, and a real data set.

The packages of a Debian machine, one key each with the whole stanza, go in through one node; with a third of them
acknowledged and writes in flight the leader dies; whatever was acknowledged must be read back, byte for byte, through
another node.
"""

import os
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from larder.v1 import cache_pb2, cache_pb2_grpc, cluster_pb2, cluster_pb2_grpc

from nodes import Nodes, eventually

DEADLINE = 5  # seconds for a call
WRITERS = 16  # writes in flight
HERE = Path(__file__).parent


class Client:
    """A channel to one node."""

    def __init__(self, nodes: Nodes, slot: int):
        # No subchannel sharing: a dead node must not slow down the next client of it.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 500)]
        self.channel = grpc.insecure_channel(nodes.endpoint(slot), options)
        self.cache = cache_pb2_grpc.CacheStub(self.channel)
        self.cluster = cluster_pb2_grpc.ClusterStub(self.channel)

    def set(self, key: bytes, value: bytes, **more):
        return self.cache.Set(cache_pb2.SetRequest(key=key, value=value, **more), timeout=DEADLINE)

    def get(self, key: bytes):
        return self.cache.Get(cache_pb2.GetRequest(key=key), timeout=DEADLINE)


def error_info(error: grpc.RpcError) -> error_details_pb2.ErrorInfo | None:
    """The ErrorInfo of google.rpc.Status, if the failure came from Larder and not from the transport."""
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return info
    return None


def leader_of(nodes: Nodes) -> int:
    """The slot that all running nodes know as the leader, and that runs."""
    clients = [Client(nodes, slot) for slot in nodes.processes]

    def agreed():
        known = {c.cluster.Status(cluster_pb2.StatusRequest(), timeout=DEADLINE).leader.slot for c in clients}
        slot = known.pop()
        return (slot,) if not known and slot and int(slot) in nodes.processes else None

    return int(eventually("a leader", agreed)[0])


def packages() -> dict[bytes, bytes]:
    """The dpkg status database: the stanza of each package by its name and architecture."""
    here = Path("/var/lib/dpkg/status")
    source = here if here.is_file() and here.stat().st_size > 50_000 else HERE / "dpkg-status"
    found = {}
    for stanza in source.read_bytes().split(b"\n\n"):
        fields = dict(line.split(b": ", 1) for line in stanza.split(b"\n") if b": " in line and line[:1].isalpha())
        if b"Package" in fields:
            found[b"dpkg/" + fields[b"Package"] + b":" + fields.get(b"Architecture", b"")] = stanza
    assert len(found) >= 3 * WRITERS, f"{source} has too few packages: {len(found)}"
    print(f"{len(found)} packages of {source}")
    return found


class Loader:
    """Writes packages by many threads, goes on through failures, and remembers what was acknowledged."""

    def __init__(self, nodes: Nodes, slot: int, data: dict[bytes, bytes], at: int, then):
        self.nodes, self.data, self.at, self.then = nodes, data, at, then
        self.clients = [Client(nodes, (slot + i) % 3) for i in range(3)]
        self.lock = threading.Lock()
        self.acknowledged: set[bytes] = set()
        self.safe = self.unknown = self.in_flight = 0

    def run(self) -> None:
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(self.load, self.data))

    def load(self, key: bytes) -> None:
        end, use = time.monotonic() + 30, 0
        while True:
            try:
                with self.lock:
                    self.in_flight += 1
                self.clients[use].set(key, self.data[key])
            except grpc.RpcError as error:
                info = error_info(error)
                with self.lock:
                    self.in_flight -= 1
                    # Either way the same value is set again: surely not applied, or unknown and idempotent.
                    if info and info.metadata["applied"] == "NO":
                        self.safe += 1
                    else:
                        self.unknown += 1
                assert time.monotonic() < end, f"{key} was not written within 30 s: {error}"
                # The own node first; the others where it is gone.
                use = (use + 1) % 3
                threading.Event().wait(0.02)
            else:
                break
        with self.lock:
            self.in_flight -= 1
            self.acknowledged.add(key)
            if len(self.acknowledged) == self.at:
                # Held by the lock, every other writer is in a call or about to be.
                self.then(self.in_flight)


def load_with_the_leader_killed(nodes: Nodes, data: dict[bytes, bytes], through_leader: bool) -> None:
    leader = leader_of(nodes)
    via = leader if through_leader else (leader + 1) % 3
    killed = []

    def kill(in_flight: int) -> None:
        assert in_flight > 0, "no write was in flight"
        nodes.kill(leader)
        killed.append(in_flight)

    loader = Loader(nodes, via, data, len(data) // 3, kill)
    loader.run()
    assert killed and len(loader.acknowledged) == len(data)
    reader = ({0, 1, 2} - {leader, via}).pop()
    client = Client(nodes, reader)
    for key in loader.acknowledged:
        answer = client.get(key)
        assert answer.found and answer.value == data[key], f"{key} is not what was acknowledged"
    print(f"through node {via}, leader {leader} killed with {killed[0]} writes in flight; {loader.safe} safe and "
          f"{loader.unknown} unknown failures; {len(loader.acknowledged)} packages read back through node {reader}")
    nodes.start(leader)
    nodes.wait_ready()


def health_and_reflection(nodes: Nodes) -> None:
    client = Client(nodes, 0)
    health = health_pb2_grpc.HealthStub(client.channel)
    for service in ("", "larder.v1.Cache", "larder.v1.Cluster"):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, f"{service!r} is {answer.status}"
    reflected = ProtoReflectionDescriptorDatabase(client.channel)
    services = set(reflected.get_services())
    assert {"larder.v1.Cache", "larder.v1.Cluster", "grpc.health.v1.Health"} <= services, services
    assert not any("raft" in name for name in services), f"the peer protocol is nobody's business: {services}"
    file = reflected.FindFileContainingSymbol("larder.v1.Cache")
    methods = {method.name for service in file.service for method in service.method}
    assert {"Get", "Set", "Delete", "Increment", "Batch"} <= methods, methods


def errors_carry_details(nodes: Nodes) -> None:
    client = Client(nodes, 1)
    client.set(b"text", b"not a number")
    if_absent = cache_pb2.Condition(if_absent=True)
    bad = [
        (grpc.StatusCode.INVALID_ARGUMENT, lambda: client.set(b"", b"value")),
        (grpc.StatusCode.INVALID_ARGUMENT, lambda: client.set(b"k" * 4097, b"value")),
        (grpc.StatusCode.INVALID_ARGUMENT, lambda: client.set(b"key", b"v" * (2**20 + 1))),
        (grpc.StatusCode.UNIMPLEMENTED, lambda: client.set(b"never", b"value", ttl_ms=1000)),
        (grpc.StatusCode.UNIMPLEMENTED, lambda: client.set(b"never", b"value", keyspace="other")),
        (grpc.StatusCode.UNIMPLEMENTED, lambda: client.set(b"never", b"value", session=cache_pb2.Session(session=1))),
        (grpc.StatusCode.FAILED_PRECONDITION, lambda: client.set(b"text", b"value", condition=if_absent)),
        (grpc.StatusCode.FAILED_PRECONDITION,
         lambda: client.cache.Increment(cache_pb2.IncrementRequest(key=b"text", delta=1), timeout=DEADLINE)),
    ]
    for code, call in bad:
        try:
            call()
        except grpc.RpcError as error:
            info = error_info(error)
            assert error.code() == code, f"{error.code()} instead of {code}: {error.details()}"
            assert info and info.domain == "larder" and info.reason, f"no ErrorInfo: {error}"
            assert info.metadata["applied"] == "NO", info
            assert len(error.details()) > 10, "a sentence says what to do"
        else:
            raise AssertionError(f"expected {code}")
    assert not client.get(b"never").found
    assert client.get(b"text").value == b"not a number"


def headers_name_node_and_revision(nodes: Nodes) -> None:
    first, second = Client(nodes, 0), Client(nodes, 2)
    written = first.set(b"key", b"value")
    read = second.get(b"key")
    assert written.header.node.slot == "0" and read.header.node.slot == "2"
    assert written.header.cluster_id == read.header.cluster_id and len(read.header.cluster_id) == 32
    assert read.version == written.version == written.header.revision <= read.header.revision


def main() -> int:
    home = Path(sys.argv[1])
    data = packages()
    tests = {
        "health_and_reflection": health_and_reflection,
        "headers_name_node_and_revision": headers_name_node_and_revision,
        "errors_carry_details": errors_carry_details,
        "packages_through_a_follower": lambda nodes: load_with_the_leader_killed(nodes, data, False),
        "packages_through_the_leader": lambda nodes: load_with_the_leader_killed(nodes, data, True),
    }
    failed = 0
    start = time.monotonic()
    for name, test in tests.items():
        folder = home / name
        folder.mkdir()
        nodes = Nodes(os.environ["LARDER_BIN"], folder)
        try:
            with nodes:
                nodes.start_all()
                test(nodes)
            print(f"test foreign::{name} ... ok", flush=True)
        except Exception:
            failed += 1
            print(f"test foreign::{name} ... FAILED\n{traceback.format_exc()}\n{nodes.logs()}", flush=True)
    word = "FAILED" if failed else "ok"
    seconds = time.monotonic() - start
    print(f"\ntest result: {word}. {len(tests) - failed} passed; {failed} failed; 0 ignored; finished in {seconds:.2f}s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
