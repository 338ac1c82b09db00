//! An owner that is killed leaves nothing behind: no process, no folder.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use testbed::process::ProcessId;
use testbed::{Progress, wait_for};

/// The processes of a control plane, by the pid files in its folder.
fn processes_of(folder: &Path) -> Vec<ProcessId> {
    let pids = fs::read_dir(folder.join("clusters/testbed/pids")).unwrap();
    let pid = |entry: fs::DirEntry| {
        fs::read_to_string(entry.path())
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    };
    pids.map(|entry| ProcessId::of(pid(entry.unwrap())).unwrap())
        .collect()
}

async fn end_owner_with(signal: Signal) {
    let mut owner = Command::new(env!("CARGO_BIN_EXE_control-plane"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let process = ProcessId::of(owner.id()).unwrap();
    let mut first_line = String::new();
    let mut output = BufReader::new(owner.stdout.take().unwrap());
    output.read_line(&mut first_line).unwrap();
    let kubeconfig = PathBuf::from(
        first_line
            .trim()
            .strip_prefix("export KUBECONFIG=")
            .unwrap(),
    );
    let folder = kubeconfig.parent().unwrap().to_owned();
    let parts = processes_of(&folder);
    assert_eq!(
        parts.len(),
        5,
        "etcd, API server, controller manager, scheduler, kwok"
    );
    assert!(parts.iter().all(ProcessId::is_alive));

    process.signal(signal).unwrap();
    let status = owner.wait().unwrap();
    assert_eq!(status.success(), signal != Signal::KILL, "{status}");

    wait_for("everything to end", Duration::from_secs(20), || async {
        let alive = parts.iter().filter(|part| part.is_alive()).count();
        let gone = alive == 0 && !folder.exists();
        Ok(Progress::when(gone, (), || {
            format!("{alive} processes run, folder there: {}", folder.exists())
        }))
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn killed_owner_leaves_no_process_and_no_folder() {
    end_owner_with(Signal::KILL).await;
}

#[tokio::test]
async fn interrupted_owner_leaves_no_process_and_no_folder() {
    end_owner_with(Signal::INT).await;
}
