//! The `larder` binary: parses the command line, runs it, and says by the exit code how it went.
//!
//! 0 done, 1 error, 2 wrong usage, 3 not found or condition not met.

use std::{
    env,
    io::{self, Write},
    process::ExitCode,
};

use anyhow::Context;
use clap::{Parser, error::ErrorKind};
use larder::cmd::{self, Cli, Exit, Failure, Output, Printer};

fn main() -> ExitCode {
    let variables = env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for name in cmd::unknown_variables(variables) {
        // Not `eprintln!`, which panics if nobody reads.
        let _ = writeln!(
            io::stderr(),
            "larder: the variable {name} means nothing here; is it misspelt? It is ignored"
        );
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_parsed(&error),
    };
    let printer = Printer::new(cli.global.output);
    match run(cli) {
        Ok(()) => code(Exit::Done),
        Err(error) => match error.downcast::<Failure>() {
            Ok(Failure::Closed) => code(Exit::Done),
            Ok(failure) => {
                printer.error(&failure);
                code(failure.exit())
            }
            Err(error) => {
                let cause = io::Error::other(error.root_cause().to_string());
                printer.error(&Failure::Io { what: error.to_string(), error: cause });
                code(Exit::Error)
            }
        },
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime cannot start; are there too many threads?")?;
    let result = runtime.block_on(cmd::run(cli));
    // A thread that waits for more of standard input would wait for ever.
    runtime.shutdown_background();
    Ok(result?)
}

/// `--help` and `--version`, or wrong usage.
fn not_parsed(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            code(Exit::Done)
        }
        _ if wants_json() => {
            Printer::new(Output::Json).error(&Failure::Usage(error.to_string().trim_end().to_owned()));
            code(Exit::Usage)
        }
        _ => {
            let _ = error.print();
            code(Exit::Usage)
        }
    }
}

/// Whether JSON was asked for, by a command line that cannot be read as a whole.
fn wants_json() -> bool {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let flag =
        arguments.iter().position(|argument| argument == "--output").and_then(|at| arguments.get(at + 1));
    arguments.iter().any(|argument| argument == "--output=json")
        || match flag {
            Some(value) => value == "json",
            None => env::var_os("LARDER_OUTPUT").is_some_and(|value| value == "json"),
        }
}

fn code(exit: Exit) -> ExitCode {
    ExitCode::from(match exit {
        Exit::Done => 0,
        Exit::Error => 1,
        Exit::Usage => 2,
        Exit::Unmet => 3,
    })
}
