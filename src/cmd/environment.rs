//! `LARDER_*` variables that mean nothing to Larder.
//!
//! At most worth a warning: a misspelt one would otherwise be ignored without a word, but in Kubernetes others make
//! variables that begin like ours.

use std::collections::BTreeSet;

use clap::CommandFactory;

use super::Cli;

/// What the connection ConfigMap of the chart says besides: for clients in other languages, and read by no command here.
const OF_THE_CHART: [&str; 2] = ["LARDER_CLIENT_PORT", "LARDER_PROTOCOL"];

/// Of these names, those that begin with `LARDER_` and that no command reads, in order. Left out are the ones that Kubernetes
/// makes for services whose names begin with "larder": `LARDER_PORT*`, `LARDER_SERVICE_*`, `LARDER_0_PORT_7400_TCP` and
/// their like.
pub fn unknown_variables(names: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut known = BTreeSet::from(OF_THE_CHART.map(str::to_owned));
    collect(&Cli::command(), &mut known);
    let unknown: BTreeSet<String> = names
        .into_iter()
        .filter(|name| name.starts_with("LARDER_") && !known.contains(name) && !is_of_a_service(name))
        .collect();
    unknown.into_iter().collect()
}

/// Whether Kubernetes makes such a name for some service whose name begins with "larder".
fn is_of_a_service(name: &str) -> bool {
    name.ends_with("_PORT")
        || name.contains("_PORT_")
        || name.contains("_SERVICE_")
        || name.starts_with("LARDER_PORT")
}

fn collect(command: &clap::Command, known: &mut BTreeSet<String>) {
    known.extend(
        command.get_arguments().filter_map(|argument| Some(argument.get_env()?.to_str()?.to_owned())),
    );
    command.get_subcommands().for_each(|command| collect(command, known));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_misspelt_is_told_and_what_kubernetes_makes_is_not() {
        let names = [
            "LARDER_SLOT",
            "LARDER_SLOTT",
            "LARDER_ENDPOINTS",
            "LARDER_PORT",
            "LARDER_PORT_7400_TCP_ADDR",
            "LARDER_SERVICE_HOST",
            "LARDER_SERVICE_PORT_CLIENT",
            "LARDER_0_PORT",
            "LARDER_0_SERVICE_HOST",
            "LARDER_PEERS_PORT_7401_TCP",
            "PATH",
            "LARDER_CLIENT_PORT",
            "LARDER_PROTOCOL",
            "LARDER_DATADIR",
        ];
        assert_eq!(unknown_variables(names.map(str::to_owned)), ["LARDER_DATADIR", "LARDER_SLOTT"]);
    }
}
