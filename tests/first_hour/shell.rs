//! The new user's machine, shells on it, and a terminal in which one command stays in the foreground.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use testbed::fleet::repository;
use testbed::guardian::Guardian;
use testbed::process::ProcessId;
use testbed::{Progress, wait_for};

use crate::Fleet;
use crate::machine::{Machine, real};

const END: Duration = Duration::from_secs(60);

/// A shell in the repository's top folder.
pub(crate) struct Shell {
    pub(crate) machine: Arc<Machine>,
    exports: String,
    mark: (String, PathBuf),
}

impl Shell {
    /// On a bare machine with make, with the control plane's programs of the machine that runs the tests.
    pub(crate) fn new(guardian: &Guardian) -> Self {
        let machine = Machine::bare();
        symlink(real("make"), machine.path("bin").join("make")).unwrap();
        let (name, folder) = guardian.mark();
        Self {
            machine: Arc::new(machine),
            exports: String::new(),
            mark: (name.to_owned(), folder.to_owned()),
        }
    }

    /// One in which these lines were entered.
    pub(crate) fn with_exports(&self, lines: Vec<&str>) -> Self {
        Self {
            machine: Arc::clone(&self.machine),
            exports: lines.join("\n"),
            mark: self.mark.clone(),
        }
    }

    /// The folder that is `.run` for a user: here another one, as a fleet of this working copy may be up.
    pub(crate) fn folder(&self) -> PathBuf {
        self.machine.path("run")
    }

    /// What runs, by the file that scripts read.
    pub(crate) fn fleet(&self) -> Fleet {
        Fleet::read(&self.folder().join("fleet.json"))
    }

    fn command(&self, text: &str) -> Command {
        let machine = &self.machine;
        let built = Path::new(env!("CARGO_BIN_EXE_databasecluster-operator"));
        let target = built.parent().and_then(Path::parent).unwrap();
        // A background job may ignore Ctrl-C, and no shell could undo that.
        let mut command = Command::new(real("env"));
        command
            .args(["--default-signal=INT,TERM"])
            .arg(real("bash"))
            .args(["-euc", &format!("{}\n{text}", self.exports)])
            .current_dir(repository())
            .env_clear()
            .env("PATH", machine.path("bin"))
            .env("HOME", machine.path("home"))
            .env("TMPDIR", machine.path("tmp"))
            .env("MACHINE", machine.path(""))
            .env("SETUP_ROOT", machine.path("system"))
            .env("PROGRESS_SECONDS", "600")
            .env("CARGO_TARGET_DIR", target)
            .env("CONTROL_PLANE_BIN", control_plane())
            .env("RUN_FOLDER", self.folder())
            .env(&self.mark.0, &self.mark.1)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, text: &str) -> Output {
        self.command(text).output().unwrap()
    }

    /// Its code, and what it prints.
    pub(crate) fn ends(&self, text: &str) -> (Option<i32>, String) {
        let output = self.run(text);
        let said = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), said)
    }

    /// What it prints; it has to succeed.
    #[track_caller]
    pub(crate) fn ok(&self, text: &str) -> String {
        let output = self.run(text);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The errors that it prints; it has to fail.
    #[track_caller]
    pub(crate) fn fails(&self, text: &str) -> String {
        let output = self.run(text);
        assert!(!output.status.success(), "{text} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }
}

/// A command in the foreground of a terminal that cannot be redrawn.
pub(crate) struct Terminal {
    child: Child,
    text: Arc<Mutex<String>>,
}

impl Terminal {
    pub(crate) fn open(shell: &Shell, text: &str, guardian: &Guardian) -> Self {
        let mut command = shell.command(&format!("exec {text} 2>&1"));
        command.process_group(0).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        guardian
            .register(ProcessId::of(child.id()).unwrap())
            .unwrap();
        let output = child.stdout.take().unwrap();
        let text = Arc::new(Mutex::new(String::new()));
        let shown = Arc::clone(&text);
        std::thread::spawn(move || read(output, &shown));
        Self { child, text }
    }

    fn text(&self) -> String {
        self.text.lock().unwrap().clone()
    }

    /// All that was printed, once it contains `wanted`.
    pub(crate) async fn until(&self, wanted: &str, patience: Duration) -> String {
        wait_for(
            format!("make run to print {wanted:?}"),
            patience,
            || async {
                let text = self.text();
                Ok(match text.contains(wanted) {
                    true => Progress::Done(text),
                    false => Progress::pending(text),
                })
            },
        )
        .await
        .unwrap()
    }

    /// What a terminal does at Ctrl-C; returns all that was printed once everything has ended.
    pub(crate) async fn interrupt(mut self) -> String {
        kill_process_group(Pid::from_child(&self.child), Signal::INT).unwrap();
        let child = Mutex::new(&mut self.child);
        wait_for("make run to end after Ctrl-C", END, || async {
            let ended = child.lock().unwrap().try_wait().unwrap();
            Ok(Progress::when(ended.is_some(), (), || "it runs".into()))
        })
        .await
        .unwrap();
        self.text()
    }
}

fn read(output: impl Read, shown: &Mutex<String>) {
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        let mut shown = shown.lock().unwrap();
        shown.push_str(&line);
        shown.push('\n');
    }
}

/// Where the programs of the control plane are, as every test asks.
fn control_plane() -> PathBuf {
    static FOLDER: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    let ask = || {
        let script = repository().join("tests/control-plane/build.sh");
        let output = Command::new("bash").arg(script).output().unwrap();
        assert!(output.status.success(), "make control-plane");
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    };
    FOLDER.get_or_init(ask).clone()
}
