//! `status`, `transfer-leader`: the nodes, and which one leads.

use clap::Args;
use serde_json::{Value, json};

use super::{
    Failure, Printer,
    failure::code_name,
    output::{table, trimmed},
};
use crate::client::{Client, EndpointStatus, NodeStatus};

/// Hand leadership to another node.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  larder transfer-leader          to the most caught-up voter
  larder transfer-leader 2        to the node of slot 2")]
pub struct TransferLeaderArgs {
    /// The slot of the node that is to lead; the most caught-up voter unless given.
    #[arg(default_value = "", hide_default_value = true)]
    pub slot: String,
}

/// `status`.
pub(super) async fn status(client: &Client, printer: Printer) -> Result<(), Failure> {
    let mut all = client.status_all().await;
    if let Some(failed) = all.iter().find(|one| one.result.is_err())
        && all.iter().all(|one| one.result.is_err())
    {
        let reasons: Vec<_> =
            all.iter().filter_map(|one| one.result.as_ref().err()).map(ToString::to_string).collect();
        let cause = failed.result.clone().err();
        let message = format!(
            "no endpoint answers: {}; check the endpoints and that the nodes run",
            reasons.join("; ")
        );
        return Err(
            cause.map_or(Failure::Input(message.clone()), |cause| Failure::Stopped { cause, message })
        );
    }
    all.sort_by_key(|one| {
        let slot = one.node.as_ref().map(|node| node.slot.clone()).unwrap_or_default();
        (slot.is_empty(), slot.parse::<u64>().unwrap_or(u64::MAX), slot)
    });
    let end = end_of_log(&all);
    if printer.is_json() {
        let nodes: Vec<_> = all.iter().map(|one| node_json(one, end)).collect();
        return printer.json(&json!({ "cluster_id": cluster_id(&all), "nodes": nodes }));
    }
    let mut table = table(
        &["SLOT", "ID", "ROLE", "TERM", "APPLIED", "LAG", "KEYS", "BYTES", "READY", "ENDPOINT"],
        &["TERM", "APPLIED", "LAG", "KEYS", "BYTES"],
    );
    for one in &all {
        table.add_row(row(one, end));
    }
    printer.bytes(trimmed(&table).as_bytes())?;
    for one in &all {
        let name = one.node.as_ref().map_or(&one.endpoint, |node| &node.slot);
        match &one.result {
            Ok(status) => {
                for reason in &status.not_ready_because {
                    printer.note(&format!("{name} is not ready: {reason}"));
                }
            }
            Err(error) => printer.note(&format!("{name} does not answer: {error}")),
        }
    }
    Ok(())
}

/// The last log index that anybody knows of: lag is counted from it.
fn end_of_log(all: &[EndpointStatus]) -> u64 {
    let known = all.iter().filter_map(|one| one.result.as_ref().ok());
    known.map(|status| status.committed_index.max(status.applied_index)).max().unwrap_or(0)
}

fn cluster_id(all: &[EndpointStatus]) -> String {
    let known = all.iter().filter_map(|one| one.result.as_ref().ok());
    known.map(|status| status.header.cluster_id.clone()).find(|id| !id.is_empty()).unwrap_or_default()
}

fn row(one: &EndpointStatus, end: u64) -> Vec<String> {
    let (slot, id) =
        one.node.as_ref().map_or(("?".into(), "?".into()), |node| (node.slot.clone(), node.id.to_string()));
    let blank = || "-".to_owned();
    let rest = match &one.result {
        Ok(status) => [
            status.role.to_string(),
            status.term.to_string(),
            status.applied_index.to_string(),
            end.saturating_sub(status.applied_index).to_string(),
            status.keys.to_string(),
            status.bytes.to_string(),
            if status.ready { "yes" } else { "no" }.to_owned(),
        ],
        Err(_) => ["unreachable".to_owned(), blank(), blank(), blank(), blank(), blank(), "no".to_owned()],
    };
    [slot, id].into_iter().chain(rest).chain([one.endpoint.clone()]).collect()
}

fn node_json(one: &EndpointStatus, end: u64) -> Value {
    let mut value = match &one.result {
        Ok(status) => status_json(status, end),
        Err(error) => json!({
            "reachable": false,
            "ready": false,
            "error": { "code": code_name(error.code()), "reason": error.reason(), "message": error.to_string() },
        }),
    };
    value["endpoint"] = one.endpoint.clone().into();
    value["configured"] = one.configured.into();
    value["slot"] = one.node.as_ref().map_or(Value::Null, |node| node.slot.clone().into());
    value["id"] = one.node.as_ref().map_or(Value::Null, |node| node.id.into());
    value
}

fn status_json(status: &NodeStatus, end: u64) -> Value {
    json!({
        "reachable": true,
        "role": status.role.as_str(),
        "term": status.term,
        "leader_id": status.leader.as_ref().map(|leader| leader.id),
        "leader_slot": status.leader.as_ref().map(|leader| leader.slot.clone()),
        "first_log_index": status.first_log_index,
        "last_log_index": status.last_log_index,
        "committed_index": status.committed_index,
        "applied_index": status.applied_index,
        "snapshot_index": status.snapshot_index,
        "lag": end.saturating_sub(status.applied_index),
        "revision": status.header.revision,
        "keys": status.keys,
        "bytes": status.bytes,
        "state_hash": format!("{:016x}", status.state_hash),
        "ready": status.ready,
        "not_ready_because": status.not_ready_because,
        "release": status.release,
        "feature_level": status.feature_level,
        "feature_level_offered": status.feature_level_offered,
        "memory_limit_bytes": status.memory_limit_bytes,
        "incarnation": status.incarnation,
        "boot_counter": status.boot_counter,
        "disk_bytes": status.disk_bytes,
    })
}

/// `transfer-leader`.
pub(super) async fn transfer_leader(
    client: &Client,
    printer: Printer,
    args: TransferLeaderArgs,
) -> Result<(), Failure> {
    let leader = client.transfer_leader(&args.slot).await?;
    if printer.is_json() {
        return printer.json(&json!({ "leader": { "slot": leader.slot, "id": leader.id } }));
    }
    printer.note(&format!("slot {} (id {}) leads now", leader.slot, leader.id));
    Ok(())
}
