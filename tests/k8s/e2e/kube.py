"""kubectl and helm as functions, and waiting on conditions."""

import json
import subprocess
import threading
import time
from pathlib import Path


class Failed(Exception):
    """A step did not come out as it must; the text says what was seen."""


class Skipped(Exception):
    """This cluster cannot show it; the text says what it lacks."""


def eventually(what: str, condition, seconds: float = 60.0, every: float = 0.2):
    """Polls until `condition` returns something true, and returns that.

    Fails after `seconds`, with what the last poll raised or returned.
    """
    end, tick, last = time.monotonic() + seconds, threading.Event(), "never true"
    while True:
        try:
            found = condition()
            if found:
                return found
            last = "not yet" if found is None or found is False else repr(found)
        except Skipped:
            raise
        except Exception as error:  # the next poll may fare better
            last = str(error) or type(error).__name__
        if time.monotonic() >= end:
            raise Failed(f"waited {seconds:.0f} s for {what}; last seen: {last}")
        tick.wait(every)


def command(*words, stdin: str | None = None, timeout: float = 120, check: bool = True) -> subprocess.CompletedProcess:
    """Runs a program to its end."""
    words = [str(word) for word in words]
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"`{' '.join(words)}` did not end within {timeout:.0f} s") from error
    if check and done.returncode != 0:
        raise Failed(f"`{' '.join(words)}` ended with {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done


class Kube:
    """One namespace of the cluster that KUBECONFIG names."""

    def __init__(self, namespace: str):
        self.namespace = namespace

    def __call__(self, *words, **more) -> str:
        """kubectl, its output."""
        return self.run(*words, **more).stdout

    def run(self, *words, **more) -> subprocess.CompletedProcess:
        """kubectl, with its exit code and both outputs."""
        return command("kubectl", "--namespace", self.namespace, *words, **more)

    def get(self, *words) -> dict:
        """An object, or a list of them."""
        return json.loads(self("get", *words, "--output", "json", timeout=30))

    def items(self, *words) -> list[dict]:
        """The objects of a list."""
        return self.get(*words)["items"]

    def exists(self, *words) -> bool:
        """Whether there is such an object."""
        return bool(self("get", *words, "--ignore-not-found", "--output", "name", timeout=30).strip())

    def apply(self, *objects: dict) -> None:
        """Creates or changes objects."""
        self("apply", "--filename", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))

    def larder(self, pod: str, *words, **more) -> subprocess.CompletedProcess:
        """`larder` in a pod's container."""
        return self.run("exec", pod, "--container", "larder", "--", "/usr/local/bin/larder", *words, **more)

    def logs(self, pod: str, *words) -> str:
        """What a pod's container has logged."""
        return self("logs", pod, "--container", "larder", *words, timeout=30)

    def evict(self, pod: str) -> subprocess.CompletedProcess:
        """Asks for an eviction as a drain does; a disruption budget may refuse it."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": self.namespace}}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction"
        return self.run("create", "--raw", path, "--filename", "-", stdin=json.dumps(body), check=False)

    def replicas(self, workload: str, count: int) -> None:
        """`kubectl scale`, as anybody would type it."""
        self("scale", workload, f"--replicas={count}")


class Helm:
    """helm with Larder's chart."""

    def __init__(self, program: str, chart: Path, namespace: str):
        self.program, self.chart, self.namespace = program, chart, namespace

    def run(self, *words, **more) -> subprocess.CompletedProcess:
        """helm, in the namespace."""
        return command(self.program, "--namespace", self.namespace, *words, **more)

    def install(self, release: str, values: list[str], check: bool = True) -> subprocess.CompletedProcess:
        """Installs the chart; does not wait."""
        return self.run("install", release, self.chart, *values, check=check)

    def upgrade(self, release: str, values: list[str]) -> None:
        """Upgrades to exactly these values; does not wait."""
        self.run("upgrade", release, self.chart, *values)

    def uninstall(self, release: str) -> None:
        """Removes what the release installed, and waits for it; volumes stay."""
        self.run("uninstall", release, "--ignore-not-found", "--wait", "--timeout", "2m", timeout=150)

    def test(self, release: str) -> str:
        """`helm test`: its output, with the test pod's log."""
        return self.run("test", release, "--logs", "--timeout", "2m", timeout=150).stdout

    def template(self, release: str, values: list[str], check: bool = True) -> subprocess.CompletedProcess:
        """What would be installed; asks no cluster."""
        return self.run("template", release, self.chart, *values, check=check)


def ready(pod: dict) -> bool:
    """Whether a pod's readiness condition is true and it is not being deleted."""
    conditions = pod.get("status", {}).get("conditions", [])
    return "deletionTimestamp" not in pod["metadata"] and any(
        each["type"] == "Ready" and each["status"] == "True" for each in conditions)
