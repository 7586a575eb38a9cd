//! The log: lines on standard error, as text for people or as JSON for machines.
//!
//! Standard output stays free for what a command answers.

use std::{fmt, io, io::IsTerminal, str::FromStr};

use tracing_subscriber::{EnvFilter, fmt as subscriber};

use crate::error::{Error, Result};

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One line for people; coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(Error::Invalid(format!("\"{other}\" is no log format; give text or json"))),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Libraries whose own chatter below warnings helps nobody, unless it is asked for by name.
const QUIET: [&str; 6] = ["h2", "hyper", "hyper_util", "tower", "sled", "hickory"];
/// Libraries that warn many times a second of what we report once: openraft of each heartbeat that a peer does not answer.
const REPORTED: [&str; 1] = ["openraft"];
/// Libraries whose errors come back to us, and are told by us in a sentence.
const SILENT: [&str; 1] = ["kube_client"];

/// Reads a level (`off`, `error`, `warn`, `info`, `debug`, `trace`) or a list of `target=level` separated by commas.
///
/// # Errors
/// `Invalid` for anything else.
pub fn parse_level(level: &str) -> Result<EnvFilter> {
    let invalid = |why: String| {
        Error::Invalid(format!(
            "\"{level}\" is no log level ({why}); give off, error, warn, info, debug or trace, or target=level pairs \
             separated by commas"
        ))
    };
    if level.trim().is_empty() {
        return Err(invalid("it is empty".to_owned()));
    }
    let directives: Vec<&str> = level.split(',').map(str::trim).collect();
    for directive in &directives {
        // A bare word that is no level would be taken for a target to be traced in full: surely a typing error.
        if !directive.contains('=') && directive.parse::<::tracing::level_filters::LevelFilter>().is_err() {
            return Err(invalid(format!("\"{directive}\" is unknown")));
        }
    }
    let unnamed = |library: &&&str| !directives.iter().any(|d| d.split(['=', ':']).next() == Some(**library));
    let mut all: Vec<String> = QUIET.iter().filter(unnamed).map(|quiet| format!("{quiet}=warn")).collect();
    all.extend(REPORTED.iter().filter(unnamed).map(|reported| format!("{reported}=error")));
    // Whoever wants less than warnings gets no more of libraries either.
    if directives.iter().any(|d| ["off", "error"].contains(d)) {
        all.clear();
    }
    all.extend(SILENT.iter().filter(unnamed).map(|silent| format!("{silent}=off")));
    all.extend(directives.iter().map(|d| (*d).to_owned()));
    EnvFilter::builder().parse(all.join(",")).map_err(|error| invalid(error.to_string()))
}

/// Starts logging, once a process.
///
/// # Errors
/// `Invalid` if the level is none, or if logging has been started already.
pub fn init(level: &str, format: LogFormat) -> Result<()> {
    let filter = parse_level(level)?;
    let lines = subscriber()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(format == LogFormat::Text && io::stderr().is_terminal());
    let started = match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).try_init(),
    };
    started.map_err(|error| Error::Invalid(format!("logging cannot be started: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_directives_are_read_and_typing_errors_are_not() {
        for good in ["info", "off", "WARN", "info,larder::raft=debug", "warn,openraft=info"] {
            assert!(parse_level(good).is_ok(), "{good}");
        }
        for bad in ["", "inof", "info,debgu", "larder=loud"] {
            let Err(Error::Invalid(sentence)) = parse_level(bad) else { panic!("{bad} was taken") };
            assert!(sentence.contains("give off, error, warn, info, debug or trace"), "{sentence}");
        }
    }

    #[test]
    fn a_library_is_quiet_unless_it_is_named() {
        assert!(parse_level("debug").unwrap().to_string().contains("openraft=error"));
        assert!(!parse_level("error").unwrap().to_string().contains("h2=warn"));
        assert!(!parse_level("debug,openraft=trace").unwrap().to_string().contains("openraft=error"));
    }

    #[test]
    fn formats_are_text_and_json() {
        assert_eq!("json".parse(), Ok(LogFormat::Json));
        assert_eq!("text".parse(), Ok(LogFormat::Text));
        assert!(matches!("xml".parse::<LogFormat>(), Err(Error::Invalid(s)) if s.contains("text or json")));
    }
}
