"""The pods of a release as they come and go, and a way to reach each of them.

The pods are followed by list and watch, through kubectl. Where this process can reach a pod's address, it dials that;
elsewhere `kubectl port-forward` runs for each pod. What is known stays known while the API server is away.
"""

import json
import re
import socket
import subprocess
import threading
from dataclasses import dataclass

from .kube import Kube

CLIENT_PORT = 7400


@dataclass(frozen=True)
class Pod:
    """A pod that was seen running. Another pod of the same name has another uid."""

    name: str
    uid: str
    # The ordinal in a StatefulSet, the machine's name in a DaemonSet.
    slot: str
    ip: str
    node: str
    deleting: bool


class Watch:
    """Follows the pods that a label selector finds and a StatefulSet or DaemonSet owns."""

    def __init__(self, kube: Kube, selector: str):
        self.kube, self.selector = kube, selector
        self.lock = threading.Lock()
        self.pods: dict[str, Pod] = {}
        self.stopped = threading.Event()
        self.process: subprocess.Popen | None = None
        self.thread = threading.Thread(target=self.follow, daemon=True)
        self.thread.start()

    def running(self) -> list[Pod]:
        """The pods that run, by name."""
        with self.lock:
            return sorted(self.pods.values(), key=lambda pod: pod.name)

    def stop(self) -> None:
        self.stopped.set()
        with self.lock:
            if self.process:
                self.process.kill()
        self.thread.join()

    def follow(self) -> None:
        while not self.stopped.is_set():
            try:
                version = self.list()
                self.stream(version)
            except Exception:  # the API server is away: what is known stays
                pass
            self.stopped.wait(0.3)

    def path(self) -> str:
        return f"/api/v1/namespaces/{self.kube.namespace}/pods?labelSelector={self.selector}"

    def list(self) -> str:
        found = json.loads(self.kube("get", "--raw", self.path(), timeout=10))
        with self.lock:
            self.pods = {pod.uid: pod for item in found["items"] if (pod := seen(item))}
        return found["metadata"]["resourceVersion"]

    def stream(self, version: str) -> None:
        path = f"{self.path()}&watch=true&timeoutSeconds=60&resourceVersion={version}"
        words = ["kubectl", "get", "--raw", path]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            with self.lock:
                self.process = process
            if self.stopped.is_set():
                process.kill()
            for line in process.stdout:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    process.kill()
                    return
                uid, pod = event["object"]["metadata"]["uid"], seen(event["object"])
                with self.lock:
                    if pod is None or event["type"] == "DELETED":
                        self.pods.pop(uid, None)
                    else:
                        self.pods[uid] = pod


def seen(item: dict) -> Pod | None:
    """A pod of ours that has an address."""
    meta, status, node = item["metadata"], item.get("status", {}), item["spec"].get("nodeName", "")
    slots = {"StatefulSet": meta["name"].rpartition("-")[2], "DaemonSet": node}
    slot = next((slots[owner["kind"]] for owner in meta.get("ownerReferences", []) if owner["kind"] in slots), None)
    if slot is None or status.get("phase") != "Running" or not status.get("podIP"):
        return None
    return Pod(meta["name"], meta["uid"], slot, status["podIP"], node, "deletionTimestamp" in meta)


class Direct:
    """Dials the pods' own addresses."""

    def address(self, pod: Pod) -> str | None:
        return f"[{pod.ip}]:{CLIENT_PORT}" if ":" in pod.ip else f"{pod.ip}:{CLIENT_PORT}"

    def forget(self, uids: set[str]) -> None:
        """Nothing is kept."""

    def stop(self) -> None:
        """Nothing runs."""

    @staticmethod
    def reaches(pod: Pod) -> bool:
        try:
            socket.create_connection((pod.ip, CLIENT_PORT), timeout=2).close()
        except OSError:
            return False
        return True


class Forward:
    """Runs a `kubectl port-forward` for each pod, and a new one when it ends."""

    def __init__(self, kube: Kube):
        self.kube = kube
        self.lock = threading.Lock()
        self.running: dict[str, tuple[subprocess.Popen, str]] = {}

    def address(self, pod: Pod) -> str | None:
        with self.lock:
            known = self.running.get(pod.uid)
            if known and known[0].poll() is None:
                return known[1]
            words = ["kubectl", "--namespace", self.kube.namespace, "port-forward", f"pod/{pod.name}", f":{CLIENT_PORT}"]
            process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            line = process.stdout.readline()
            told = re.match(r"Forwarding from (127\.0\.0\.1:\d+)", line)
            if not told:
                process.kill()
                process.wait()
                return None
            threading.Thread(target=process.stdout.read, daemon=True).start()
            self.running[pod.uid] = process, told.group(1)
            return told.group(1)

    def forget(self, uids: set[str]) -> None:
        with self.lock:
            for uid in uids & self.running.keys():
                process, _ = self.running.pop(uid)
                process.kill()
                process.wait()

    def stop(self) -> None:
        self.forget(set(self.running))
