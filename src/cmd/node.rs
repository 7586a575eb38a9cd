//! Running nodes until a signal: what `serve` and `dev` share.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    config::ServeConfig,
    error::{Error, Result},
    server::{Ended, Listeners, Server, Surroundings},
};

/// SIGTERM, as Kubernetes sends it, and SIGINT, as a terminal does. Also as PID 1, which has no default handlers.
pub(super) struct StopSignal {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignal {
    /// From here on the process does not end by these signals but waits for somebody to act on them.
    pub(super) fn listen() -> Result<Self> {
        let listen =
            |kind| signal(kind).map_err(|e| Error::Unavailable(format!("cannot listen for signals: {e}")));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    pub(super) async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = self.interrupt.recv() => tracing::info!("SIGINT: stopping"),
        }
    }
}

/// Binds the configured addresses and starts a node on this machine.
pub(super) async fn start(config: ServeConfig) -> Result<Server> {
    let listeners = Listeners::bind(&config).await?;
    let surroundings = Surroundings::system(&config);
    Server::start(config, listeners, surroundings).await
}

/// Runs one node until a signal or until it cannot go on.
pub(super) async fn run(mut config: ServeConfig) -> Result<()> {
    let mut stop = StopSignal::listen()?;
    loop {
        let server = start(config.clone()).await?;
        tokio::select! {
            () = stop.received() => return server.shutdown(true).await,
            ended = server.ended() => match ended {
                Ended::Failed(error) => return Err(error),
                Ended::StartOver { why } => tracing::warn!(why, "starting over"),
            },
        }
        server.shutdown(false).await?;
        // Emptied was the directory at the start of the process. What it holds now is what the node starts over with.
        config.ephemeral = false;
    }
}
