//! A machine that exists in a temporary folder: substitutes for apt-get, sudo, Go and others, and a log of their calls.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(60);

/// Programs of every Debian, from the machine that runs the tests.
const BASICS: [&str; 29] = [
    "awk",
    "basename",
    "bash",
    "cat",
    "chmod",
    "cp",
    "cut",
    "date",
    "dd",
    "dirname",
    "env",
    "find",
    "flock",
    "grep",
    "head",
    "ln",
    "ls",
    "mkdir",
    "mktemp",
    "mv",
    "rm",
    "sed",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "tail",
    "tee",
    "touch",
];

/// `$MACHINE` is the machine's folder. Each package installs what the set-up checks for.
const APT_GET: &str = r#"echo "apt-get $*" >> "$MACHINE/calls"
program() { printf '#!/bin/sh\n%s\n' "$2" > "$MACHINE/bin/$1"; chmod +x "$MACHINE/bin/$1"; }
file() { mkdir -p "$MACHINE/system/$(dirname "$1")"; touch "$MACHINE/system/$1"; }
[ ! -e "$MACHINE/$1-hook" ] || . "$MACHINE/$1-hook"
case " $* " in *" install "*) [ ! -e "$MACHINE/install-hook" ] || . "$MACHINE/install-hook" ;; esac
case " $* " in *" update "*) [ ! -e "$MACHINE/update-hook" ] || . "$MACHINE/update-hook"; exit 0 ;; esac
for package; do case $package in
  gcc) program cc '[ -e "$MACHINE/system/usr/include/stdlib.h" ]' ;;
  libc6-dev) file usr/include/stdlib.h ;;
  ca-certificates) file etc/ssl/certs/ca-certificates.crt ;;
  golang-go) cp "$MACHINE/go" "$MACHINE/bin/go" ;;
  util-linux) program setpriv : ;;
  postgresql-15) file usr/lib/postgresql/15/bin/postgres ;;
  chromium-driver) program chromedriver : ;;
  prometheus) program prometheus :; program promtool : ;;
esac; done"#;

/// Debian 12 has no package of rustup.
const APT_CACHE: &str = r#"[ "$2" != rustup ]"#;
const DPKG: &str = r#"echo "dpkg $*" >> "$MACHINE/calls"
case $1 in
  --audit) [ ! -e "$MACHINE/half-installed" ] || cat "$MACHINE/half-installed" ;;
  --configure) rm -f "$MACHINE/half-installed" ;;
esac"#;
const DF: &str = r#"printf 'Filesystem 1M-blocks Used Available Use Mounted\nx 0 0 99999 0%% /\n'"#;
/// Downloads the substitute for rustup's installer, with the toolchain that the repository pins.
const CURL: &str = r#"echo "curl $*" >> "$MACHINE/calls"
[ ! -e "$MACHINE/curl-hook" ] || . "$MACHINE/curl-hook"
while [ "$1" != -o ]; do shift; done
cat > "$2" <<'END'
mkdir -p "$HOME/.cargo/bin"
while [ "$1" != --default-toolchain ]; do shift; done
for name in cargo rustup; do printf '#!/bin/sh\n' > "$HOME/.cargo/bin/$name"; done
printf '#!/bin/sh\necho rustc %s\n' "$2" > "$HOME/.cargo/bin/rustc"
chmod +x "$HOME"/.cargo/bin/*
END"#;
/// Builds a program of a few bytes; the hook may do more, or less.
const GO: &str = r#"case $1 in
  env) echo go1.26.8 ;;
  version) echo go version go1.26.8 linux/amd64 ;;
  build)
    while [ "$1" != -o ]; do shift; done
    echo "built ${2##*/}" >> "$MACHINE/calls"
    [ ! -e "$MACHINE/build-hook" ] || . "$MACHINE/build-hook"
    echo program > "$2"
    chmod +x "$2" ;;
esac"#;

pub(crate) struct Machine {
    folder: TempDir,
}

/// What a command printed, and how it ended.
pub(crate) struct Ended {
    pub(crate) status: i32,
    pub(crate) said: String,
}

impl Ended {
    pub(crate) fn lines(&self) -> Vec<&str> {
        self.said.lines().collect()
    }

    pub(crate) fn last(&self) -> &str {
        self.said.lines().last().unwrap_or_default()
    }
}

pub(crate) struct Running(Child);

impl Machine {
    /// Debian 12 with only its essential packages and curl; the user is root.
    pub(crate) fn bare() -> Self {
        let machine = Self {
            folder: TempDir::new().unwrap(),
        };
        for name in ["bin", "system", "home", "tmp"] {
            fs::create_dir(machine.path(name)).unwrap();
        }
        for name in BASICS {
            symlink(real(name), machine.path("bin").join(name)).unwrap();
        }
        machine.script("go", GO);
        let programs = [
            ("apt-get", APT_GET),
            ("apt-cache", APT_CACHE),
            ("dpkg", DPKG),
            ("df", DF),
            ("curl", CURL),
            ("id", "echo 0"),
        ];
        for (name, body) in programs {
            machine.program(name, body);
        }
        machine
    }

    /// A machine that lacks nothing.
    pub(crate) fn complete() -> Self {
        let machine = Self::bare();
        let ended = machine.set_up(&[]);
        assert_eq!(ended.status, 0, "{}", ended.said);
        fs::remove_file(machine.path("calls")).unwrap();
        machine
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn script(&self, name: &str, body: &str) {
        fs::write(self.path(name), format!("#!/bin/bash\n{body}\n")).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn program(&self, name: &str, body: &str) {
        self.script(&format!("bin/{name}"), body);
    }

    /// What one of the programs does first: install, update, curl or build.
    pub(crate) fn hook(&self, name: &str, body: &str) {
        fs::write(self.path(&format!("{name}-hook")), body).unwrap();
    }

    pub(crate) fn unhook(&self, name: &str) {
        fs::remove_file(self.path(&format!("{name}-hook"))).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.path("bin").join(name)).unwrap();
    }

    /// A user other than root.
    pub(crate) fn as_user(&self) {
        self.program("id", "echo 1000");
    }

    /// Logged lines of the programs that begin with `word`.
    pub(crate) fn calls(&self, word: &str) -> Vec<String> {
        let calls = fs::read_to_string(self.path("calls")).unwrap_or_default();
        let lines = calls.lines().filter(|line| line.starts_with(word));
        lines.map(str::to_owned).collect()
    }

    /// Packages by how often they were installed.
    pub(crate) fn installations(&self) -> usize {
        let calls = self.calls("apt-get");
        calls
            .iter()
            .filter(|call| call.contains(" install "))
            .count()
    }

    pub(crate) fn set_up(&self, env: &[(&str, &str)]) -> Ended {
        self.start("set-up.sh", env).end()
    }

    pub(crate) fn build(&self) -> Ended {
        self.start("control-plane/build.sh", &[]).end()
    }

    /// A script of this repository, on this machine, without a terminal.
    pub(crate) fn command(&self, script: &str, env: &[(&str, &str)]) -> Command {
        let script = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
            .join("tests")
            .join(script);
        // A background job may ignore Ctrl-C, and no shell could undo that.
        let mut command = Command::new(real("env"));
        command
            .args(["--default-signal=INT,TERM"])
            .arg(real("bash"))
            .arg(script)
            .env_clear()
            .env("PATH", self.path("bin"))
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .env("MACHINE", self.folder.path())
            // No lines about a machine that is slow at the moment.
            .env("PROGRESS_SECONDS", "600")
            .env("SETUP_ROOT", self.path("system"))
            .envs(env.iter().copied());
        command
    }

    pub(crate) fn start(&self, script: &str, env: &[(&str, &str)]) -> Running {
        Running::start(self.command(script, env))
    }

    /// Waits until the programs have logged a line with this beginning.
    pub(crate) fn wait_for_call(&self, word: &str) {
        let started = Instant::now();
        while self.calls(word).is_empty() {
            assert!(started.elapsed() < DEADLINE, "no call of {word}");
            sleep(Duration::from_millis(20));
        }
    }
}

impl Running {
    /// In a process group of its own, as a shell starts commands.
    pub(crate) fn start(mut command: Command) -> Self {
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    /// What a terminal does at Ctrl-C.
    pub(crate) fn interrupt(&self) {
        kill_process_group(Pid::from_child(&self.0), Signal::INT).unwrap();
    }

    pub(crate) fn end(self) -> Ended {
        let output = self.0.wait_with_output().unwrap();
        Ended {
            status: output.status.code().unwrap_or(-1),
            said: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Where the machine that runs the tests has a program.
pub(crate) fn real(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let mut folders = std::env::split_paths(&path);
    let found = folders.find_map(|folder| Some(folder.join(name)).filter(|file| file.is_file()));
    found.unwrap_or_else(|| panic!("{name} is not in the PATH"))
}
