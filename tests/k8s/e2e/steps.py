"""What happens to a cluster in ordinary life: pods and volumes go, versions and sizes change, nodes are drained."""

import json
import random
import re

from .fleet import Fleet
from .kube import Failed, Skipped, command, eventually, ready
from .run import Run, step


def delete_pods(fleet: Fleet, slots: list[str], volumes: bool = False) -> dict:
    """Deletes the pods of these slots, and with `volumes` their claims; who they were."""
    before = {slot: who for slot, who in fleet.identities().items() if slot in slots}
    pods = [fleet.pod(slot) for slot in slots]
    claims = [claim for pod in pods for claim in fleet.claims(pod)] if volumes else []
    if volumes and len(claims) != len(slots):
        raise Failed(f"{len(slots)} pods have {len(claims)} claims: {claims}")
    fleet.fault()
    if claims:
        # They go once their pods have gone; until then Kubernetes makes no new pod.
        fleet.kube("delete", "persistentvolumeclaim", *claims, "--wait=false")
    fleet.kube("delete", "pod", *[pod.name for pod in pods], "--wait=false")
    return before


def raft_ids(who: dict) -> set[int]:
    return {raft_id for _, _, raft_id in who.values()}


@step("install", "three nodes from nothing, then `helm test`", alone=True, values=lambda run: [run.values()])
def install(run: Run) -> None:
    fleet = run.install()
    said = run.helm.test(run.RELEASE)
    if "Succeeded" not in said:
        raise Failed(f"helm test: {said}")


@step("delete-pods-in-turn", "each pod is deleted, the next one once all is whole again")
def delete_pods_in_turn(run: Run) -> None:
    fleet = run.fleet
    for slot in fleet.slots():
        before = delete_pods(fleet, [slot])
        fleet.whole(3, before)
        if raft_ids(before) - raft_ids(fleet.identities()):
            raise Failed(f"slot {slot} came back over its volume as another member")


@step("delete-all-pods", "all pods are deleted at once")
def delete_all_pods(run: Run) -> None:
    fleet = run.fleet
    cluster, before = fleet.cluster_id(), delete_pods(fleet, fleet.slots())
    fleet.whole(3, before)
    if fleet.cluster_id() != cluster or raft_ids(fleet.identities()) != raft_ids(before):
        raise Failed("another cluster, or other members, over the same volumes")


@step("lose-a-volume", "a pod is deleted with its volume: a new member takes the slot")
def lose_a_volume(run: Run) -> None:
    fleet = run.fleet
    cluster, slot = fleet.cluster_id(), random.choice(fleet.slots())
    before = delete_pods(fleet, [slot], volumes=True)
    fleet.whole(3, before)
    if fleet.cluster_id() != cluster:
        raise Failed("another cluster")
    if raft_ids(fleet.identities()) & raft_ids(before):
        raise Failed(f"slot {slot} came back without its volume as the member that it was")


@step("lose-two-volumes", "two of three pods are deleted with their volumes: nothing is written until `larder recover` on the survivor")
def lose_two_volumes(run: Run) -> None:
    fleet = run.fleet
    cluster, survivor = fleet.cluster_id(), random.choice(fleet.slots())
    lost = [slot for slot in fleet.slots() if slot != survivor]
    # What is acknowledged now is on the survivor too: what only the lost two had would be lost with them.
    fleet.load.pause()
    fleet.whole(3)
    before = delete_pods(fleet, lost, volumes=True)

    def waits():
        statuses = fleet.statuses()
        if len(statuses) != 3 or any(fleet.identities()[slot] == before[slot] for slot in lost):
            raise Failed(f"slots {sorted(statuses)} run")
        silent = [slot for slot, status in statuses.items() if status.ready or not status.not_ready_because]
        if silent:
            raise Failed(f"slots {silent} are ready, or do not say why not")
        return {slot: "; ".join(status.not_ready_because) for slot, status in statuses.items()}

    why = eventually("all three to wait and to say why", waits, 90)
    for slot, reasons in why.items():
        print(f"  slot {slot} waits: {reasons}")
    # Not earlier: the pods that are lost serve until they have ended, and what two of them acknowledge then is lost with them.
    fleet.load.resume()

    entries = fleet.load.ledger.entries.values()
    eventually("a write to be tried", lambda: any(entry.attempted > entry.acknowledged for entry in entries), 30)
    pod = fleet.pod(survivor).name
    page = fleet.kube.run("get", "--raw", f"/api/v1/namespaces/{fleet.kube.namespace}/pods/{pod}:7402/proxy/readyz", check=False)
    # kubectl gives the page of a 503 only as a sentence of its own.
    if page.returncode == 0 or "ServiceUnavailable" not in page.stderr:
        raise Failed(f"/readyz of the survivor: {page.stdout} {page.stderr}")
    if fleet.load.ledger.count:
        raise Failed(f"{fleet.load.ledger.count} writes were acknowledged by one of three")
    fleet.kube.larder(pod, "recover", "--confirm", cluster)
    fleet.whole(3, before)
    if fleet.cluster_id() == cluster:
        raise Failed("the recovered cluster has the id of the lost one: its lost members would be taken for its own")
    if raft_ids(fleet.identities()) & raft_ids(before):
        raise Failed("a lost member is a member of the recovered cluster")


UPGRADED = ["config.log_level=debug", "podAnnotations.upgraded=yes"]


@step("upgrade", "`helm upgrade` with new settings: pods are replaced one by one", values=lambda run: [run.values(*UPGRADED)])
def upgrade(run: Run) -> None:
    fleet = run.fleet
    before = fleet.identities()
    fleet.fault()
    fleet.helm.upgrade(fleet.release, run.values(*UPGRADED))
    fleet.kube("rollout", "status", f"statefulset/{fleet.release}", "--timeout", "180s", timeout=200)
    fleet.whole(3, before)
    pods = fleet.kube.items("pods", "--selector", fleet.selector)
    if any(pod["metadata"]["annotations"].get("upgraded") != "yes" for pod in pods):
        raise Failed("a pod has the former settings")


def scale(run: Run, way, counts: list[int]) -> None:
    """Scales to each count in turn; who stays must not be restarted by it."""
    fleet = run.fleet
    for count in counts:
        before = fleet.identities()
        fleet.fault()
        way(count)
        fleet.whole(count)
        after = fleet.identities()
        restarted = [slot for slot in before.keys() & after.keys() if before[slot] != after[slot]]
        if restarted:
            raise Failed(f"scaling to {count} restarted slots {sorted(restarted)}")


@step("scale-by-helm", "3 to 5 to 3 by `helm upgrade`", values=lambda run: [run.values("replicas=5"), run.values("replicas=3")])
def scale_by_helm(run: Run) -> None:
    # With the values that it has: others would roll the pods.
    run.fleet.helm.upgrade(run.fleet.release, run.values())
    run.fleet.kube("rollout", "status", f"statefulset/{run.fleet.release}", "--timeout", "180s", timeout=200)
    run.fleet.whole(3)
    run.fleet.redundancy = None
    run.fleet.load.ledger.begin()
    scale(run, lambda count: run.fleet.helm.upgrade(run.fleet.release, run.values(f"replicas={count}")), [5, 3])


def kubectl_scale(run: Run):
    return lambda count: run.fleet.kube.replicas(f"statefulset/{run.fleet.release}", count)


@step("scale-by-kubectl", "3 to 5 to 3 by `kubectl scale`, over the volumes that were kept")
def scale_by_kubectl(run: Run) -> None:
    scale(run, kubectl_scale(run), [5, 3])


@step("scale-5-1-3", "5 to 1 at once by `kubectl scale`, then back to 3")
def scale_to_one(run: Run) -> None:
    scale(run, kubectl_scale(run), [5, 1, 3])


@step("drain", "a machine is drained; while its pod is away, evicting another one is refused")
def drain(run: Run) -> None:
    fleet = run.fleet
    on = {}
    for pod in fleet.pods():
        on.setdefault(pod.node, []).append(pod.slot)
    alone = [node for node, slots in on.items() if len(slots) == 1]
    if not alone:
        raise Skipped("needs a node with one pod on it")
    slot = on[alone[0]][0]
    before = {slot: fleet.identities()[slot]}
    # Nowhere to go: so that it stays away until it may come back.
    nodes = [node["metadata"]["name"] for node in fleet.kube.items("nodes") if not node["spec"].get("unschedulable")]
    run.afterwards(command, "kubectl", "uncordon", *nodes)
    fleet.kube("cordon", *nodes)
    fleet.fault()
    fleet.kube("drain", alone[0], "--ignore-daemonsets", "--delete-emptydir-data", "--pod-selector", fleet.selector, "--timeout", "90s")
    # The budget's controller has to see that the pod is away, which it does at once; an eviction before that is refused as well.
    other = next(each for each in fleet.slots() if each != slot)
    refused = fleet.kube.evict(fleet.pod(other).name)
    if refused.returncode == 0 or "disruption budget" not in refused.stderr:
        raise Failed(f"a second eviction was not refused: {refused.stdout} {refused.stderr}")
    if other not in fleet.slots():
        raise Failed(f"slot {other} was evicted")
    fleet.kube("uncordon", *nodes)
    fleet.whole(3, before)
    # Now it is another one's turn.
    before = {other: fleet.identities()[other]}
    fleet.fault()
    eventually("the eviction to be allowed", lambda: fleet.kube.evict(fleet.pod(other).name).returncode == 0, 30)
    fleet.whole(3, before)


@step("reinstall", "`helm uninstall` and `helm install` over the volumes that were kept")
def reinstall(run: Run) -> None:
    fleet = run.fleet
    cluster, before = fleet.cluster_id(), fleet.identities()
    fleet.uninstall()
    fleet.install()
    fleet.whole(3, before)
    if fleet.cluster_id() != cluster or raft_ids(fleet.identities()) != raft_ids(before):
        raise Failed("another cluster, or other members, over the volumes that were kept")


@step("client-pod", "the chart's example of a client's pod: the connection ConfigMap by `envFrom`, and no flags")
def client_pod(run: Run) -> None:
    fleet = run.fleet
    source = (run.chart / "examples" / "client-pod.yaml").read_text()
    pod = json.loads(fleet.kube("create", "--dry-run=client", "--output", "json", "--filename", "-", stdin=source))
    containers = [*pod["spec"]["initContainers"], *pod["spec"]["containers"]]
    for container in containers:
        if container.get("env") or any(word.startswith("-") for word in container["args"]):
            raise Failed(f"the example has flags or variables of its own: {container}")
        # Nothing else is changed: users copy it as it is.
        container["image"] = run.options.image
    name, last = pod["metadata"]["name"], containers[-1]["name"]
    run.afterwards(fleet.kube, "delete", "pod", name, "--ignore-not-found")
    fleet.kube.apply(pod)

    def ended():
        phase = fleet.kube.get("pod", name)["status"].get("phase")
        return phase if phase in ("Succeeded", "Failed") else None

    phase = eventually("the client's pod to end", ended, 60)
    said = "".join(fleet.kube("logs", name, "--container", container["name"], check=False) for container in containers)
    if phase != "Succeeded" or "hello from a pod" not in fleet.kube("logs", name, "--container", last):
        raise Failed(f"the client's pod {phase}: {said}")


BAD_VALUES = {"maxVoters=4": "maxVoters", "replicas=-1": "replicas", "mode=daemonset": "seedNodes"}


@step("bad-values", "helm refuses an even maxVoters, negative replicas, a DaemonSet without seeds, each with a reason", alone=True,
      refused=BAD_VALUES)
def bad_values(run: Run) -> None:
    for bad, name in BAD_VALUES.items():
        done = run.helm.install("refused", run.values(bad), check=False)
        if done.returncode == 0 or name not in done.stderr:
            raise Failed(f"{bad}: helm ended with {done.returncode}: {done.stderr}")
        if run.kube.exists("statefulset,configmap,service", "--selector", "app.kubernetes.io/instance=refused"):
            raise Failed(f"{bad}: something was installed all the same")


@step("role-missing", "without its RoleBinding a node serves, and its log says in one line what is missing", alone=True,
      values=lambda run: [run.values("replicas=0")])
def role_missing(run: Run) -> None:
    fleet = run.prepare(run.values("replicas=0"))
    fleet.install()
    fleet.kube("delete", "rolebinding", fleet.release)
    fleet.fault()
    fleet.kube.replicas(f"statefulset/{fleet.release}", 1)
    fleet.whole(1)
    fleet.start_load()

    def told():
        lines = [line for line in fleet.kube.logs(f"{fleet.release}-0").splitlines() if re.search("denied|forbidden|Role", line)]
        return lines or None

    lines = eventually("the log to say what is missing", told, 60)
    if len(lines) > 1:
        raise Failed(f"the log says it {len(lines)} times: {lines}")
    print(f"  logged: {lines[0]}")
    # A restart, which would ask the API too, is not held up by it.
    before = delete_pods(fleet, ["0"])
    fleet.whole(1, before)
    pod = fleet.kube.get("pod", f"{fleet.release}-0")
    if not ready(pod) or any(each["restartCount"] for each in pod["status"]["containerStatuses"]):
        raise Failed("the pod was restarted")
