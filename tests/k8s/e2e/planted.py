"""The client against a server that does wrong: what the client must notice, planted, so that its check can fail.

The server is a real gRPC server with Larder's API and one key-value map; each kind of wrong happens every so often.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from larder.v1 import cache_pb2, cache_pb2_grpc

from .kube import Failed, eventually
from .load import Endpoint, Load
from .watch import Pod

EVERY = 25  # of this many writes one goes wrong


class Store(cache_pb2_grpc.CacheServicer):
    """One map. `wrong` says what it does with every so many writes."""

    def __init__(self, wrong: str):
        self.wrong, self.lock = wrong, threading.Lock()
        self.values: dict[bytes, tuple[bytes, int]] = {}
        self.before: dict[bytes, tuple[bytes, int]] = {}
        self.writes = self.reads = 0

    def Get(self, request, context):
        with self.lock:
            self.reads += 1
            source = self.before if self.wrong == "old value read" and self.reads % EVERY == 0 else self.values
            value, version = source.get(request.key, (b"", 0))
        return cache_pb2.GetResponse(found=bool(version), value=value, version=version)

    def Set(self, request, context):
        with self.lock:
            self.writes += 1
            now = self.writes % EVERY == 0
            held = self.values.get(request.key, (b"", 0))
            if request.condition.if_version != held[1]:
                refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "NO")
            version = self.writes
            if not (now and self.wrong == "acknowledged and not kept"):
                self.before[request.key], self.values[request.key] = held, (request.value, version)
            if now and self.wrong == "applied, and said to be surely not":
                refuse(context, grpc.StatusCode.UNAVAILABLE, "NO")
            if now and self.wrong == "":
                # Nothing wrong in this: nobody knows, and it was applied.
                refuse(context, grpc.StatusCode.UNKNOWN, "UNKNOWN")
        return cache_pb2.SetResponse(version=version)


def refuse(context, code: grpc.StatusCode, applied: str) -> None:
    """Ends the call with Larder's kind of error."""
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason="PLANTED", domain="larder", metadata={"applied": applied}))
    context.abort_with_status(rpc_status.to_status(status_pb2.Status(code=code.value[0], message="planted", details=[detail])))


class One:
    """The endpoints, with one pod."""

    def __init__(self, address: str):
        self.pod, self.endpoint = Pod("larder-0", "0", "0", "127.0.0.1", "", False), Endpoint(address)

    def all(self):
        return [(self.pod, self.endpoint)]

    def of(self, _pod):
        return self.endpoint

    def pick(self, _turn):
        return self.endpoint


def found(wrong: str) -> list[str]:
    """What the client says after some hundred writes."""
    server, store = grpc.server(ThreadPoolExecutor(16)), Store(wrong)
    cache_pb2_grpc.add_CacheServicer_to_server(store, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    load = Load(One(f"127.0.0.1:{port}"), "planted")
    try:
        load.resume()
        eventually("writes", lambda: load.ledger.violations or load.ledger.count >= 8 * EVERY, 30, every=0.02)
        load.pause()
        try:
            load.verify()
        except Failed as told:
            return [str(told)]
        return []
    finally:
        load.stop()
        server.stop(None)


def main() -> int:
    """The number of checks that came out wrong."""
    expected = {"acknowledged and not kept": "went back|not at version", "old value read": "went back",
                "applied, and said to be surely not": "surely not", "": None}
    failed = 0
    for wrong, says in expected.items():
        told = found(wrong)
        ok = not told if says is None else any(word in line for line in told for word in says.split("|"))
        failed += not ok
        name = "client_finds_" + wrong.replace(",", "").replace(" ", "_") if wrong else "client_finds_nothing_where_nothing_is_wrong"
        print(f"test k8s::planted::{name} ... {'ok' if ok else f'FAILED: {told}'}", flush=True)
    print(f"\ntest result: {'FAILED' if failed else 'ok'}. {len(expected) - failed} passed; {failed} failed; 0 ignored")
    return failed
