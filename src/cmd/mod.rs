//! The command line: `larder`, one binary for nodes and for those who use them.
//!
//! A command parses its arguments (clap), does one thing, and ends with `Ok` or a [`Failure`]; what that is as an exit
//! code, `main` alone knows. What was asked for goes to standard output and nothing else does; messages, tables of
//! progress and errors go to standard error. With `--output json` both are JSON.
//!
//! Every flag is also a variable `LARDER_...`; a flag wins. No variable is named like those that Kubernetes makes for a
//! service called larder ([`unknown_variables`]).
//!
//! Not here: what the settings of a node mean (`config`), the client (`client`), exit codes (`main`).

pub mod bench;
mod check;
mod checkpoint;
mod data;
pub mod dev;
mod dump;
mod environment;
mod failure;
mod healthcheck;
mod init_dir;
mod line;
mod load;
mod member;
mod node;
mod output;
mod own;
mod prestop;
mod recover;
pub mod serve;
mod status;

use std::{str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand};

pub use check::CheckArgs;
pub use data::{DelArgs, GetArgs, IncrArgs, SetArgs};
pub use dump::DumpArgs;
pub use environment::unknown_variables;
pub use failure::{Exit, Failure};
pub use healthcheck::HealthcheckArgs;
pub use init_dir::{InitDirArgs, Owner};
pub use load::LoadArgs;
pub use member::{MemberArgs, MemberVerb};
pub use output::{Output, Printer};
pub use prestop::PrestopArgs;
pub use recover::RecoverArgs;
pub use status::TransferLeaderArgs;

use crate::client::{Client, ClientError, Endpoint, Options};

const AFTER_HELP: &str = "\
Examples:
  larder dev                                  a whole cluster on this machine, to try things
  larder set greeting hello                   write a key
  larder get greeting                         read it: the value's bytes and a newline
  larder --endpoints a:7400,b:7400 status     how every node is
  larder dump --prefix user: > users.jsonl    keys and values as JSON lines
  larder load users.jsonl                     and back

Exit codes: 0 done, 1 error, 2 wrong usage, 3 not found or condition not met.
Every flag is also a variable, as shown in brackets; a flag wins over it.
`larder help COMMAND` tells more about a command.";

/// A replicated in-memory cache: an acknowledged write is on disk at a majority, a read is never stale.
#[derive(Debug, Parser)]
#[command(name = "larder", version, after_help = AFTER_HELP, max_term_width = 100, arg_required_else_help = true)]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command takes; those that run a node, or look after the own one, do not need all of them.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// The nodes to ask: host:port or http://host:port, several separated by commas. One that is up is enough.
    #[arg(
        long,
        global = true,
        env = "LARDER_ENDPOINTS",
        default_value = "127.0.0.1:7400",
        value_name = "LIST",
        help_heading = "Connection and output"
    )]
    pub endpoints: Endpoints,
    /// How long a request may take in all, retries included: 500ms, 5s, 1m.
    #[arg(
        long,
        global = true,
        env = "LARDER_TIMEOUT",
        default_value = "5s",
        value_name = "TIME",
        value_parser = positive_duration,
        help_heading = "Connection and output"
    )]
    pub timeout: Duration,
    /// How answers and errors are written.
    #[arg(
        long,
        global = true,
        env = "LARDER_OUTPUT",
        value_enum,
        default_value = "text",
        value_name = "FORMAT",
        help_heading = "Connection and output"
    )]
    pub output: Output,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node.
    Serve(Box<serve::ServeArgs>),
    /// Run a whole cluster in one process on this machine, to try things.
    Dev(dev::DevArgs),
    /// Read a key.
    Get(GetArgs),
    /// Write a key.
    Set(SetArgs),
    /// Remove a key.
    Del(DelArgs),
    /// Add to a number.
    Incr(IncrArgs),
    /// Write many keys, from JSON lines.
    Load(LoadArgs),
    /// Read many keys, as JSON lines.
    Dump(DumpArgs),
    /// Show how every node is.
    Status,
    /// Show and change who belongs to the cluster.
    Member(MemberArgs),
    /// Hand leadership to another node.
    TransferLeader(TransferLeaderArgs),
    /// Check that the whole cluster works: every node, one leader, a write read everywhere.
    Check(CheckArgs),
    /// Ask this machine's node whether it is ready, or alive.
    Healthcheck(HealthcheckArgs),
    /// Before a pod stops: leave the cluster if it is scaled down, else hand leadership over.
    Prestop(Box<PrestopArgs>),
    /// Make a data directory that belongs to the node's user; for an init container.
    InitDir(InitDirArgs),
    /// Make a survivor of a lost majority a new cluster of one.
    Recover(RecoverArgs),
    /// Drive a cluster with a known load and report throughput and latencies.
    Bench(Box<bench::Args>),
}

/// A list of endpoints, as one argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints(pub Vec<Endpoint>);

impl FromStr for Endpoints {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        Endpoint::list(text).map(Self)
    }
}

/// Does what the command line says.
///
/// # Errors
/// Whatever kept it from being done, or said no.
pub async fn run(cli: Cli) -> Result<(), Failure> {
    let Cli { global, command } = cli;
    let printer = Printer::new(global.output);
    match command {
        Command::Serve(args) => serve::run(*args).await,
        Command::Dev(args) => dev::run(args).await,
        Command::Get(args) => data::get(&client(&global, false)?, printer, args).await,
        Command::Set(args) => data::set(&client(&global, false)?, printer, args).await,
        Command::Del(args) => data::del(&client(&global, false)?, printer, args).await,
        Command::Incr(args) => data::incr(&client(&global, false)?, printer, args).await,
        Command::Load(args) => load::run(&client(&global, true)?, printer, args).await,
        Command::Dump(args) => dump::run(&client(&global, true)?, printer, args).await,
        Command::Status => status::status(&client(&global, false)?, printer).await,
        Command::Member(args) => member::run(&client(&global, false)?, printer, args).await,
        Command::TransferLeader(args) => {
            status::transfer_leader(&client(&global, false)?, printer, args).await
        }
        Command::Check(args) => check::run(printer, &global, &args).await,
        Command::Healthcheck(args) => healthcheck::run(printer, global.timeout, args).await,
        Command::Prestop(args) => prestop::run(printer, global.timeout, *args).await,
        Command::InitDir(args) => init_dir::run(printer, &args),
        Command::Recover(args) => recover::run(&global, printer, args).await,
        Command::Bench(args) => {
            let endpoints = global.endpoints.0.iter().map(ToString::to_string).collect();
            Ok(bench::run(&args, endpoints, global.timeout, global.output == Output::Json).await?)
        }
    }
}

/// Somebody who waits at a terminal wants to know at once that nobody is there; a long transfer wants to go on.
fn client(global: &Global, wait_for_ready: bool) -> Result<Client, Failure> {
    let options = Options { timeout: global.timeout, wait_for_ready, ..Options::default() };
    Ok(Client::new(global.endpoints.0.clone(), options)?)
}

/// A duration such as 500ms, 5s, 1m 30s; at most a day.
fn duration(text: &str) -> Result<Duration, String> {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    match humantime::parse_duration(text) {
        Ok(time) if time > DAY => Err("give at most 1day".into()),
        Ok(time) => Ok(time),
        Err(error) => Err(format!("{error}; write it as 500ms, 5s or 1m")),
    }
}

/// The same, but not nothing.
fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text) {
        Ok(time) if time.is_zero() => Err("give more than 0 and at most 1day".into()),
        time => time,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definitions_fit_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_a_variable_and_none_that_kubernetes_makes() {
        fn check(command: &clap::Command) {
            for argument in command.get_arguments() {
                let Some(long) = argument.get_long().filter(|long| !["help", "version"].contains(long))
                else {
                    continue;
                };
                let variable = argument.get_env().map(|name| name.to_string_lossy().into_owned());
                let variable = variable.unwrap_or_else(|| panic!("--{long} has no variable"));
                assert!(variable.starts_with("LARDER_"), "{variable}");
                assert!(!variable.starts_with("LARDER_PORT"), "{variable}");
                assert!(!variable.starts_with("LARDER_SERVICE_"), "{variable}");
                assert!(argument.get_help().is_some(), "--{long} has no help");
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn every_command_explains_itself_by_an_example() {
        fn check(command: &clap::Command, above: &str) {
            for command in command.get_subcommands() {
                let name = format!("{above} {}", command.get_name());
                assert!(command.get_about().is_some(), "{name}");
                if command
                    .get_arguments()
                    .any(|argument| argument.is_positional() || !argument.is_global_set())
                    || command.has_subcommands()
                {
                    let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                    assert!(after.contains(&name), "{name}: {after}");
                }
                check(command, &name);
            }
        }
        check(&Cli::command(), "larder");
    }
}
