"""A step, the run of all of them, and the table.

A step is a function that gets the run. Before it, three nodes with the default values stand and are under load (unless it
makes its own installation); after it, every acknowledged write is read through every pod. A step that fails leaves nothing
behind: what it made is removed, and the next one starts from nothing.
"""

import contextlib
import random
import string
import subprocess
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from .fleet import Fleet
from .kube import Failed, Helm, Kube, Skipped, command

STEPS: list["Step"] = []


@dataclass
class Step:
    """One thing that happens to a cluster."""

    name: str
    what: str
    function: Callable[["Run"], None]
    # Values besides the default ones with which it installs or upgrades, for the dry run.
    values: Callable[["Run"], list[list[str]]]
    # Values that helm must refuse, and the name that its message must have.
    refused: dict[str, str]
    # Whether it makes its own installations, and finds none.
    alone: bool
    # Whether it needs the program that stops and cuts off nodes.
    nodes: bool


def step(name: str, what: str, *, alone: bool = False, nodes: bool = False, values=lambda run: [], refused=None):
    """Registers a step, in the order of the definitions."""
    def register(function):
        STEPS.append(Step(name, what, function, values, refused or {}, alone, nodes))
        return function

    return register


@dataclass
class Row:
    """What came of a step."""

    name: str
    what: str
    gap: float | None = None
    redundancy: float | None = None
    seconds: float = 0.0
    verdict: str = "ok"
    why: str = ""


class Run:
    """All that a step needs: the namespace, the chart, the image, the present installation."""

    RELEASE = "larder"

    def __init__(self, options, chart: Path):
        self.options, self.chart = options, chart
        suffix = "".join(random.choices(string.ascii_lowercase + string.digits, k=6))
        self.namespace = f"{options.namespace}-{suffix}"
        self.kube = Kube(self.namespace)
        self.helm = Helm(options.helm, chart, self.namespace)
        self.fleet: Fleet | None = None
        # Undoes what a step did outside the namespaces.
        self.undo = contextlib.ExitStack()
        self.namespaces: list[str] = []
        # The machines that a step has taken away and not yet brought back.
        self.away: set[str] = set()
        self.rows: list[Row] = []

    # --- installations

    def image_values(self, *more: str) -> list[str]:
        """helm's arguments for the image under test and this cluster, then these settings."""
        repository, _, tag = self.options.image.rpartition(":")
        domain = [f"clusterDomain={self.options.cluster_domain}"] if self.options.cluster_domain else []
        sets = [f"image.repository={repository}", f"image.tag={tag}", *domain, *more]
        return [word for each in sets for word in ("--set", each)]

    def values(self, *more: str) -> list[str]:
        """The same with the chart's default values, but for their size: they are to fit on any cluster."""
        return self.image_values("resources.requests.cpu=50m", "resources.requests.memory=128Mi", "resources.limits.memory=256Mi",
                                 "persistence.size=1Gi", *more)

    def make_namespace(self, name: str, level: str) -> None:
        """A namespace with this level of pod security enforced."""
        self.namespaces.append(name)
        labels = {f"pod-security.kubernetes.io/{mode}": level for mode in ("enforce", "warn")}
        self.kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})

    def install(self, arguments: list[str] | None = None, count: int = 3, release: str = RELEASE, namespace: str = "") -> Fleet:
        """Installs from nothing, waits until it is whole, and puts it under load."""
        fleet = self.prepare(arguments, release, namespace)
        fleet.install()
        fleet.whole(count)
        fleet.start_load()
        return fleet

    def prepare(self, arguments: list[str] | None = None, release: str = RELEASE, namespace: str = "") -> Fleet:
        """An installation that is still to be made."""
        self.clear()
        kube = Kube(namespace) if namespace else self.kube
        helm = Helm(self.options.helm, self.chart, kube.namespace)
        self.fleet = Fleet(kube, helm, release, self.values() if arguments is None else arguments, self.options.reach)
        return self.fleet

    def clear(self) -> None:
        """Removes the present installation, if there is one."""
        fleet, self.fleet = self.fleet, None
        if fleet:
            fleet.remove()

    def three(self) -> Fleet:
        """Three nodes with the default values: those of the step before, or new ones."""
        if self.fleet is None:
            return self.install()
        return self.fleet

    # --- the run

    def all(self, steps: list[Step]) -> int:
        """Runs the steps; the number that failed."""
        self.make_namespace(self.namespace, "restricted")
        start = time.monotonic()
        try:
            for each in steps:
                self.one(each)
        finally:
            self.clean_up()
        failed = sum(row.verdict == "FAILED" for row in self.rows)
        ignored = sum(row.verdict == "ignored" for row in self.rows)
        table = self.table()
        print(f"\n{table}")
        if self.options.out:
            Path(self.options.out).write_text(table)
        print(f"\ntest result: {'FAILED' if failed else 'ok'}. {len(self.rows) - failed - ignored} passed; {failed} failed; "
              f"{ignored} ignored; finished in {time.monotonic() - start:.0f}s", flush=True)
        return failed

    def one(self, each: Step) -> None:
        row = Row(each.name, each.what)
        self.rows.append(row)
        start = time.monotonic()
        try:
            if each.nodes and not self.options.node_tool:
                raise Skipped("needs --node-tool")
            if each.alone:
                self.clear()
            else:
                fleet = self.three()
                fleet.redundancy = None
                fleet.start_load()
            with self.undo:
                each.function(self)
            self.measure()
            if each.alone and each.name != "install":
                self.clear()
        except Skipped as skip:
            row.verdict, row.why = "ignored", str(skip)
        except Exception as error:
            row.verdict, row.why = "FAILED", str(error) or type(error).__name__
            self.show_failure(error)
        row.seconds = time.monotonic() - start
        why = f": {row.why}" if row.why else ""
        print(f"test k8s::{row.name} ... {row.verdict}{why}   [write gap {text(row.gap)}, full redundancy {text(row.redundancy)}, "
              f"{row.seconds:.0f} s in all]", flush=True)

    def measure(self) -> None:
        """Takes the present step's figures, and reads every acknowledged write."""
        row, fleet = self.rows[-1], self.fleet
        if fleet:
            row.redundancy = fleet.redundancy
        if fleet and fleet.load:
            row.gap = fleet.load.ledger.gap()
            fleet.load.verify()

    def show_failure(self, error: Exception) -> None:
        """What the cluster looks like, before it is cleared away."""
        if not isinstance(error, Failed):
            traceback.print_exception(error)
        fleet = self.fleet
        with contextlib.suppress(Exception):
            kube = fleet.kube if fleet else self.kube
            print(kube("get", "pods,persistentvolumeclaims", "--output", "wide", check=False))
            print("\n".join(kube("get", "events", "--sort-by", ".lastTimestamp", check=False).splitlines()[-25:]))
            for pod in fleet.watch.running() if fleet else []:
                print(f"--- {pod.name}\n{kube.logs(pod.name, '--tail', '40')}")
                before = kube.run("logs", pod.name, "--previous", "--tail", "20", check=False)
                if before.returncode == 0:
                    print(f"--- {pod.name}, the container before\n{before.stdout}")
        # The next step begins with nothing, also where this one left something that does not go by itself.
        self.clean_up()
        self.make_namespace(self.namespace, "restricted")

    def clean_up(self) -> None:
        """Nothing of the run stays."""
        fleet, self.fleet = self.fleet, None
        if fleet:
            fleet.end_load()
        while self.namespaces:
            name = self.namespaces.pop()
            done = self.kube.run("delete", "namespace", name, "--wait", "--timeout", "150s", check=False, timeout=180)
            if done.returncode != 0:
                print(f"the namespace {name} could not be removed: {done.stderr.strip()}", flush=True)

    def dry(self, steps: list[Step]) -> int:
        """Prints each step, and renders what it would install; asks no cluster. The number of steps whose values are wrong."""
        failed = 0
        for each in steps:
            print(f"{each.name}{' (needs --node-tool)' if each.nodes else ''}: {each.what}")
            try:
                self.render(each)
            except Failed as problem:
                failed += 1
                print(f"test k8s::dry::{each.name} ... FAILED: {problem}", flush=True)
            else:
                print(f"test k8s::dry::{each.name} ... ok", flush=True)
        print(f"\ntest result: {'FAILED' if failed else 'ok'}. {len(steps) - failed} passed; {failed} failed; 0 ignored")
        return failed

    def render(self, each: Step) -> None:
        """What a step would install, by kinds; the default values by every step that begins with three nodes."""
        for arguments in [*([] if each.alone else [self.values()]), *each.values(self)]:
            kinds = [line.split()[1] for line in self.helm.template(self.RELEASE, arguments).stdout.splitlines() if line.startswith("kind: ")]
            if not {"StatefulSet", "DaemonSet"} & set(kinds):
                raise Failed(f"helm {' '.join(arguments)} renders no nodes: {kinds}")
            print(f"  helm {' '.join(arguments)}\n    {', '.join(sorted(kinds))}")
        for bad, name in each.refused.items():
            done = self.helm.template(self.RELEASE, self.values(bad), check=False)
            if done.returncode == 0 or name not in done.stderr:
                raise Failed(f"helm takes {bad}, or does not say {name}: {done.stderr.strip()}")
            print(f"  helm --set {bad} is refused: {done.stderr.strip().splitlines()[-1]}")

    def table(self) -> str:
        """The results, in Markdown."""
        lines = ["| step | what happens | longest write gap | full redundancy after | result |", "|---|---|---:|---:|---|"]
        for row in self.rows:
            result = row.verdict if row.verdict != "ignored" else f"not run: {row.why}"
            lines.append(f"| {row.name} | {row.what} | {text(row.gap)} | {text(row.redundancy)} | {result} |")
        return "\n".join(lines) + "\n"

    # --- nodes

    def tool(self, *words: str, timeout: float = 90) -> None:
        """The program that pulls plugs."""
        command(self.options.node_tool, *words, timeout=timeout)

    def afterwards(self, function: Callable, *arguments) -> None:
        """Called when the step is over, however it ends."""
        def quietly():
            with contextlib.suppress(Failed, subprocess.SubprocessError):
                function(*arguments)

        self.undo.callback(quietly)


def text(seconds: float | None) -> str:
    """Seconds for the table."""
    if seconds is None:
        return "–"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
