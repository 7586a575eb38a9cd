"""One installation of the chart with its load: installing it, knowing when it is whole, removing it."""

import time

from .kube import Failed, Helm, Kube, eventually, ready
from .load import Endpoints, Load
from .watch import Pod, Watch

# Who a member is: its incarnation, how often it was started, its Raft id.
Identity = tuple[str, int, int]


def voters_of(count: int, most: int = 5) -> int:
    """How many of so many slots vote: the largest odd number, at most `most`."""
    count = min(count, most)
    return count if count % 2 else max(count - 1, 0)


class Fleet:
    """The pods of one release, and the client that watches over what it acknowledged."""

    def __init__(self, kube: Kube, helm: Helm, release: str, values: list[str], reach: str):
        self.kube, self.helm, self.release, self.values = kube, helm, release, values
        self.selector = f"app.kubernetes.io/instance={release},app.kubernetes.io/component=node"
        self.watch = Watch(kube, self.selector)
        self.endpoints = Endpoints(kube, self.watch, reach)
        self.load: Load | None = None
        # When the present fault began, the longest time from a fault to full redundancy, and the commit index of the last poll.
        self.began = time.monotonic()
        self.redundancy: float | None = None
        self.target: dict[str, int] = {}

    # --- installing and removing

    def install(self, more: list[str] | None = None) -> None:
        """Installs the chart; what is missing is waited for by `whole`."""
        self.fault()
        self.helm.install(self.release, self.values + (more or []))

    def start_load(self) -> None:
        """Writers and readers begin."""
        if self.load is None:
            self.load = Load(self.endpoints, self.release)
        self.load.resume()

    def uninstall(self) -> None:
        """Removes the release, and waits until its pods are gone; the volumes stay."""
        self.helm.uninstall(self.release)
        eventually("the pods of the release to go", lambda: not self.kube.items("pods", "--selector", self.selector), 120)

    def end_load(self) -> None:
        """Nobody writes, reads or watches any more."""
        if self.load:
            self.load.stop()
        self.watch.stop()
        self.endpoints.stop()

    def remove(self) -> None:
        """Removes everything, the volumes too, and ends the load."""
        self.end_load()
        self.uninstall()
        self.kube("delete", "persistentvolumeclaims", "--selector", self.selector, "--ignore-not-found")

    # --- what there is

    def pods(self) -> list[Pod]:
        """The pods that run and are not being deleted."""
        return [pod for pod in self.watch.running() if not pod.deleting]

    def pod(self, slot: str) -> Pod:
        """The pod of a slot."""
        for pod in self.pods():
            if pod.slot == slot:
                return pod
        raise Failed(f"there is no running pod of slot {slot}")

    def slots(self) -> list[str]:
        """The slots whose pods run."""
        return [pod.slot for pod in self.pods()]

    def statuses(self) -> dict:
        """What each slot's node says of itself; one that does not answer raises."""
        answers = {}
        for pod, endpoint in self.endpoints.all():
            if not pod.deleting:
                answers[pod.slot] = endpoint.status()
        return answers

    def identities(self) -> dict[str, Identity]:
        """Who runs in which slot."""
        return {slot: (s.incarnation, s.boot_counter, s.header.node.id) for slot, s in self.statuses().items()}

    def leader(self) -> str:
        """The slot that leads."""
        def known():
            return next((slot for slot, status in self.statuses().items() if status.role == 1), None)

        return eventually("a leader", known, 30)

    def cluster_id(self) -> str:
        """The one cluster id of all nodes."""
        found = {status.header.cluster_id for status in self.statuses().values()}
        if len(found) != 1:
            raise Failed(f"the nodes are of {len(found)} clusters: {sorted(found)}")
        return found.pop()

    def claims(self, pod: Pod) -> list[str]:
        """The names of the volume claims that a pod uses."""
        volumes = self.kube.get("pod", pod.name)["spec"]["volumes"]
        return [each["persistentVolumeClaim"]["claimName"] for each in volumes if "persistentVolumeClaim" in each]

    # --- being whole

    def fault(self) -> None:
        """From here the time to full redundancy counts."""
        self.began = time.monotonic()

    def whole(self, count: int, changed: dict[str, Identity] | None = None, seconds: float = 150) -> None:
        """Waits for full redundancy, and then until Kubernetes finds every pod ready.

        `count` slots run and are all members and nobody else is, as many of them vote as should, all are of one cluster, and every
        one has what was committed at the poll before. `changed` are the identities that must have been followed by others:
        without them, what runs before a fault has its effect would do.
        """
        if self.endpoints.way is None:
            self.endpoints.choose()
        self.target = {}
        eventually(f"{count} slots to be whole", lambda: self.is_whole(count, changed or {}), seconds)
        took = time.monotonic() - self.began
        self.redundancy = max(took, self.redundancy or 0.0)
        self.settled(count)

    def settled(self, count: int) -> None:
        """Waits until Kubernetes finds every pod ready."""
        def all_ready():
            pods = self.kube.items("pods", "--selector", self.selector)
            late = [pod["metadata"]["name"] for pod in pods if not ready(pod)]
            if late or len(pods) != count:
                raise Failed(f"{len(pods)} pods, not ready: {', '.join(late) or 'none'}")
            return True

        eventually(f"{count} pods to be ready", all_ready, 120, every=0.5)

    def is_whole(self, count: int, changed: dict[str, Identity]) -> bool:
        """One look; raises what is missing."""
        slots = self.slots()
        if len(slots) != count or len(set(slots)) != count:
            raise Failed(f"{len(slots)} pods run: {slots}")
        statuses = self.statuses()
        if sorted(statuses) != sorted(slots):
            raise Failed(f"only {sorted(statuses)} can be asked")
        self.cluster_id()
        for slot, status in statuses.items():
            if status.header.node.slot != slot:
                raise Failed(f"the pod of slot {slot} says that it is slot {status.header.node.slot}")
            if not status.ready:
                raise Failed(f"slot {slot} is not ready: {'; '.join(status.not_ready_because)}")
            if changed.get(slot) == (status.incarnation, status.boot_counter, status.header.node.id):
                raise Failed(f"slot {slot} is still the process from before")
        leaders = [slot for slot, status in statuses.items() if status.role == 1]
        if len(leaders) != 1:
            raise Failed(f"{len(leaders)} nodes lead: {leaders}")
        self.members_are_whole(leaders[0], statuses)
        return True

    def members_are_whole(self, leader: str, statuses: dict) -> None:
        """As the leader sees it."""
        members = self.endpoints.of(self.pod(leader)).members().members
        known = sorted(member.node.slot for member in members)
        if known != sorted(statuses):
            raise Failed(f"the members are {known}, the pods {sorted(statuses)}")
        voters = sum(member.voter for member in members)
        if voters != voters_of(len(members)):
            raise Failed(f"{voters} of {len(members)} vote")
        for member in members:
            status = statuses[member.node.slot]
            if member.node.id != status.header.node.id:
                raise Failed(f"slot {member.node.slot} is another than the member of that name")
        behind = [member.node.slot for member in members if not member.leader
                  and member.matched_index < self.target.get(leader, 2**63)]
        self.target = {leader: statuses[leader].committed_index}
        if behind:
            raise Failed(f"slots {behind} are behind")
