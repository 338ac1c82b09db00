//! Every command of every runbook, run verbatim against a live control plane.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use observability::{file, files, stem};
use testbed::{ControlPlane, Progress, Replica, fleet, wait_for};

/// Long enough for a busy machine; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(120);
const AT_ONCE: usize = 4;
const DEPLOYMENT: &str = "deployment/databasecluster-operator";
const LEADER: &str = "delete lease databasecluster-leader";

/// Commands that only read.
const LOOKS: [&str; 7] = [
    "get",
    "describe",
    "version",
    "logs",
    "port-forward",
    "top",
    "dbc",
];
/// What changes something: what is added to it, for what has no place here.
const CHANGES: [(&str, &str); 5] = [
    // Pods without a process would appear beside the replicas.
    ("scale", " --dry-run=server"),
    ("rollout undo", ""),
    ("rollout restart", ""),
    ("label namespace", ""),
    (LEADER, ""),
];
/// Commands that cannot succeed here: the words of the command, and the API server's answer. It has found what the
/// command names, but there is no kubelet to ask.
const WITHOUT: [(&str, &str); 4] = [
    // No kubelet: these requests get as far as the node.
    (" logs ", "/containerLogs/"),
    (" port-forward ", "error dialing backend"),
    // No metrics server.
    (" top ", "Metrics API not available"),
    // No Prometheus operator.
    (
        " podmonitors,",
        "the server doesn't have a resource type \"podmonitors\"",
    ),
];

/// The commands of all pages, each once, with the first page that has it: the lines of blocks for the shell, and
/// inline code in sentences.
fn commands() -> Vec<(String, String)> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for path in files("docs/runbooks", "md").unwrap() {
        let page = fs::read_to_string(&path).unwrap();
        for command in of_page(&page) {
            if seen.insert(command.clone()) {
                found.push((stem(&path), command));
            }
        }
    }
    found
}

fn of_page(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (i, part) in page.split("```").enumerate() {
        if let Some(block) = part.strip_prefix("sh\n").filter(|_| i % 2 == 1) {
            found.extend(block.lines().map(str::to_owned));
        } else if i % 2 == 0 {
            let code = part.split('`').skip(1).step_by(2);
            let commands = code.filter(|code| code.starts_with("kubectl "));
            found.extend(commands.map(str::to_owned));
        }
    }
    found
}

struct Shell<'a> {
    control_plane: &'a ControlPlane,
    /// With the programs under the names that the pages use.
    programs: PathBuf,
    replica: &'a Replica,
}

/// What was printed as error, and how each part of a pipe ended.
struct Outcome {
    said: String,
    codes: Vec<i32>,
}

impl<'a> Shell<'a> {
    fn new(control_plane: &'a ControlPlane, replica: &'a Replica) -> Self {
        let programs = control_plane.folder().join("programs");
        fs::create_dir_all(&programs).unwrap();
        let link = |program: &Path, name: &str| {
            std::os::unix::fs::symlink(program, programs.join(name)).unwrap();
        };
        link(&control_plane.kubectl(), "kubectl");
        link(&fleet::plugin_binary().unwrap(), "kubectl-dbc");
        Self {
            control_plane,
            programs,
            replica,
        }
    }

    /// The command with what a reader fills in.
    fn filled(&self, command: &str) -> String {
        let address = self.replica.url().trim_start_matches("http://");
        command
            .trim_end_matches(" &")
            .replace("localhost:8080", address)
            .replace("curl ", "curl --fail ")
            .replace("POD", self.replica.name())
            .replace("namespace NAME", "namespace a")
            .replace("NAMESPACE", "a")
            .replace("NAME", "db-0000")
            .replace("NNN", "000")
    }

    fn bash(&self, text: &str) -> Command {
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new("bash");
        command
            .args(["-c", text])
            .env("PATH", format!("{}:{path}", self.programs.display()))
            .env("KUBECONFIG", self.control_plane.kubeconfig())
            .env(
                "KUBECACHEDIR",
                self.control_plane.folder().join("kubectl-cache"),
            )
            .stdin(Stdio::null());
        command
    }

    fn run(&self, command: &str) -> Outcome {
        // The next command overwrites the codes: they are read first.
        let text = format!("{command}\ncodes=\"${{PIPESTATUS[*]}}\"\necho\necho \"$codes\"");
        let output = self.bash(&text).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let codes = printed.lines().last().unwrap_or_default().split(' ');
        Outcome {
            said: String::from_utf8_lossy(&output.stderr).into_owned(),
            codes: codes.filter_map(|code| code.parse().ok()).collect(),
        }
    }

    /// What is wrong with a command, if something is.
    fn problem(&self, command: &str) -> Option<String> {
        let filled = self.filled(command);
        if filled.ends_with(" -w") {
            return (!self.prints_a_line(&filled)).then(|| format!("{command}: prints nothing"));
        }
        let Outcome { said, codes } = self.run(&filled);
        let wrong = format!("{filled}: {codes:?} {said}");
        let Some((first, others)) = codes.split_first() else {
            return Some(wrong);
        };
        // A search that finds nothing ends with 1, one that is no search with 2.
        if others.iter().any(|code| *code > 1) {
            return Some(wrong);
        }
        let without = WITHOUT.iter().find(|(part, _)| command.contains(part));
        let as_expected = match without {
            Some((_, answer)) => *first != 0 && said.contains(answer),
            None => *first == 0,
        };
        (!as_expected).then_some(wrong)
    }

    /// Whether a command that runs until it is stopped prints a line.
    fn prints_a_line(&self, command: &str) -> bool {
        let mut child = self
            .bash(&format!("exec {command}"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let read = lines.read_line(&mut line);
        child.kill().unwrap();
        child.wait().unwrap();
        read.is_ok_and(|bytes| bytes > 0)
    }
}

fn verb_of(command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().skip(1).collect();
    let words = match words.as_slice() {
        ["-n", _, rest @ ..] => rest,
        all => all,
    };
    words.join(" ")
}

/// A Deployment as it is installed, with two revisions and no Pod.
async fn install_deployment(control_plane: &ControlPlane) {
    let text = fs::read_to_string(file("deploy/base/deployment.yaml")).unwrap();
    let mut deployment: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
    deployment["spec"]["replicas"] = 0.into();
    deployment["metadata"]["namespace"] = fleet::OPERATOR_NAMESPACE.into();
    let path = control_plane.folder().join("deployment.json");
    let path_text = path.display().to_string();
    for revision in ["1", "2"] {
        deployment["spec"]["template"]["metadata"]["annotations"]["revision"] = revision.into();
        fs::write(&path, deployment.to_string()).unwrap();
        let apply = ["apply", "--server-side", "-f", &path_text];
        control_plane.run_kubectl(&apply).await.unwrap();
        wait_for(format!("revision {revision}"), PATIENCE, || async {
            let namespace = fleet::OPERATOR_NAMESPACE;
            let get = ["-n", namespace, "get", DEPLOYMENT, "-o", "json"];
            let found: serde_json::Value =
                serde_json::from_str(&control_plane.run_kubectl(&get).await?).unwrap();
            let known = &found["metadata"]["annotations"]["deployment.kubernetes.io/revision"];
            Ok(Progress::when(known == revision, (), || known.to_string()))
        })
        .await
        .unwrap();
    }
}

/// No command is skipped: one that is neither known to read nor to change fails.
pub(crate) async fn commands_work(control_plane: &ControlPlane, replica: &Replica) {
    install_deployment(control_plane).await;
    let shell = Shell::new(control_plane, replica);
    let (mut looking, mut changing, mut problems) = (Vec::new(), Vec::new(), Vec::new());
    for (page, command) in commands() {
        let verb = verb_of(&command);
        let first = verb.split(' ').next().unwrap_or_default();
        let change = CHANGES.iter().find(|(begin, _)| verb.starts_with(begin));
        if let Some((_, more)) = change {
            changing.push(format!("{command}{more}"));
        } else if command.starts_with("curl ")
            || command.starts_with("kubectl ") && LOOKS.contains(&first)
        {
            looking.push(command);
        } else {
            problems.push(format!("{page}: it is not known how to run {command}"));
        }
    }
    assert!(looking.len() > 30, "{looking:#?}");
    assert!(changing.len() >= CHANGES.len(), "{changing:#?}");
    let tried = || looking.iter().chain(&changing);
    for part in WITHOUT.map(|(part, _)| part).iter() {
        assert!(tried().any(|c| c.contains(part)), "{part} is in no page");
    }
    thread::scope(|scope| {
        let some = looking.chunks(looking.len().div_ceil(AT_ONCE));
        let shell = &shell;
        let parts: Vec<_> = some
            .map(|part| {
                scope.spawn(|| {
                    part.iter()
                        .filter_map(|c| shell.problem(c))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        problems.extend(parts.into_iter().flat_map(|part| part.join().unwrap()));
    });
    // One after the other, and after those that read the same objects.
    problems.extend(changing.iter().filter_map(|c| shell.problem(c)));
    assert!(problems.is_empty(), "{problems:#?}");
    // The Lease is re-created, as the page describes.
    wait_for("the leader's Lease to be there again", PATIENCE, || async {
        let namespace = fleet::OPERATOR_NAMESPACE;
        let get = ["-n", namespace, "get", "lease", "databasecluster-leader"];
        Ok(match control_plane.run_kubectl(&get).await {
            Ok(_) => Progress::Done(()),
            Err(error) => Progress::pending(error),
        })
    })
    .await
    .unwrap();
}

#[test]
fn commands_are_found_in_blocks_and_inline() {
    let page = "Do `kubectl get a`, not `b`.\n```sh\nkubectl get c | wc -l\nmake d\n```\nOr `kubectl get e`:\n```text\nf\n```\n";
    let found = of_page(page);
    let expected = [
        "kubectl get a",
        "kubectl get c | wc -l",
        "make d",
        "kubectl get e",
    ];
    assert_eq!(found, expected);
}
