//! First builds: their output, and how they resume after an interruption.

use std::process::Command;

use crate::machine::{Machine, Running, real};

const PROGRAMS: [&str; 7] = [
    "etcd",
    "kwok",
    "kwokctl",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubectl",
];

fn built(machine: &Machine) -> Vec<String> {
    let calls = machine.calls("built ");
    let names = calls.iter().map(|call| call.trim_start_matches("built ."));
    names
        .map(|name| name.trim_end_matches(".part").to_owned())
        .collect()
}

#[test]
fn build_reports_its_step_duration_and_next_step() {
    let machine = Machine::complete();
    machine.hook("build", "[[ $2 != *apiserver* ]] || sleep 3");
    let ended = machine
        .start("control-plane/build.sh", &[("PROGRESS_SECONDS", "1")])
        .end();
    assert_eq!(ended.status, 0, "{}", ended.said);
    assert_eq!(built(&machine), PROGRAMS);
    let mut of_server = ended.lines();
    of_server.retain(|line| line.starts_with("control-plane: [4/7] kube-apiserver: "));
    assert!(of_server.len() >= 2, "{}", ended.said);
    assert!(
        of_server[0].ends_with(" so far; next: kube-controller-manager"),
        "{}",
        of_server[0]
    );
    let done = of_server.last().unwrap();
    assert!(
        done.contains(": done in ") && done.ends_with(" s"),
        "{done}"
    );
}

#[test]
fn cargo_progress_counts_crates() {
    let machine = Machine::complete();
    let cargo = r#"printf '   Compiling a v1\n    Building [==>  ] 12/345: a\r'; sleep 3"#;
    machine.program("cargo", cargo);
    let mut command = machine.command("progress.sh", &[("PROGRESS_SECONDS", "1")]);
    command.args(["build: operator", "the fleet", "cargo", "build"]);
    let ended = Running::start(command).end();
    let expected = "build: operator: 12 of 345, ";
    assert!(ended.lines()[0].starts_with(expected), "{}", ended.said);
    assert!(
        ended.lines()[0].ends_with("; next: the fleet"),
        "{}",
        ended.said
    );
}

#[test]
fn interrupted_build_resumes() {
    let machine = Machine::complete();
    machine.hook(
        "build",
        "[[ $2 != *kwokctl* ]] || { echo waits >> \"$MACHINE/calls\"; exec sleep 50; }",
    );
    let running = machine.start("control-plane/build.sh", &[]);
    machine.wait_for_call("waits");
    running.interrupt();
    let ended = running.end();
    assert_eq!(ended.status, 130, "{}", ended.said);
    let expected = "control-plane: [3/7] kwokctl: interrupted; the next run resumes from here";
    assert_eq!(ended.last(), expected, "{}", ended.said);
    machine.unhook("build");
    let ended = machine.build();
    assert_eq!(ended.status, 0, "{}", ended.said);
    assert_eq!(
        ended.lines()[0],
        "control-plane: [1/7] etcd is built already"
    );
    let expected: Vec<&str> = [&PROGRAMS[..3], &PROGRAMS[2..]].concat();
    assert_eq!(built(&machine), expected);
}

#[test]
fn concurrent_build_waits_and_builds_nothing_twice() {
    let machine = Machine::complete();
    machine.hook("build", "sleep 0.5");
    let first = machine.start("control-plane/build.sh", &[]);
    machine.wait_for_call("built ");
    let second = machine.build();
    let first = first.end();
    assert_eq!(
        (first.status, second.status),
        (0, 0),
        "{}{}",
        first.said,
        second.said
    );
    assert_eq!(
        second.lines(),
        ["control-plane: another build is running, waiting for it"]
    );
    assert_eq!(built(&machine), PROGRAMS);
}

/// A command in namespaces of its own: those mounts and that network end with it.
fn apart(command: &Command, namespaces: &str, first: &str) -> Command {
    let mut unshare = Command::new(real("unshare"));
    if !rustix::process::getuid().is_root() {
        unshare.arg("--map-root-user");
    }
    let script = format!("{first}\nexec \"$@\"");
    unshare
        .args([namespaces, "sh", "-ec", &script, "-"])
        .arg(command.get_program())
        .args(command.get_args())
        .env_clear();
    for (name, value) in command.get_envs() {
        unshare.env(name, value.unwrap());
    }
    unshare
}

#[test]
fn full_disk_during_a_build_is_named_and_the_next_run_resumes() {
    let machine = Machine::complete();
    machine.hook(
        "build",
        "[[ $2 != *kube-scheduler* ]] || { dd if=/dev/zero of=\"$2\" bs=64k count=40 || exit 1; }",
    );
    let cache = machine.path("cache");
    std::fs::create_dir(&cache).unwrap();
    // The same small disk for both runs; between them space is freed.
    let both = format!(
        "'{}' -t tmpfs -o size=1m none '{}'\n\"$@\" || rm \"$MACHINE/build-hook\"",
        real("mount").display(),
        cache.display()
    );
    let plain = machine.command(
        "control-plane/build.sh",
        &[("XDG_CACHE_HOME", cache.to_str().unwrap())],
    );
    let ended = Running::start(apart(&plain, "--mount", &both)).end();
    assert_eq!(ended.status, 0, "{}", ended.said);
    let full = "control-plane: [6/7] kube-scheduler: failed: a disk is full: free some of it, or set XDG_CACHE_HOME";
    assert!(
        ended.lines().iter().any(|line| line.starts_with(full)),
        "{}",
        ended.said
    );
    assert_eq!(
        built(&machine)
            .iter()
            .filter(|name| *name == "etcd")
            .count(),
        1
    );
    assert_eq!(built(&machine).last().map(String::as_str), Some("kubectl"));
}

#[test]
fn build_without_network_reports_it() {
    let machine = Machine::complete();
    machine.remove("go");
    std::os::unix::fs::symlink(real("go"), machine.path("bin/go")).unwrap();
    let ended = Running::start(apart(
        &machine.command("control-plane/build.sh", &[]),
        "--net",
        "",
    ))
    .end();
    assert_ne!(ended.status, 0);
    let expected =
        "control-plane: [1/7] etcd: failed: a server could not be reached: check the network";
    assert!(ended.last().starts_with(expected), "{}", ended.said);
}
