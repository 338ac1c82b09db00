//! Fault experiments on a fleet of operator processes, and a judge who trusts none of them.
//!
//! | module | does |
//! | --- | --- |
//! | [`scenario`], [`catalogue`] | scenario files: fleet, load, faults with times, expectations |
//! | [`runner`] | runs one: control plane, fleet, users, faults, quiet |
//! | [`faults`], [`proxy`] | what is broken, and the proxy that breaks what signals can not |
//! | [`users`], [`recorder`], [`state`] | what is asked for, what replicas use and say, what is there in the end |
//! | [`evidence`] | what a run leaves |
//! | [`checker`] | decides, from the audit log, the fate of the processes and the final state |
//! | [`report`] | tells people: a page, JSON, one line each |
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

/// Runs the work of a program called `name` and gives its exit status: 0 when all is as it should be, 1 when not
/// or when it could not be found out, which is printed; 130 after Ctrl-C, which ends the work.
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
