//! What only root can do to a node: cut its power, fill its disk, run it as the first process of a machine.
//!
//! Where the means are missing a test is reported as ignored, with a line `SKIPPED: ...` that says what is missing:
//! libtest cannot decide that at run time, hence libtest-mimic.
#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test binary: it exports nothing, and a panic is its verdict"
)]

#[path = "../harness/mod.rs"]
mod harness;

mod disk;
mod full_disk;
mod power_cut;
mod process_one;

use std::{process::ExitCode, time::Duration};

use libtest_mimic::{Arguments, Failed, Trial};

/// The longest a test may take, whatever hangs.
const LIMIT: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each of them works the whole machine.
    arguments.test_threads = Some(1);
    let power = disk::missing();
    let one = process_one::missing();
    let hostname = process_one::hostname_missing();
    let trials = vec![
        trial("power_cut::what_was_synced_stays_and_what_was_not_goes", &power, power_cut::the_cut_cuts),
        trial("power_cut::one_node", &power, || block_on(power_cut::one_node())),
        trial("power_cut::all_nodes_at_once", &power, || block_on(power_cut::all_nodes_at_once())),
        trial("full_disk::writes_are_refused_reads_go_on_and_it_recovers_by_itself", &power, || {
            block_on(full_disk::writes_are_refused_reads_go_on_and_it_recovers_by_itself())
        }),
        trial("full_disk::a_full_follower_holds_nobody_up", &power, || {
            block_on(full_disk::a_full_follower_holds_nobody_up())
        }),
        trial("process_one::sigterm_ends_it_in_order", &one, || {
            block_on(process_one::sigterm_ends_it_in_order())
        }),
        trial("process_one::the_hostname_says_the_slot_or_what_to_do", &hostname, || {
            block_on(process_one::the_hostname_says_the_slot_or_what_to_do())
        }),
    ];
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// A test that is ignored, loudly, if something is missing.
fn trial(name: &str, missing: &Option<String>, test: impl FnOnce() + Send + 'static) -> Trial {
    if let Some(missing) = missing {
        println!("SKIPPED: {name}: {missing}");
    }
    let run = move || {
        test();
        Ok::<(), Failed>(())
    };
    Trial::test(name, run).with_ignored_flag(missing.is_some())
}

fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let done = runtime.block_on(async { tokio::time::timeout(LIMIT, test).await });
    runtime.shutdown_background();
    done.unwrap_or_else(|_| panic!("it took longer than {LIMIT:?}"));
}
