//! Fault experiments on a fleet of operator processes, and a checker that trusts none of them.
//!
//! | module | does |
//! | --- | --- |
//! | [`scenario`], [`catalogue`] | scenario files: fleet, load, faults with times, expectations |
//! | [`runner`] | runs one: control plane, fleet, users, faults, quiet |
//! | [`faults`], [`proxy`] | fault injection, and the proxy for faults that signals cannot cause |
//! | [`users`], [`recorder`], [`state`] | what users ask for, resource usage and metrics of replicas, the final state |
//! | [`evidence`] | what a run leaves |
//! | [`checker`] | decides, from the audit log, the process lifetimes and the final state |
//! | [`report`] | prints results: a page, JSON, one line each |
//! | [`takeover`] | finds the first write by another replica, for the program `sigkill` |

pub mod catalogue;
pub mod checker;
pub mod environment;
pub mod evidence;
pub mod faults;
pub mod progress;
pub mod proxy;
pub mod recorder;
pub mod report;
pub mod runner;
pub mod scenario;
pub mod state;
pub mod takeover;
pub mod users;

/// Runs the work of a program called `name` and gives its exit status: 0 when all is as expected, 1 when not
/// or when that could not be determined, which is printed; 130 after Ctrl-C, which ends the work.
pub async fn exit_code(
    name: &str,
    work: impl Future<Output = anyhow::Result<bool>>,
) -> std::process::ExitCode {
    let result = tokio::select! {
        result = work => result,
        _ = tokio::signal::ctrl_c() => return std::process::ExitCode::from(130),
    };
    match result {
        Ok(true) => std::process::ExitCode::SUCCESS,
        Ok(false) => std::process::ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
