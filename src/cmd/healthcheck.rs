//! `healthcheck`: one question to the own node's probes, as an exit code.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{Failure, Printer, own};
use crate::config::RawConfig;

/// More than any probe answers.
const MAX_ANSWER_BYTES: u64 = 64 * 1024;

/// Ask this machine's node whether it is ready, or alive.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
For Docker's HEALTHCHECK and for scripts; in Kubernetes the probes ask the HTTP port themselves. Exit code 0 is yes, 1 is
no, and then standard error says why.

Examples:
  larder healthcheck                                  is it ready, check by check
  larder healthcheck --live                           does it answer at all
  larder healthcheck --http-addr 127.0.0.1:7412")]
pub struct HealthcheckArgs {
    /// Ask whether the node takes clients. What is asked unless --live is given.
    #[arg(long, env = "LARDER_HEALTHCHECK_READY", conflicts_with = "live")]
    pub ready: bool,
    /// Ask only whether the process answers.
    #[arg(long, env = "LARDER_HEALTHCHECK_LIVE")]
    pub live: bool,
    /// Where the node listens for probes [default: 127.0.0.1:7402].
    #[arg(long, env = "LARDER_HTTP_ADDR", value_name = "ADDRESS:PORT")]
    pub http_addr: Option<String>,
    /// The node's configuration file, for what is not said otherwise.
    #[arg(long, env = "LARDER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// `healthcheck`.
///
/// # Errors
/// If the node says no, or nothing.
pub(super) async fn run(printer: Printer, limit: Duration, args: HealthcheckArgs) -> Result<(), Failure> {
    let flags = RawConfig { http_addr: args.http_addr, ..RawConfig::default() };
    let (settings, wrong) = own::settings(args.config.as_deref(), flags);
    if let Some(wrong) = wrong {
        printer.note(&wrong);
    }
    let address = own::address("http-addr", settings.http_addr.as_deref(), 7402)?;
    let path = if args.live { "/livez" } else { "/readyz" };
    let answer = match timeout(limit, get(address, path)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {limit:?}")),
    };
    match answer {
        Ok((200, body)) if printer.is_json() => {
            printer.json(&json!({ "healthy": true, "checks": body.lines().collect::<Vec<_>>() }))
        }
        Ok((200, body)) => printer.bytes(body.trim_end().as_bytes()),
        Ok((status, body)) => {
            let failing: Vec<_> = body.lines().filter_map(|line| line.strip_prefix("[-]")).collect();
            let why = if failing.is_empty() { format!("HTTP status {status}") } else { failing.join("; ") };
            Err(Failure::Unhealthy(format!("the node is not healthy: {why}")))
        }
        Err(why) => Err(Failure::Unhealthy(format!("the node at {address} does not answer {path}: {why}"))),
    }
}

/// The status and the body of a GET.
async fn get(address: SocketAddr, path: &str) -> Result<(u16, String), String> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = exchange.await.map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&answer);
    let status =
        text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok());
    match (status, text.split_once("\r\n\r\n")) {
        (Some(status), Some((_, body))) => Ok((status, body.to_owned())),
        _ => Err("the answer is not HTTP; is this the HTTP port of a Larder node?".into()),
    }
}
