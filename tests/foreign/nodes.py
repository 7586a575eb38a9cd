"""Three `larder serve` processes on a loopback address of their own."""

import os
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path


def eventually(what, condition, seconds=30.0):
    """Polls until `condition` returns something true, and returns it; fails with what it last raised."""
    end = time.monotonic() + seconds
    tick = threading.Event()
    last = "never true"
    while time.monotonic() < end:
        try:
            if found := condition():
                return found
        except Exception as error:  # the next poll may fare better
            last = error
        tick.wait(0.02)
    raise AssertionError(f"waited {seconds} s for {what}; last seen: {last}")


class Nodes:
    """The processes, by slot. Use as a context: it kills what it started."""

    def __init__(self, binary: str, home: Path):
        self.binary, self.home = binary, home
        pid = os.getpid()
        self.address = f"127.{1 + (pid >> 8) % 250}.{pid % 256}.251"
        self.peers = ",".join(f"{slot}={self.address}:{self.port(slot, 1)}" for slot in range(3))
        self.processes: dict[int, subprocess.Popen] = {}

    @staticmethod
    def port(slot: int, kind: int) -> int:
        """Kind 0 is for clients, 1 for peers, 2 for HTTP."""
        return 7400 + 10 * slot + kind

    def endpoint(self, slot: int) -> str:
        return f"{self.address}:{self.port(slot, 0)}"

    def start(self, slot: int) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith("LARDER_")}
        settings = {
            "SLOT": slot,
            "PEERS": self.peers,
            "DATA_DIR": self.home / f"data-{slot}",
            "CLIENT_ADDR": f"{self.address}:{self.port(slot, 0)}",
            "PEER_ADDR": f"{self.address}:{self.port(slot, 1)}",
            "HTTP_ADDR": f"{self.address}:{self.port(slot, 2)}",
        }
        # Settings by environment here, as the Rust tests use flags.
        env.update({f"LARDER_{name}": str(value) for name, value in settings.items()})
        with open(self.home / f"node-{slot}.log", "ab") as log:
            self.processes[slot] = subprocess.Popen([self.binary, "serve"], env=env, stdout=log, stderr=log)

    def ready(self, slot: int) -> bool:
        url = f"http://{self.address}:{self.port(slot, 2)}/readyz"
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2) as answer:
                return answer.status == 200
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error

    def wait_ready(self) -> None:
        for slot in self.processes:
            eventually(f"node {slot} to be ready, or to end", lambda slot=slot: self.ended(slot) or self.ready(slot))
            assert not self.ended(slot), f"node {slot} ended with {self.processes[slot].returncode}"

    def ended(self, slot: int) -> bool:
        return self.processes[slot].poll() is not None

    def kill(self, slot: int) -> None:
        """SIGKILL."""
        process = self.processes.pop(slot)
        assert process.poll() is None, f"node {slot} ended by itself with {process.returncode}"
        process.kill()
        process.wait()

    def logs(self) -> str:
        """The end of each node's log."""
        tail = "\n".join
        return tail(f"--- {p.name}\n{tail(p.read_text(errors='replace').splitlines()[-30:])}"
                    for p in sorted(self.home.glob("node-*.log")))

    def start_all(self) -> None:
        for slot in range(3):
            self.start(slot)
        self.wait_ready()

    def __enter__(self) -> "Nodes":
        return self

    def __exit__(self, *_) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.wait()
