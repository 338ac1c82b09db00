//! Set-up and first builds for a new user: on a bare machine, and when something fails.
#![allow(clippy::unwrap_used, clippy::panic)]

mod builds;
mod machine;

use std::fs;

use machine::Machine;

const TESTS_PACKAGES: [&str; 9] = [
    "gcc",
    "libc6-dev",
    "ca-certificates",
    "golang-go",
    "util-linux",
    "postgresql-15",
    "chromium-driver",
    "prometheus",
    "rustup",
];

#[test]
fn bare_machine_is_set_up_after_one_line() {
    let machine = Machine::bare();
    let ended = machine.set_up(&[]);
    assert_eq!(ended.status, 0, "{}", ended.said);
    let lines = ended.lines();
    assert!(lines[0].starts_with("set-up: installs by apt-get: gcc (links Rust programs), "));
    for package in TESTS_PACKAGES {
        assert!(lines[0].contains(&format!("{package} (")), "{}", lines[0]);
    }
    assert_eq!(lines.len(), 2, "{}", ended.said);
    assert!(
        lines[1].contains("by https://rustup.rs into "),
        "{}",
        lines[1]
    );
    assert_eq!(machine.installations(), 1);
    let before = machine.calls("");
    let again = machine.set_up(&[]);
    assert_eq!((again.status, again.said.as_str()), (0, ""));
    assert_eq!(machine.calls(""), before);
}

#[test]
fn packaged_servers_are_not_started() {
    let machine = Machine::bare();
    machine.set_up(&[]);
    let root = machine.path("system/etc");
    let unit = fs::read_link(root.join("systemd/system/prometheus.service")).unwrap();
    assert_eq!(unit.to_str(), Some("/dev/null"));
    let cluster = fs::read_to_string(root.join("postgresql-common/createcluster.conf")).unwrap();
    assert_eq!(cluster, "create_main_cluster = false\n");
}

#[test]
fn check_names_missing_parts_and_installs_nothing() {
    let machine = Machine::bare();
    let ended = machine.set_up(&[("SETUP", "check")]);
    assert_eq!(ended.status, 1);
    assert!(
        ended
            .said
            .contains("run as root: apt-get install --no-install-recommends gcc ")
    );
    assert!(ended.said.contains("Rust 1."), "{}", ended.said);
    assert_eq!(machine.calls("").len(), 0, "{:?}", machine.calls(""));
    let ended = machine.set_up(&[("SETUP", "no")]);
    assert_eq!((ended.status, ended.said.as_str()), (0, ""));
}

#[test]
fn prebuilt_binaries_need_no_go() {
    let machine = Machine::complete();
    machine.remove("go");
    let ended = machine.set_up(&[("CONTROL_PLANE_BIN", "/somewhere")]);
    assert_eq!((ended.status, ended.said.as_str()), (0, ""));
}

#[test]
fn unsupported_system_gets_one_line_per_missing_part() {
    let machine = Machine::complete();
    machine.remove("apt-get");
    for part in ["cc", "chromedriver", "promtool", "go"] {
        machine.remove(part);
    }
    fs::remove_dir_all(machine.path("home/.cargo")).unwrap();
    let ended = machine.set_up(&[]);
    assert_eq!(ended.status, 1);
    let begins = [
        "cc is",
        "<stdlib.h> is",
        "chromedriver is",
        "promtool is",
        "Rust 1.",
        "Go is",
    ];
    let lines = ended.lines();
    assert_eq!(lines.len(), begins.len(), "{}", ended.said);
    for (line, begin) in lines.iter().zip(begins) {
        assert!(line.starts_with(&format!("set-up: {begin}")), "{line}");
    }
}

#[test]
fn sudo_installs_for_a_user() {
    let machine = Machine::bare();
    machine.as_user();
    machine.program("sudo", r#"[ "$1" != -n ] || shift; echo "sudo $*" >> "$MACHINE/calls"; [ "$1" = true ] || exec "$@""#);
    let ended = machine.set_up(&[]);
    assert_eq!(ended.status, 0, "{}", ended.said);
    assert_eq!(
        machine
            .calls("sudo env DEBIAN_FRONTEND=noninteractive apt-get")
            .len(),
        2
    );
    let ended = machine.set_up(&[]);
    assert_eq!((ended.status, ended.said.as_str()), (0, ""));
}

#[test]
fn user_without_root_gets_the_commands_for_root() {
    let machine = Machine::bare();
    machine.as_user();
    for (sudo, reason) in [
        (None, "there is no sudo"),
        (
            Some("exit 1"),
            "sudo asks for a password and there is no terminal",
        ),
    ] {
        if let Some(body) = sudo {
            machine.program("sudo", body);
        }
        let ended = machine.set_up(&[]);
        assert_eq!(ended.status, 1);
        assert_eq!(ended.lines().len(), 2, "{}", ended.said);
        assert!(ended.last().contains(reason), "{}", ended.last());
        assert!(
            ended.last().contains("run as root: apt-get install"),
            "{}",
            ended.last()
        );
        assert_eq!(machine.installations(), 0);
    }
}

#[test]
fn missing_network_is_reported_in_one_line_and_the_next_run_resumes() {
    let machine = Machine::bare();
    machine.hook(
        "update",
        "echo \"Err:1 mirror: Temporary failure resolving 'mirror'\"",
    );
    machine.hook(
        "install",
        "echo 'E: Unable to locate package gcc'; exit 100",
    );
    let ended = machine.set_up(&[]);
    assert_eq!(ended.status, 1);
    assert!(
        ended
            .last()
            .starts_with("set-up: packages: failed: a server could not be reached")
    );
    machine.unhook("update");
    machine.unhook("install");
    machine.hook(
        "curl",
        "echo 'curl: (6) Could not resolve host: sh.rustup.rs'; exit 6",
    );
    let ended = machine.set_up(&[]);
    assert_eq!(ended.status, 1);
    let expected = "https://rustup.rs: failed: a server could not be reached";
    assert!(ended.last().contains(expected), "{}", ended.said);
    machine.unhook("curl");
    assert_eq!(machine.set_up(&[]).status, 0);
    assert_eq!(machine.installations(), 2);
}

#[test]
fn full_disk_is_named_and_the_next_run_resumes() {
    let machine = Machine::bare();
    machine.hook(
        "install",
        "echo 'E: Write error - write (28: No space left on device)'; exit 100",
    );
    let ended = machine.set_up(&[]);
    assert_eq!(ended.status, 1);
    assert!(
        ended
            .last()
            .starts_with("set-up: packages: failed: a disk is full"),
        "{}",
        ended.said
    );
    machine.unhook("install");
    assert_eq!(machine.set_up(&[]).status, 0);
}

#[test]
fn interrupted_installation_resumes() {
    let machine = Machine::bare();
    machine.hook(
        "install",
        "echo gcc > \"$MACHINE/half-installed\"; echo waits >> \"$MACHINE/calls\"; exec sleep 50",
    );
    let running = machine.start("set-up.sh", &[]);
    machine.wait_for_call("waits");
    running.interrupt();
    let ended = running.end();
    assert_eq!(ended.status, 130, "{}", ended.said);
    assert_eq!(
        ended.last(),
        "set-up: packages: interrupted; the next run resumes from here"
    );
    assert_eq!(ended.lines().len(), 2, "{}", ended.said);
    machine.unhook("install");
    assert_eq!(machine.set_up(&[]).status, 0);
    assert_eq!(machine.calls("dpkg --configure -a").len(), 1);
    assert!(!machine.path("half-installed").exists());
}

#[test]
fn concurrent_setup_waits_and_installs_nothing_twice() {
    let machine = Machine::bare();
    machine.hook("install", "echo installs >> \"$MACHINE/calls\"; sleep 4");
    let first = machine.start("set-up.sh", &[]);
    machine.wait_for_call("installs");
    let second = machine.set_up(&[]);
    let first = first.end();
    assert_eq!(
        (first.status, second.status),
        (0, 0),
        "{}{}",
        first.said,
        second.said
    );
    assert!(
        second
            .said
            .contains("set-up: another set-up is running, waiting for it")
    );
    assert_eq!(machine.installations(), 1);
    assert_eq!(machine.calls("curl").len(), 1);
}

#[test]
fn unwritable_folders_are_named_in_one_line() {
    let machine = Machine::complete();
    let ended = machine.set_up(&[("HOME", "/dev/null/home")]);
    assert_eq!(ended.status, 1);
    assert_eq!(ended.lines().len(), 1, "{}", ended.said);
    assert!(
        ended
            .said
            .starts_with("set-up: cannot write to /dev/null/home/.cache/")
    );
}

#[test]
fn outdated_go_fetches_the_required_version() {
    let machine = Machine::complete();
    let module = machine.path("modules");
    let old = r#"case "$1 $2" in
  "env GOVERSION") echo go1.19.8 ;;
  "env GOMODCACHE") echo "$MACHINE/modules" ;;
  "env GOOS") echo linux ;;
  "env GOARCH") echo amd64 ;;
  version*) echo go version go1.19.8 linux/amd64 ;;
  "mod download")
    [ ! -e "$MACHINE/download-hook" ] || . "$MACHINE/download-hook"
    folder=$MACHINE/modules/$3
    mkdir -p "$folder/bin" "$folder/pkg/tool/linux_amd64" "$folder/src"
    touch "$folder/pkg/tool/linux_amd64/link" "$folder/src/_go.mod"
    sed s/1.26.8/1.26.0/ "$MACHINE/go" > "$folder/bin/go"
    chmod 444 "$folder/bin/go" ;;
esac"#;
    machine.program("go", old);
    machine.hook(
        "download",
        "echo 'dial tcp: lookup proxy: no such host'; exit 1",
    );
    let ended = machine.set_up(&[]);
    assert_eq!(ended.status, 1);
    assert!(
        ended
            .last()
            .contains("failed: a server could not be reached"),
        "{}",
        ended.said
    );
    machine.unhook("download");
    let ended = machine.set_up(&[]);
    assert_eq!(ended.status, 0, "{}", ended.said);
    assert_eq!(
        ended.lines(),
        ["set-up: fetches Go 1.26.0, as this is Go 1.19.8"]
    );
    assert!(module.exists());
    let ended = machine.set_up(&[]);
    assert_eq!((ended.status, ended.said.as_str()), (0, ""));
}
