//! `member`: who belongs to the cluster, and who is to.

use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    Failure, Printer,
    output::{table, trimmed},
};
use crate::client::{Client, ClientError, Header};

/// Show and change who belongs to the cluster.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
A member that stops stays one. It is taken out by scaling down, by a new node in its slot, or here.

Examples:
  larder member list
  larder member retire 4          its node is gone for good
  larder member promote 3         let a learner vote for one that is down")]
pub struct MemberArgs {
    /// What to do.
    #[command(subcommand)]
    pub verb: MemberVerb,
}

/// What can be done with members.
#[derive(Debug, Clone, Subcommand)]
pub enum MemberVerb {
    /// Show who belongs to the cluster.
    List,
    /// Take a member out of the cluster whose node is gone for good.
    #[command(after_help = "\
A member that still answers is refused: stop it first, or scale down. So is a change that would leave no majority. The
data of the others stays. A node that comes back over the data directory of a retired member joins as a new one.

Examples:
  larder member retire 4
  larder member retire 4 --timeout 30s      wait longer for it to be committed")]
    Retire {
        /// The slot of the member.
        slot: String,
    },
    /// Let a learner vote in the place of a voter that does not answer.
    #[command(after_help = "\
The leader makes voters by itself, the lowest slots first and as many as --max-voters allows. This is for when one of them
is down and a learner stands by.

Examples:
  larder member promote 3")]
    Promote {
        /// The slot of the member.
        slot: String,
    },
}

/// `member`.
pub(super) async fn run(client: &Client, printer: Printer, args: MemberArgs) -> Result<(), Failure> {
    match args.verb {
        MemberVerb::List => list(client, printer).await,
        MemberVerb::Retire { slot } => {
            changed(client.retire_member(&slot).await)?;
            done(printer, "retired", &slot, "is no member any more")
        }
        MemberVerb::Promote { slot } => {
            changed(client.promote_member(&slot).await)?;
            done(printer, "promoted", &slot, "votes now")
        }
    }
}

/// What came of a change. Of one whose outcome is not known, no key tells more; the members do.
fn changed(result: Result<Header, ClientError>) -> Result<(), Failure> {
    match result {
        Ok(_) => Ok(()),
        Err(ClientError::OutcomeUnknown(why)) => {
            let message = format!("it is not known whether it is done: {why}; look with larder member list");
            Err(Failure::Stopped { cause: ClientError::OutcomeUnknown(why), message })
        }
        Err(error) => Err(error.into()),
    }
}

fn done(printer: Printer, verb: &str, slot: &str, what: &str) -> Result<(), Failure> {
    if printer.is_json() {
        return printer.json(&json!({ verb: slot }));
    }
    printer.note(&format!("slot {slot} {what}"));
    Ok(())
}

async fn list(client: &Client, printer: Printer) -> Result<(), Failure> {
    let answer = client.members().await?;
    if printer.is_json() {
        let members: Vec<_> = answer
            .members
            .iter()
            .map(|member| {
                json!({
                    "slot": member.node.slot,
                    "id": member.node.id,
                    "voter": member.voter,
                    "leader": member.leader,
                    "peer_address": member.peer_address,
                    "client_address": member.client_address,
                    "matched_index": member.matched_index,
                })
            })
            .collect();
        return printer.json(&json!({ "cluster_id": answer.header.cluster_id, "members": members }));
    }
    if answer.members.is_empty() {
        printer.note("the cluster has no members yet: the node waits for the others; see larder status");
    }
    let mut table =
        table(&["SLOT", "ID", "VOTER", "LEADER", "MATCHED", "PEERS AT", "CLIENTS AT"], &["MATCHED"]);
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    for member in &answer.members {
        table.add_row([
            member.node.slot.clone(),
            member.node.id.to_string(),
            yes(member.voter),
            yes(member.leader),
            member.matched_index.map_or_else(|| "-".to_owned(), |index| index.to_string()),
            member.peer_address.clone(),
            if member.client_address.is_empty() {
                "not heard from".into()
            } else {
                member.client_address.clone()
            },
        ]);
    }
    printer.bytes(trimmed(&table).as_bytes())
}
