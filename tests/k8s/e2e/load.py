"""The client: writers, readers, and the ledger of what was acknowledged.

Each writer has a key of its own and counts it up, one write after the other; each write names the version that it follows
(`if_version`), so that a write of unknown outcome that arrives late cannot come after its successors. So at any time a
linearizable read must answer at least the last number acknowledged, or seen by a read, before it began, and at most the last
one attempted. Less is a lost write or a value that went back; both are violations, and never forgotten within a step.

A client that gets no answer from one node asks another: so the longest time without any acknowledged write is the
cluster's gap and not a node's.
"""

import random
import threading
import time
from dataclasses import dataclass, field

import grpc
from google.rpc import error_details_pb2, status_pb2
from larder.v1 import cache_pb2, cache_pb2_grpc, cluster_pb2, cluster_pb2_grpc

from .kube import Failed, Kube, eventually
from .watch import Direct, Forward, Pod, Watch

WRITERS, READERS = 6, 2
DEADLINE = 1.0  # seconds for one attempt
REST = 0.02  # seconds between two writes of a writer: load enough to see a gap of that size
AVOID = 2.0  # seconds without asking an endpoint that did not answer


class Endpoint:
    """A channel to one pod."""

    def __init__(self, address: str):
        # No sharing of subchannels: a dead node must not slow down the next client of it.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 500)]
        self.address = address
        self.channel = grpc.insecure_channel(address, options)
        self.cache = cache_pb2_grpc.CacheStub(self.channel)
        self.cluster = cluster_pb2_grpc.ClusterStub(self.channel)
        self.avoid_until = 0.0

    def get(self, key: bytes, deadline: float = DEADLINE) -> cache_pb2.GetResponse:
        """A linearizable read."""
        return self.cache.Get(cache_pb2.GetRequest(key=key), timeout=deadline)

    def set(self, key: bytes, value: bytes, version: int) -> int:
        """A write that follows `version`, 0 for the first one; its own version."""
        after = cache_pb2.Condition(if_version=version) if version else cache_pb2.Condition(if_absent=True)
        return self.cache.Set(cache_pb2.SetRequest(key=key, value=value, condition=after), timeout=DEADLINE).version

    def status(self, deadline: float = 2.0) -> cluster_pb2.StatusResponse:
        return self.cluster.Status(cluster_pb2.StatusRequest(), timeout=deadline)

    def members(self, deadline: float = 2.0) -> cluster_pb2.MembersResponse:
        return self.cluster.Members(cluster_pb2.MembersRequest(), timeout=deadline)


class Endpoints:
    """The channels to the pods that run, made as they come, closed as they go."""

    def __init__(self, kube: Kube, watch: Watch, reach: str):
        self.kube, self.watch, self.reach = kube, watch, reach
        self.way: Direct | Forward | None = None
        self.lock = threading.Lock()
        self.known: dict[str, Endpoint] = {}

    def choose(self) -> None:
        """Decides how pods are reached: by their addresses if one of them answers there, else through the API server."""
        def decided():
            pods = self.watch.running()
            if self.reach != "forward" and any(Direct.reaches(pod) for pod in pods):
                return Direct()
            return Forward(self.kube) if pods and self.reach != "direct" else None

        self.way = eventually("a pod that answers on its client port", decided)

    def of(self, pod: Pod) -> Endpoint | None:
        """The channel to a pod, or none if there is no way to it now."""
        address = self.way.address(pod)
        with self.lock:
            known = self.known.get(pod.uid)
            if address is None or known and known.address == address:
                return known if address else None
            if known:
                known.channel.close()
            self.known[pod.uid] = Endpoint(address)
            return self.known[pod.uid]

    def all(self) -> list[tuple[Pod, Endpoint]]:
        """Every pod that runs, with its channel."""
        pods = self.watch.running()
        with self.lock:
            gone = self.known.keys() - {pod.uid for pod in pods}
            for uid in gone:
                self.known.pop(uid).channel.close()
        self.way.forget(gone)
        return [(pod, endpoint) for pod in pods if (endpoint := self.of(pod))]

    def pick(self, turn: int) -> Endpoint | None:
        """One of the endpoints in turn, one that did not answer just now only if there is no other."""
        now = time.monotonic()
        found = [endpoint for _, endpoint in self.all()]
        better = [endpoint for endpoint in found if endpoint.avoid_until <= now] or found
        return better[turn % len(better)] if better else None

    def stop(self) -> None:
        if self.way:
            self.way.stop()
        with self.lock:
            for endpoint in self.known.values():
                endpoint.channel.close()
            self.known.clear()


def applied(error: grpc.RpcError) -> str:
    """NO, YES or UNKNOWN, as the error says it; UNKNOWN for what is not Larder's own word."""
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return info.metadata["applied"]
    return "UNKNOWN"


@dataclass
class Entry:
    """A writer's key."""

    acknowledged: int = 0
    attempted: int = 0
    # The highest number that any finished operation has seen.
    seen: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Ledger:
    """What was attempted, acknowledged and seen, and whatever contradicted it."""

    def __init__(self, keys: list[bytes]):
        self.entries = {key: Entry() for key in keys}
        self.violations: list[str] = []
        self.lock = threading.Lock()
        self.last = time.monotonic()
        self.longest = 0.0
        self.count = 0

    def acknowledge(self, key: bytes, number: int) -> None:
        entry = self.entries[key]
        with entry.lock:
            entry.acknowledged = number
            entry.seen = max(entry.seen, number)
        now = time.monotonic()
        with self.lock:
            self.longest = max(self.longest, now - self.last)
            self.last = now
            self.count += 1

    def floor(self, key: bytes) -> int:
        """What a read that begins now must answer at least."""
        return self.entries[key].seen

    def check(self, key: bytes, floor: int, number: int, where: str) -> None:
        """A linearizable read that began when `floor` was the floor has answered `number`."""
        entry = self.entries[key]
        with entry.lock:
            entry.seen = max(entry.seen, number)
            if number < floor:
                problem = f"{key.decode()} went back: {number} read through {where} after {floor} was acknowledged or read"
            elif number > entry.attempted:
                problem = f"{key.decode()} is {number}, read through {where}; only {entry.attempted} was ever written"
            else:
                return
        self.violate(problem)

    def violate(self, problem: str) -> None:
        with self.lock:
            self.violations.append(problem)

    def begin(self) -> None:
        """A new measurement of the gap begins."""
        with self.lock:
            self.last, self.longest, self.count = time.monotonic(), 0.0, 0

    def gap(self) -> float:
        """The longest time without an acknowledged write since `begin`, the time now running included."""
        with self.lock:
            return max(self.longest, time.monotonic() - self.last)


class Writer:
    """One after the other, each write after the version of the one before it."""

    def __init__(self, load: "Load", key: bytes, turn: int):
        self.load, self.key, self.turn = load, key, turn
        self.entry = load.ledger.entries[key]
        # The key's version: 0 before the first write, none while it is not known.
        self.version: int | None = 0
        # Whether an earlier attempt of unknown outcome may still come true. The next success ends that.
        self.doubt = False

    def step(self) -> float:
        """One write, or one read to know where the key is; the seconds to rest after it."""
        endpoint = self.load.endpoints.pick(self.turn)
        if endpoint is None:
            return 0.1
        if self.version is None:
            found = self.load.look(endpoint, self.key)
            if found is None:
                self.turn += 1
            else:
                self.version = found.version
            return 0.0
        number = self.entry.seen + 1
        with self.entry.lock:
            self.entry.attempted = max(self.entry.attempted, number)
        try:
            self.version = endpoint.set(self.key, str(number).encode(), self.version)
        except ValueError:  # the pod is gone, and its channel was closed
            self.failed("UNKNOWN")
            return 0.0
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.FAILED_PRECONDITION:
                self.refused(endpoint)
                return 0.0
            endpoint.avoid_until = time.monotonic() + AVOID
            self.failed(applied(error))
            return REST
        self.doubt = False
        self.load.ledger.acknowledge(self.key, number)
        return REST

    def failed(self, outcome: str) -> None:
        """On to another node; if nobody knows what was done, the key is read first."""
        self.turn += 1
        if outcome != "NO":
            self.version, self.doubt = None, True

    def refused(self, endpoint: Endpoint) -> None:
        """The key is not at the version that was named: an attempt of unknown outcome came true. Nothing else may do that."""
        if not self.doubt:
            self.load.ledger.violate(f"{self.key.decode()} is not at version {self.version}, says {endpoint.address}; nobody else "
                                     "writes it: a write was lost, or one was applied that was surely not")
        self.version = None


class Load:
    """Writers and readers against the pods of one installation."""

    def __init__(self, endpoints: Endpoints, tag: str):
        self.endpoints = endpoints
        self.ledger = Ledger([f"e2e/{tag}/{number}".encode() for number in range(WRITERS)])
        self.stopped, self.go = threading.Event(), threading.Event()
        self.idle = [threading.Event() for _ in range(WRITERS)]
        self.threads = [threading.Thread(target=self.write, args=(n, key), daemon=True)
                        for n, key in enumerate(self.ledger.entries)]
        self.threads += [threading.Thread(target=self.read, args=(n,), daemon=True) for n in range(READERS)]
        for thread in self.threads:
            thread.start()

    def resume(self) -> None:
        """Writers and readers go on; the gap is measured from here."""
        self.ledger.begin()
        self.go.set()

    def pause(self) -> None:
        """No write is in flight when it returns."""
        self.go.clear()
        for idle in self.idle:
            if not idle.wait(30):
                raise Failed("a writer did not come to rest within 30 s")

    def stop(self) -> None:
        self.stopped.set()
        self.go.set()
        for thread in self.threads:
            thread.join()

    def write(self, number: int, key: bytes) -> None:
        """A writer, until the end."""
        writer = Writer(self, key, number)
        try:
            while not self.stopped.is_set():
                if not self.go.is_set():
                    self.idle[number].set()
                    self.go.wait()
                    self.idle[number].clear()
                    continue
                self.stopped.wait(writer.step())
        except Exception as error:
            self.ledger.violate(f"the writer of {key.decode()} ended: {error!r}")
        self.idle[number].set()

    def look(self, endpoint: Endpoint, key: bytes) -> cache_pb2.GetResponse | None:
        """A linearizable read, checked against the ledger; none if there was no answer."""
        floor = self.ledger.floor(key)
        try:
            found = endpoint.get(key)
        except (grpc.RpcError, ValueError):
            endpoint.avoid_until = time.monotonic() + AVOID
            return None
        self.ledger.check(key, floor, int(found.value) if found.found else 0, endpoint.address)
        return found

    def read(self, turn: int) -> None:
        """A reader, until the end."""
        choice = random.Random(turn)
        try:
            while not self.stopped.is_set():
                self.go.wait()
                turn += 1
                endpoint = self.endpoints.pick(turn)
                if endpoint:
                    self.look(endpoint, choice.choice(list(self.ledger.entries)))
                self.stopped.wait(REST)
        except Exception as error:
            self.ledger.violate(f"a reader ended: {error!r}")

    def verify(self) -> None:
        """Reads every key through every pod that runs, each until it answers."""
        for key in self.ledger.entries:
            for pod, _ in self.endpoints.all():
                def answered(pod=pod):
                    endpoint = self.endpoints.of(pod)
                    return endpoint and self.look(endpoint, key)

                eventually(f"{pod.name} to answer a linearizable read", answered, 20)
        problems = self.ledger.violations
        if problems:
            raise Failed(f"{len(problems)} violations, the first: {problems[0]}")
