//! `make start-replicas`: replicas that have ended are started again by the program that shows the fleet.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use testbed::process::ProcessId;
use testbed::{Fleet, Progress, wait_for};

use crate::folder::Folder;
use crate::journal::{Entry, Journal};

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Asks the program that runs the fleet of this folder, and waits until the replicas listen.
pub(crate) async fn request(folder: &Path) -> Result<ExitCode> {
    if !Folder::is_taken(folder)? {
        bail!("no fleet is up: start one with make run");
    }
    let journal = Journal::read(folder).context("the fleet is still starting, try again")?;
    let ended: BTreeMap<&str, u32> = journal
        .replicas
        .iter()
        .filter(|replica| !runs(replica))
        .map(|replica| (replica.identity.as_str(), replica.pid))
        .collect();
    if ended.is_empty() {
        println!("all {} replicas run", journal.replicas.len());
        return Ok(ExitCode::SUCCESS);
    }
    ProcessId::of(journal.runner)?.signal(Signal::USR1)?;
    let what = format!("{} ended replicas to start again", ended.len());
    let started = wait_for(what, START_TIMEOUT, || async {
        let Ok(journal) = Journal::read(folder) else {
            return Ok(Progress::pending(".run/fleet.json cannot be read"));
        };
        let is_new = |entry: &Entry| {
            let before = ended.get(entry.identity.as_str());
            before.is_some_and(|before| *before != entry.pid) && runs(entry)
        };
        let started: Vec<Entry> = journal.replicas.into_iter().filter(is_new).collect();
        let pending = || {
            let count = started.len();
            format!("{count} have; the terminal of make run shows the reason")
        };
        match started.len() == ended.len() {
            true => Ok(Progress::Done(started)),
            false => Ok(Progress::pending(pending())),
        }
    })
    .await?;
    for replica in started {
        println!("{}", line(&replica.identity, replica.pid, &replica.url));
    }
    Ok(ExitCode::SUCCESS)
}

/// Starts every replica that has ended, and reports on each in a line.
pub(crate) async fn start_ended(fleet: &mut Fleet<'_>) -> String {
    let mut lines = Vec::new();
    for index in 0..fleet.replicas().len() {
        let Ok(replica) = fleet.replica(index) else {
            continue;
        };
        if replica.is_alive() {
            continue;
        }
        let name = replica.name().to_owned();
        let result = fleet.restart_replica(index).await;
        lines.push(match (result, fleet.replica(index)) {
            (Ok(()), Ok(replica)) => line(&name, replica.pid(), replica.url()),
            (Err(error), _) | (_, Err(error)) => format!("{name} does not start: {error}"),
        });
    }
    match lines.is_empty() {
        true => "every replica runs".to_owned(),
        false => lines.join("\n"),
    }
}

fn line(name: &str, pid: u32, url: &str) -> String {
    format!("{name} runs again: process {pid}, {url}/fleet")
}

fn runs(entry: &Entry) -> bool {
    // Another process may have this pid by now. Only the program that runs the fleet knows its own children.
    ProcessId::of(entry.pid).is_ok_and(|process| process.is_alive())
}
