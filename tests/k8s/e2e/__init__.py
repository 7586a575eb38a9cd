"""The end-to-end run: Larder's chart and image on a real Kubernetes, under load, while things go wrong.

| module | what it is |
|---|---|
| `kube` | kubectl and helm as functions, and waiting on conditions |
| `watch` | the pods of a release as they come and go, and a way to reach each of them |
| `load` | the client: writers, readers, and the ledger of what was acknowledged |
| `fleet` | one installation of the chart with its load: installing, when it is whole, removing it |
| `run` | a step, the run of all of them, the table |
| `planted` | the client against a server that does wrong: its check can fail |
| `steps`, `faults`, `examples` | the steps themselves |

Nothing here knows what kind of cluster it runs on. What pulls the plug of a node is the program of `--node-tool`.
"""
