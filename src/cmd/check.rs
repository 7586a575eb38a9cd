//! `check`: whether a cluster does what it is for, all of its nodes looked at.

use std::{collections::BTreeSet, time::Duration};

use clap::Args;
use futures::future::join_all;
use serde_json::json;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{Failure, Global, Printer};
use crate::client::{Client, ClientError, Endpoint, EndpointStatus, Member, NodeStatus, Options, Role};

/// How long one look, and one request of it, may take: a node that does not answer must not keep the others from being looked at again.
const LOOK: Duration = Duration::from_secs(2);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(250);

/// Check that the whole cluster works: every node, one leader, a write read everywhere.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Asks every member: all answer and are ready, name one cluster and one leader. Then a random key below larder-check/ is
written, read back from every member, and deleted. It looks again until all of it holds or --timeout is over; what does
not hold then is exit code 1. What `helm test` runs.

Examples:
  larder check
  larder check --expect-voters 3 --timeout 60s
  larder check --endpoints larder.cache.svc:7400 --output json")]
pub struct CheckArgs {
    /// How many members are to vote; any number unless given.
    #[arg(long, env = "LARDER_CHECK_EXPECT_VOTERS", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub expect_voters: Option<u32>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    name: &'static str,
    holds: bool,
    text: String,
}

impl Finding {
    /// From what was found, good or bad.
    fn of(name: &'static str, found: Result<String, String>) -> Self {
        let holds = found.is_ok();
        let text = found.unwrap_or_else(|why| why);
        Self { name, holds, text }
    }
}

/// `check`.
///
/// # Errors
/// If something does not hold until the deadline.
pub(super) async fn run(printer: Printer, global: &Global, args: &CheckArgs) -> Result<(), Failure> {
    let deadline = Instant::now() + global.timeout;
    let options = Options { timeout: LOOK.min(global.timeout), wait_for_ready: false, ..Options::default() };
    let client = Client::new(global.endpoints.0.clone(), options)?;
    let findings = loop {
        let findings = look(&client, args.expect_voters).await;
        if findings.iter().all(|finding| finding.holds) || Instant::now() + PAUSE >= deadline {
            break findings;
        }
        sleep(PAUSE).await;
    };
    report(printer, &findings)?;
    let failing: Vec<_> =
        findings.iter().filter(|finding| !finding.holds).map(|finding| finding.name).collect();
    if failing.is_empty() {
        return Ok(());
    }
    Err(Failure::Unhealthy(format!(
        "the cluster is not as it should be ({}) after {:?}; see the lines above, or give --timeout more",
        failing.join(", "),
        global.timeout
    )))
}

fn report(printer: Printer, findings: &[Finding]) -> Result<(), Failure> {
    if printer.is_json() {
        let all: Vec<_> = findings
            .iter()
            .map(|Finding { name, holds, text }| json!({ "name": name, "holds": holds, "text": text }))
            .collect();
        return printer.json(&json!({ "healthy": findings.iter().all(|f| f.holds), "findings": all }));
    }
    for Finding { name, holds, text } in findings {
        let mark = if *holds { '+' } else { '-' };
        printer.bytes(format!("[{mark}]{name}: {}", text.replace(['\n', '\r'], " ")).as_bytes())?;
    }
    Ok(())
}

/// Looks at everything once.
async fn look(client: &Client, expect_voters: Option<u32>) -> Vec<Finding> {
    let all = client.status_all().await;
    let members = match client.members().await {
        Ok(members) => members.members,
        Err(error) => return vec![Finding::of("members", Err(error.to_string()))],
    };
    let answered: Vec<_> = all.iter().filter_map(|one| one.result.as_ref().ok()).collect();
    let mut findings = vec![
        Finding::of("nodes", nodes(&all)),
        Finding::of("cluster", cluster(&answered)),
        Finding::of("leader", leader(&answered)),
        Finding::of("voters", voters(&members, expect_voters)),
    ];
    let data = if findings.iter().all(|finding| finding.holds) {
        data(client, &members).await
    } else {
        Err("not tried while the rest does not hold".into())
    };
    findings.push(Finding::of("data", data));
    findings
}

/// Every node answers and is ready.
fn nodes(all: &[EndpointStatus]) -> Result<String, String> {
    let wrong: Vec<_> = all
        .iter()
        .filter_map(|one| {
            let name =
                one.node.as_ref().map_or_else(|| one.endpoint.clone(), |node| format!("slot {}", node.slot));
            match &one.result {
                Err(error) => Some(format!("{name} does not answer: {error}")),
                Ok(status) if !status.ready => {
                    Some(format!("{name} is not ready: {}", status.not_ready_because.join("; ")))
                }
                Ok(_) => None,
            }
        })
        .collect();
    if wrong.is_empty() { Ok(format!("{} answer and are ready", all.len())) } else { Err(wrong.join("; ")) }
}

/// All name one cluster.
fn cluster(answered: &[&NodeStatus]) -> Result<String, String> {
    let ids: BTreeSet<_> = answered.iter().map(|status| status.header.cluster_id.as_str()).collect();
    match ids.iter().copied().collect::<Vec<_>>()[..] {
        [id] if !id.is_empty() => Ok(format!("all are in {id}")),
        [] | [""] => Err("none is in a cluster yet".into()),
        ref several => Err(format!("they are in {} clusters: {:?}", several.len(), several)),
    }
}

/// One leads, and all know it.
fn leader(answered: &[&NodeStatus]) -> Result<String, String> {
    let leading: Vec<_> = answered.iter().filter(|status| status.role == Role::Leader).collect();
    let [leader] = leading[..] else { return Err(format!("{} nodes lead; one should", leading.len())) };
    let me = &leader.header.node;
    match answered.iter().find(|status| status.leader.as_ref() != Some(me)) {
        None => Ok(format!("slot {} leads in term {}", me.slot, leader.term)),
        Some(other) => {
            Err(format!("slot {} does not know that slot {} leads", other.header.node.slot, me.slot))
        }
    }
}

/// As many vote as are expected.
fn voters(members: &[Member], expected: Option<u32>) -> Result<String, String> {
    let voting = members.iter().filter(|member| member.voter).count();
    match expected {
        Some(expected) if u32::try_from(voting) != Ok(expected) => {
            Err(format!("{voting} vote, and {expected} should, of {} members", members.len()))
        }
        _ => Ok(format!("{voting} of {} members vote", members.len())),
    }
}

/// A write is read from every member, and deleted.
async fn data(client: &Client, members: &[Member]) -> Result<String, String> {
    let key = format!("larder-check/{}", Uuid::new_v4());
    let value = Uuid::new_v4().to_string();
    let written = client.set(key.clone(), value.clone()).await;
    let read = match &written {
        Ok(_) => {
            let read = join_all(members.iter().map(|member| read(member, &key, &value))).await;
            read.into_iter().collect::<Result<Vec<_>, _>>().map(drop)
        }
        Err(error) => Err(format!("the key {key} was not written: {error}")),
    };
    // Also after a write of unknown outcome: what is there by now must not stay.
    let deleted = match client.delete(key.clone()).await {
        Err(error) if written.as_ref().map_or_else(ClientError::is_outcome_unknown, |_| true) => {
            Err(format!("the key {key} was not deleted: {error}"))
        }
        _ => Ok(()),
    };
    read.and(deleted).map(|()| format!("a key was written, read from {} members, and deleted", members.len()))
}

/// Reads from this member and no other.
async fn read(member: &Member, key: &str, value: &str) -> Result<(), String> {
    let slot = &member.node.slot;
    let ask = async {
        let endpoint: Endpoint = member.client_address.parse()?;
        let options = Options { timeout: LOOK, wait_for_ready: false, discover: false, ..Options::default() };
        Client::new(vec![endpoint], options)?.get(key.to_owned()).await
    };
    match ask.await {
        Ok(got) if got.found.as_ref().is_some_and(|found| found.value == value.as_bytes()) => Ok(()),
        Ok(_) => Err(format!("slot {slot} does not have the key {key} that was written")),
        Err(error) => Err(format!("slot {slot} was not read from: {error}")),
    }
}
