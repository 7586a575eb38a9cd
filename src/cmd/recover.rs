//! `recover`: a survivor of a lost majority goes on as a new cluster of one.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::{Failure, Global, Printer};
use crate::client::{Client, Endpoint, NodeStatus, Options};

/// The least time that is given: the node first makes sure that there is nobody else, and then writes all that it holds.
const LEAST_TIMEOUT: Duration = Duration::from_secs(60);

/// Make a survivor of a lost majority a new cluster of one.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
For the day when most voters lost their data for good. While they are only stopped or cut off, bring them back instead: what
they acknowledged and this node does not hold is lost by a recovery.

The node that is asked takes all that it holds into a new cluster, with a new cluster id, whose only member it is. The former
members can never come back on their old data. The node refuses if the cluster has a leader, or if a majority still
answers. Without --confirm nothing is changed: the command shows what the node holds, and the id to confirm.

Examples:
  larder recover --endpoints 10.0.0.2:7400
  larder recover --endpoints 10.0.0.2:7400 --confirm 5f1c0e6d0c0b4f5e8a9b7c6d5e4f3a2b")]
pub struct RecoverArgs {
    /// The id of the node's present cluster: you mean this one, and its majority is lost.
    #[arg(long, env = "LARDER_RECOVER_CONFIRM", value_name = "CLUSTER_ID")]
    pub confirm: Option<String>,
}

/// The one node that is asked.
fn one_endpoint(global: &Global) -> Result<&Endpoint, Failure> {
    match global.endpoints.0.as_slice() {
        [one] => Ok(one),
        _ => Err(Failure::Usage(
            "recover is for one node: name the survivor, and no other, with --endpoints host:port".into(),
        )),
    }
}

/// `recover`.
pub(super) async fn run(global: &Global, printer: Printer, args: RecoverArgs) -> Result<(), Failure> {
    let endpoint = one_endpoint(global)?;
    let options = Options { timeout: global.timeout.max(LEAST_TIMEOUT), ..Options::default() };
    let client = Client::new(vec![endpoint.clone()], options)?;
    let before = client.status(endpoint).await?;
    printer.note(&describe(endpoint, &before));
    let present = &before.header.cluster_id;
    let Some(confirmed) = args.confirm else {
        return Err(not_confirmed(present));
    };
    let recovered = client.recover(endpoint, &confirmed).await?;
    if printer.is_json() {
        return printer.json(&json!({
            "former_cluster_id": present,
            "cluster_id": recovered.cluster_id,
            "revision": recovered.revision,
            "keys": recovered.keys,
            "last_log_index": recovered.last_log_index,
        }));
    }
    printer.bytes(recovered.cluster_id.as_bytes())?;
    printer.note(&format!(
        "slot {} is the only member of the new cluster {}, with {} keys at revision {}; it starts over now, see larder status",
        before.header.node.slot, recovered.cluster_id, recovered.keys, recovered.revision
    ));
    Ok(())
}

fn describe(endpoint: &Endpoint, status: &NodeStatus) -> String {
    let header = &status.header;
    let cluster = if header.cluster_id.is_empty() { "no cluster" } else { &header.cluster_id };
    let mut text = format!(
        "{endpoint} is slot {}, {} of {cluster}: {} keys at revision {}, its log up to entry {}, applied up to {}",
        header.node.slot,
        status.role,
        status.keys,
        header.revision,
        status.last_log_index,
        status.applied_index
    );
    for reason in &status.not_ready_because {
        text.push_str("\nit is not ready: ");
        text.push_str(reason);
    }
    text
}

fn not_confirmed(present: &str) -> Failure {
    if present.is_empty() {
        return Failure::Usage("this node is in no cluster yet: there is nothing to recover".into());
    }
    Failure::Usage(format!(
        "nothing was changed. A recovery makes this node alone a new cluster with what it holds, and shuts all others of the cluster out for \
         ever; if the majority is lost for good, say so: larder recover --confirm {present}"
    ))
}
