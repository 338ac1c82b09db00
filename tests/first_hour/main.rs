//! The first hour of a new user, who does what the README says: on a bare machine, with an empty home, `make run`, the
//! page in a browser, the plugin, the loss of a replica and its return, a change of scale, Ctrl-C. Packages and
//! toolchains are substitutes that install nothing, as in `../set_up`; what they would build is there already.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code)]
#[path = "../set_up/machine.rs"]
mod machine;
mod shell;

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use shell::{Shell, Terminal};
use testbed::browser::{Browser, Viewport};
use testbed::guardian::Guardian;
use testbed::process::ProcessId;
use testbed::{Progress, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);
/// On a machine that does other things as well, a control plane needs its time.
const UP: Duration = Duration::from_secs(180);
const COLUMNS: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_hour_goes_as_the_readme_says() {
    // First, so that it ends what the others started however this test ends.
    let guardian = Guardian::start("first-hour").unwrap();
    let shell = Shell::new(&guardian);
    refuses_to_start_replicas_of_no_fleet(&shell);
    let run = Terminal::open(&shell, "make run CLUSTERS=12", &guardian);
    let text = run.until("Ctrl-C takes everything down.", UP).await;
    sets_up_the_bare_machine(&shell, &text);
    let advice = Advice::read(&text);
    let shell = shell.with_exports(advice.commands("export "));
    let fleet = shell.fleet();
    assert_eq!(fleet.replicas.len(), 3);
    assert_eq!(advice.pages, fleet.pages());

    // The page of a replica that stays.
    let browser = Browser::start().await.unwrap();
    browser
        .open(&advice.pages[1], Viewport::desk())
        .await
        .unwrap();
    shows(&browser, "#verdict-text", "All is well").await;
    shows(&browser, "#totals", "12 of 12").await;

    // The commands that are printed, as they stand, and the rest of the plugin.
    for command in advice.commands("kubectl ") {
        match command.contains(" explain ") {
            true => explains_a_change_in_progress(&shell, command),
            false => drop(shell.ok(command)),
        }
    }
    the_plugin_answers(&shell);
    guard_refuses_to_delete_what_holds_the_databases(&shell);

    let kill = advice.commands("kill ");
    shell.ok(kill[0]);
    shows(&browser, "#replica-rows", "dead").await;
    shows(&browser, ".middle", "32 / 32").await;
    run.until("ended", PATIENCE).await;
    let start = shell.ok(advice.commands("make ")[0]);
    let again = shell.fleet();
    let killed = fleet.replicas[0].clone();
    let started = again.replicas[0].clone();
    assert_eq!(started.identity, killed.identity);
    assert_ne!(started.pid, killed.pid);
    assert_eq!(again.replicas[1..], fleet.replicas[1..]);
    assert_eq!(
        start,
        format!(
            "{} runs again: process {}, {}/fleet\n",
            started.identity, started.pid, started.url
        )
    );
    run.until(start.trim(), PATIENCE).await;
    assert_eq!(shell.ok("make start-replicas"), "all 3 replicas run\n");
    browser
        .open(&format!("{}/fleet", started.url), Viewport::desk())
        .await
        .unwrap();
    shows(&browser, "#verdict-text", "All is well").await;
    shows(&browser, ".middle", "32 / 32").await;

    // The scale was changed by one of the printed commands.
    shell.ok(
        "kubectl -n shop wait dbc/db-0000 --timeout=60s --for=jsonpath='{.status.readyReplicas}'=4",
    );
    let explained = shell.ok("kubectl dbc explain -n shop db-0000");
    assert_eq!(explained, "shop/db-0000 is Ready.\n");
    drop(browser);

    let ended = run.interrupt().await;
    assert!(
        ended.contains("Ctrl-C: everything was taken down"),
        "{ended}"
    );
    nothing_is_left(&shell, &again).await;
}

fn refuses_to_start_replicas_of_no_fleet(shell: &Shell) {
    let said = shell.fails("make start-replicas");
    assert!(
        said.contains("make start-replicas: no fleet is up: start one with make run"),
        "{said}"
    );
}

/// Right after a change of scale: the code says that it is not Ready, unless it is already.
fn explains_a_change_in_progress(shell: &Shell, command: &str) {
    let (code, said) = shell.ends(command);
    match code {
        Some(0) => assert_eq!(said, "shop/db-0000 is Ready.\n"),
        _ => assert!(
            code == Some(5) && said.contains("cause: "),
            "{code:?} {said}"
        ),
    }
}

/// One line lists the packages, another the toolchain; that the control plane is there needs no line.
fn sets_up_the_bare_machine(shell: &Shell, text: &str) {
    let said = text.lines().filter(|line| line.starts_with("set-up: "));
    let said: Vec<&str> = said.collect();
    assert_eq!(said.len(), 2, "{text}");
    assert!(
        said[0].starts_with("set-up: installs by apt-get: gcc "),
        "{text}"
    );
    assert_eq!(shell.machine.installations(), 1);
}

fn the_plugin_answers(shell: &Shell) {
    for (command, expected) in [
        ("kubectl dbc status -A", "analytics"),
        ("kubectl dbc status -n shop db-0000", "db-0000-db-0"),
        ("kubectl dbc explain -A", "is Ready"),
        ("kubectl dbc replicas", "databasecluster-operator-2"),
        ("kubectl dbc shards -o json", "\"holder\""),
        ("kubectl dbc top", "MEMORY"),
        ("kubectl dbc fleet", "fleet leader"),
        ("kubectl dbc version", "operator"),
        ("kubectl dbc pause -n billing db-0001 --wait", "db-0001"),
        ("kubectl dbc resume -n billing db-0001 --wait", "db-0001"),
        (
            "kubectl dbc report -n shop db-0000 -f \"$HOME/report.tar.gz\"",
            "report.tar.gz",
        ),
        ("kubectl __complete dbc stat", "status"),
    ] {
        let said = shell.ok(command);
        assert!(said.contains(expected), "{command}: {said}");
    }
}

fn guard_refuses_to_delete_what_holds_the_databases(shell: &Shell) {
    for object in [
        "crd databaseclusters.database.io",
        "-n databasecluster-system shardtable databasecluster-shards",
    ] {
        let said = shell.fails(&format!("kubectl delete --dry-run=server {object}"));
        assert!(said.contains("databasecluster-guard"), "{object}: {said}");
    }
}

/// No process, no file in the temporary folder, no entry of the fleet.
async fn nothing_is_left(shell: &Shell, fleet: &Fleet) {
    for replica in &fleet.replicas {
        let process = ProcessId::of(replica.pid);
        assert!(!process.is_ok_and(|process| process.is_alive()));
    }
    let temporary = shell.machine.path("tmp");
    wait_for("everything to be gone", PATIENCE, || async {
        let mut left: Vec<String> = files(&temporary);
        left.extend(files(&shell.folder()));
        left.extend(files(&shell.folder().join("bin")));
        left.retain(|file| !file.ends_with("/bin"));
        left.extend(processes_of(&temporary));
        Ok(Progress::when(left.is_empty(), (), || left.join(", ")))
    })
    .await
    .unwrap();
}

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries
        .map(|entry| entry.unwrap().path().display().to_string())
        .collect()
}

/// Processes that were started with this folder in their environment.
fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.display().to_string();
    let has_it = |process: &Path| {
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(&folder)
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let paths = processes.map(|entry| entry.path());
    let found = paths.filter(|path| has_it(path));
    found
        .map(|path| {
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            format!("process {} {}", path.display(), name.trim())
        })
        .collect()
}

async fn shows(browser: &Browser, selector: &str, wanted: &str) {
    let what = format!("{selector} of the fleet page to show {wanted:?}");
    let code = format!(
        "const e = document.querySelector({selector:?}); return e ? e.innerText ?? e.textContent : '(absent)'"
    );
    wait_for(what, PATIENCE, || async {
        let shown = browser.script(&code).await?;
        let shown = shown.as_str().unwrap_or_default().to_owned();
        Ok(Progress::when(shown.contains(wanted), (), || shown))
    })
    .await
    .unwrap();
}

/// What `make run` prints once all is up.
struct Advice {
    pages: Vec<String>,
    commands: Vec<String>,
}

impl Advice {
    /// Every line has to fit a usual terminal.
    fn read(text: &str) -> Self {
        let (_, text) = text.split_once("The fleet page of each replica:").unwrap();
        for line in text.lines() {
            assert!(line.chars().count() <= COLUMNS, "too long: {line}");
        }
        let indented = text.lines().filter_map(|line| line.strip_prefix("  "));
        let is_page = |line: &&str| line.starts_with("http://");
        let (pages, commands): (Vec<&str>, Vec<&str>) = indented.partition(is_page);
        let owned = |lines: Vec<&str>| lines.into_iter().map(str::to_owned).collect();
        Self {
            pages: owned(pages),
            commands: owned(commands),
        }
    }

    /// Those that begin like this; there is at least one.
    fn commands(&self, beginning: &str) -> Vec<&str> {
        let commands = self.commands.iter().map(String::as_str);
        let found: Vec<&str> = commands
            .filter(|command| command.starts_with(beginning))
            .collect();
        assert!(!found.is_empty(), "{beginning}: {:?}", self.commands);
        found
    }
}

/// What `fleet.json` names.
struct Fleet {
    replicas: Vec<Replica>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Replica {
    identity: String,
    pid: u32,
    url: String,
}

impl Fleet {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let fleet: Value = serde_json::from_str(&text).unwrap();
        for file in ["kubeconfig", "kubectl"] {
            assert!(
                Path::new(fleet[file].as_str().unwrap()).is_file(),
                "{fleet}"
            );
        }
        let replicas = fleet["replicas"].as_array().unwrap();
        let replica = |replica: &Value| Replica {
            identity: replica["identity"].as_str().unwrap().to_owned(),
            pid: u32::try_from(replica["pid"].as_u64().unwrap()).unwrap(),
            url: replica["url"].as_str().unwrap().to_owned(),
        };
        let replicas: Vec<Replica> = replicas.iter().map(replica).collect();
        for replica in &replicas {
            assert!(
                ProcessId::of(replica.pid).unwrap().is_alive(),
                "{replica:?}"
            );
        }
        Self { replicas }
    }

    fn pages(&self) -> Vec<String> {
        let page = |replica: &Replica| format!("{}/fleet", replica.url);
        self.replicas.iter().map(page).collect()
    }
}
