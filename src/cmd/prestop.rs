//! `prestop`: what Kubernetes runs in a pod before it stops it.
//!
//! A pod stops because it comes back (an upgrade, a drain, a deletion) or because there are to be fewer of them. Only then does its member
//! leave the cluster; a member that left at every stop would have the quorum shrink with each restart. So the hook asks how many pods are
//! wanted, and whatever is no clear answer means a restart: a member too many is retired by the leader later, a member too few may be a
//! majority lost.
//!
//! It runs while the node still serves. Leaving: the node is taken out of the cluster and waits until that is committed. Restart: the node
//! hands leadership over, and goes on serving for a moment, until nobody is sent to it any more.
//!
//! Not here: stopping the node, which SIGTERM does afterwards (`server`).

use std::{path::PathBuf, time::Duration};

use clap::Args;
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::{Failure, Printer, duration, own, positive_duration};
use crate::{
    client::{Client, ClientError, Endpoint, Options, Role},
    cluster::{scale_file::ScaleFile, slot::ordinal_of},
    config::{RawConfig, hostname},
    kubernetes::{Api, ApiError, Desired, Kubernetes, StatefulSetName, leaving},
};

/// Before a pod stops: leave the cluster if it is scaled down, else hand leadership over.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
For the preStop hook of a pod, where it reads the same variables as the node. The StatefulSet's replicas decide, by the
Kubernetes API (--statefulset), else those in --scale-file: a pod whose ordinal is at or above them leaves. A StatefulSet
that is deleted or scaled to 0, an API that does not answer, and a node without an ordinal are a restart. Says in one line
what it does and why. Ends with 0 whatever comes of it: a hook that fails keeps nothing from stopping.

Examples:
  larder prestop
  larder prestop --statefulset cache/larder --drain 10s")]
pub struct PrestopArgs {
    /// The StatefulSet that this pod belongs to. Without it the Kubernetes API is not asked.
    #[arg(long, env = "LARDER_STATEFULSET", value_name = "NAMESPACE/NAME")]
    pub statefulset: Option<StatefulSetName>,
    /// The TOML file that says how many nodes are wanted, where the Kubernetes API is not asked.
    #[arg(long, env = "LARDER_SCALE_FILE", value_name = "FILE")]
    pub scale_file: Option<PathBuf>,
    /// This node's slot [default: the ordinal at the end of the hostname].
    #[arg(long, env = "LARDER_SLOT", value_name = "SLOT")]
    pub slot: Option<String>,
    /// Where this node listens for clients [default: 127.0.0.1:7400].
    #[arg(long, env = "LARDER_CLIENT_ADDR", value_name = "ADDRESS:PORT")]
    pub client_addr: Option<String>,
    /// The node's configuration file, for what is not said otherwise.
    #[arg(long, env = "LARDER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How long to go on serving, counted from the start, so that no new client is sent here.
    #[arg(long, env = "LARDER_PRESTOP_DRAIN", value_name = "TIME", default_value = "3s", value_parser = duration)]
    pub drain: Duration,
    /// How long leaving may take, counted from the start; less than the pod's terminationGracePeriodSeconds.
    #[arg(long, env = "LARDER_PRESTOP_LEAVE_TIMEOUT", value_name = "TIME", default_value = "50s",
          value_parser = positive_duration)]
    pub leave_timeout: Duration,
}

/// What is known of how many pods are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Known {
    /// What the Kubernetes API says.
    Api(Result<Desired, ApiError>),
    /// What the scale file says.
    File(Result<u32, String>),
    /// Nobody says anything.
    Nothing,
}

/// What a pod that stops does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Leave,
    Restart,
}

impl Decision {
    fn as_str(self) -> &'static str {
        match self {
            Self::Leave => "leave",
            Self::Restart => "restart",
        }
    }
}

/// Whether the pod of this ordinal leaves, and why.
fn decide(ordinal: Result<u32, String>, known: &Known) -> (Decision, String) {
    let restart = |why: String| (Decision::Restart, why);
    let desired = match known {
        Known::Api(Ok(desired)) => *desired,
        Known::Api(Err(error)) => return restart(format!("how many pods are wanted is not known: {error}")),
        Known::File(Ok(replicas)) => Desired::replicas(*replicas),
        Known::File(Err(why)) => return restart(format!("how many nodes are wanted is not known: {why}")),
        Known::Nothing => return restart("nobody says how many nodes are wanted".into()),
    };
    let ordinal = match ordinal {
        Ok(ordinal) => ordinal,
        Err(why) => return restart(why),
    };
    if leaving(ordinal, &desired) {
        return (Decision::Leave, format!("{} are wanted, and this is ordinal {ordinal}", desired.replicas));
    }
    restart(match desired {
        Desired { exists: false, .. } => "the StatefulSet is deleted".into(),
        Desired { deleting: true, .. } => "the StatefulSet is being deleted".into(),
        Desired { replicas: 0, .. } => "it is scaled to 0, which keeps the members".into(),
        Desired { replicas, .. } => format!("{replicas} are wanted, and this is ordinal {ordinal} of them"),
    })
}

/// The ordinal: the slot, if it is a number; without a slot, the one at the end of the hostname.
fn ordinal(slot: Option<&str>, hostname: &str) -> Result<u32, String> {
    let slot = match slot {
        Some(slot) => slot.to_owned(),
        None => ordinal_of(hostname).map_err(|error| error.to_string())?,
    };
    slot.parse().map_err(|_| format!("the slot {slot:?} is no ordinal, so no scaling concerns it"))
}

async fn known(statefulset: Option<StatefulSetName>, scale_file: Option<&PathBuf>) -> Known {
    if let Some(name) = statefulset {
        return Known::Api(match Api::from_environment(name).await {
            Ok(api) => api.desired().await,
            Err(error) => Err(error),
        });
    }
    match scale_file {
        Some(path) => {
            let replicas = ScaleFile::read(path).and_then(|file| file.replicas());
            Known::File(replicas.map_err(|error| error.to_string()))
        }
        None => Known::Nothing,
    }
}

/// `prestop`.
///
/// # Errors
/// Only if it was called wrongly.
pub(super) async fn run(printer: Printer, timeout: Duration, args: PrestopArgs) -> Result<(), Failure> {
    let begun = Instant::now();
    let flags = RawConfig {
        slot: args.slot,
        statefulset: args.statefulset.as_ref().map(ToString::to_string),
        scale_file: args.scale_file,
        client_addr: args.client_addr,
        ..RawConfig::default()
    };
    let (settings, wrong) = own::settings(args.config.as_deref(), flags);
    if let Some(wrong) = wrong {
        printer.note(&format!("prestop: {wrong}"));
    }
    let address = own::address("client-addr", settings.client_addr.as_deref(), 7400)?;
    let endpoint: Endpoint = address.to_string().parse()?;
    let options = Options { timeout, wait_for_ready: false, discover: false, ..Options::default() };
    let client = Client::new(vec![endpoint.clone()], options)?;
    // The file's value is checked by the node, which would not run otherwise.
    let statefulset = settings.statefulset.and_then(|name| name.parse().ok());
    let known = known(statefulset, settings.scale_file.as_ref()).await;
    let (decision, why) = decide(ordinal(settings.slot.as_deref(), &hostname()), &known);
    printer.note(&format!("prestop: {}: {why}", decision.as_str()));

    let done = match decision {
        Decision::Leave => {
            let left = (begun + args.leave_timeout).saturating_duration_since(Instant::now());
            leave(&client.with_timeout(left.max(MIN_LEAVE))).await
        }
        Decision::Restart => hand_over(&client, &endpoint).await,
    };
    match &done {
        Ok(what) => printer.note(&format!("prestop: {what}")),
        Err(why) => printer.note(&format!("prestop: not done: {why}")),
    }
    sleep_until(begun + args.drain).await;
    if printer.is_json() {
        let (done, what) = match done {
            Ok(what) => (true, what),
            Err(what) => (false, what),
        };
        return printer.json(&json!({
            "decision": decision.as_str(), "because": why, "done": done, "what": what,
        }));
    }
    Ok(())
}

/// What is left for leaving when finding out whether to took all the time.
const MIN_LEAVE: Duration = Duration::from_secs(1);

/// Takes the own node out of the cluster.
async fn leave(client: &Client) -> Result<String, String> {
    match client.leave().await {
        Ok(_) => Ok("it is no member any more".into()),
        Err(ClientError::OutcomeUnknown(why)) => Err(format!("it is not known whether it has left: {why}")),
        Err(error) => Err(format!("{error}; the leader retires it once it is gone for a while")),
    }
}

/// Has another node lead, if the own one does.
async fn hand_over(client: &Client, endpoint: &Endpoint) -> Result<String, String> {
    match client.status(endpoint).await {
        Ok(status) if status.role == Role::Leader => match client.transfer_leader("").await {
            Ok(leader) => Ok(format!("slot {} leads now", leader.slot)),
            Err(error) if error.is_invalid() => Ok("it leads, and there is nobody to hand over to".into()),
            Err(error) => Err(format!("it leads, and did not hand over: {error}")),
        },
        Ok(_) => Ok("it does not lead: nothing to hand over".into()),
        Err(error) => Err(format!("the node does not answer: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_scaling_down_leaves_and_each_case_says_why() {
        let api = |desired| Known::Api(Ok(desired));
        let failing = |error| Known::Api(Err(error));
        let deleting = Desired { deleting: true, ..Desired::replicas(3) };
        let table = [
            // restart
            (2, api(Desired::replicas(3)), "restart", "3 are wanted"),
            (4, api(Desired::replicas(5)), "restart", "ordinal 4"),
            // delete
            (2, api(Desired::ABSENT), "restart", "the StatefulSet is deleted"),
            (4, api(deleting), "restart", "being deleted"),
            // scale to 0
            (0, api(Desired::replicas(0)), "restart", "scaled to 0"),
            (4, api(Desired::replicas(0)), "restart", "scaled to 0"),
            // scale 5 -> 3, 5 -> 1
            (4, api(Desired::replicas(3)), "leave", "3 are wanted, and this is ordinal 4"),
            (3, api(Desired::replicas(3)), "leave", "ordinal 3"),
            (1, api(Desired::replicas(1)), "leave", "1 are wanted"),
            (0, api(Desired::replicas(1)), "restart", "1 are wanted"),
            // no answer
            (4, failing(ApiError::Denied("forbidden".into())), "restart", "forbidden"),
            (4, failing(ApiError::Unreachable("no answer".into())), "restart", "no answer"),
            // without the API
            (4, Known::File(Ok(3)), "leave", "3 are wanted"),
            (2, Known::File(Ok(3)), "restart", "ordinal 2"),
            (4, Known::File(Ok(0)), "restart", "scaled to 0"),
            (4, Known::File(Err("the file is gone".into())), "restart", "the file is gone"),
            (4, Known::Nothing, "restart", "nobody says"),
        ];
        for (ordinal, known, decision, why) in table {
            let (decided, because) = decide(Ok(ordinal), &known);
            assert_eq!(decided.as_str(), decision, "{ordinal}, {known:?}: {because}");
            assert!(because.contains(why), "{ordinal}, {known:?}: {because}");
        }
    }

    #[test]
    fn a_node_without_an_ordinal_never_leaves() {
        let ordinals = [
            (ordinal(Some("4"), "larder-2"), Ok(4)),
            (ordinal(None, "larder-12"), Ok(12)),
            (ordinal(None, "larder-2.larder-headless.cache.svc"), Ok(2)),
        ];
        for (found, expected) in ordinals {
            assert_eq!(found, expected);
        }
        for without in [ordinal(Some("worker-7"), "larder-2"), ordinal(None, "worker"), ordinal(None, "")] {
            let why = without.clone().unwrap_err();
            for known in [Known::Api(Ok(Desired::replicas(1))), Known::File(Ok(1))] {
                assert_eq!(decide(without.clone(), &known), (Decision::Restart, why.clone()));
            }
        }
    }
}
