//! A rendered Pod without Kubernetes: its mounts are folders, its environment is mapped to them, its commands are run
//! as they are rendered.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use databasecluster_operator::api::DatabaseCluster;
use databasecluster_operator::core::child::ChildKind;
use databasecluster_operator::core::observed::ClusterRecord;
use databasecluster_operator::postgres::{Password, Source, secret};
use databasecluster_operator::watch::observe;
use rustix::process::{Pid, Signal, getuid, kill_process};
use serde_json::{Value, json};
use shard_ownership::hash::ShardId;
use shard_ownership::token::FencingToken;

const PATIENCE: Duration = Duration::from_secs(60);
/// A former server takes 75 s to end.
const PREPARATION_MAX: Duration = Duration::from_secs(150);
/// Where the volume is mounted.
const VOLUME: &str = "/pgdata";
/// The user of Debian's packages: PostgreSQL refuses to run as root.
const USER: &str = "postgres";
/// A user and group that have no name here, as 999 has none in images of Alpine.
const NAMELESS: u32 = 64_999;
/// The folder of substitute programs.
const STUBS: &str = "stubs";

fn token() -> FencingToken {
    FencingToken {
        table: "t".into(),
        shard: ShardId(0),
        epoch: 1,
        holder: "h".into(),
    }
}

/// What all Pods of a cluster share.
pub(crate) struct World {
    folder: tempfile::TempDir,
    cluster: ClusterRecord,
    secret: BTreeMap<String, String>,
    /// The Secret that `spec.tls` names.
    tls: BTreeMap<String, String>,
    initialized: bool,
    ports: [u16; 3],
    programs: PathBuf,
}

/// One Pod.
pub(crate) struct Pod {
    folder: PathBuf,
    spec: Value,
    name: String,
    /// Where each mount of the Pod is here, the longest first.
    mounts: Vec<(String, PathBuf)>,
    pub(crate) port: u16,
    primary_port: u16,
    /// How the primary is reached when names are not resolved.
    primary_host: &'static str,
    programs: PathBuf,
    server: Option<Child>,
    /// Whether everything runs as a user without a name.
    nameless: bool,
    /// The resolv.conf of the Pod; without it the primary is reached by its address.
    resolver: Option<PathBuf>,
}

/// An init container that runs.
pub(crate) struct Init {
    child: Child,
    said: PathBuf,
}

/// Those of the newest version that is installed, or those in the folder `POSTGRES_PROGRAMS`.
fn programs() -> PathBuf {
    if let Some(folder) = std::env::var_os("POSTGRES_PROGRAMS") {
        return folder.into();
    }
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let mut found: Vec<PathBuf> = versions
        .map(|entry| entry.unwrap().path().join("bin"))
        .filter(|bin| bin.join("postgres").exists())
        .collect();
    found.sort();
    found
        .pop()
        .expect("PostgreSQL is missing: apt-get install postgresql-15")
}

/// Ids of the user that runs PostgreSQL, when we are root.
fn user() -> Option<(u32, u32)> {
    if !getuid().is_root() {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd
        .lines()
        .find(|line| line.starts_with(&format!("{USER}:")))
        .expect("no user postgres: apt-get install postgresql-15");
    let fields: Vec<&str> = line.split(':').collect();
    Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
}

fn give(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    if let Some((uid, gid)) = user() {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    give(path, mode);
}

/// A cluster whose spec has these fields.
fn cluster(fields: &Value) -> ClusterRecord {
    let mut spec = json!({"image": "postgres:15", "replicas": 3});
    let fields = fields.as_object().unwrap().clone();
    spec.as_object_mut().unwrap().extend(fields);
    let object: DatabaseCluster = serde_json::from_value(json!({
        "apiVersion": "database.io/v1", "kind": "DatabaseCluster",
        "metadata": {"name": "orders", "namespace": "shop", "uid": "u", "resourceVersion": "5"},
        "spec": spec,
    }))
    .unwrap();
    observe::cluster(&object).unwrap()
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(&json!({}))
    }

    /// A cluster whose spec has these fields of `spec.postgresql`.
    pub(crate) fn with(postgresql: &Value) -> Self {
        Self::of(&json!({"postgresql": postgresql}))
    }

    /// A cluster whose spec has these fields.
    pub(crate) fn of(fields: &Value) -> Self {
        let cluster = cluster(fields);
        let password = |seed: u8| {
            let bytes = std::array::from_fn(|n| (n as u8).wrapping_mul(53).wrapping_add(seed));
            Password::from_random(&bytes).unwrap()
        };
        let manifest = secret(&cluster, &password(7), &password(11), &token());
        let folder = tempfile::tempdir().unwrap();
        give(folder.path(), 0o755);
        Self {
            folder,
            cluster,
            secret: serde_json::from_value(manifest["stringData"].clone()).unwrap(),
            tls: BTreeMap::new(),
            initialized: false,
            ports: testbed::ports::free_ports().unwrap(),
            programs: programs(),
        }
    }

    /// Moves the Pods away, for Pods of the same names on new volumes.
    pub(crate) fn remove_pods(&self) {
        for entry in fs::read_dir(self.folder.path()).unwrap() {
            fs::remove_dir_all(entry.unwrap().path()).unwrap();
        }
    }

    /// Moves one Pod away, for another one of its name on a new volume.
    pub(crate) fn remove_pod(&self, ordinal: usize) {
        let folder = self.folder.path().join(format!("orders-db-{ordinal}"));
        fs::remove_dir_all(folder).unwrap();
    }

    /// The port of the primary.
    pub(crate) fn primary_port(&self) -> u16 {
        self.ports[0]
    }

    pub(crate) fn secret(&self, key: &str) -> String {
        self.secret[key].clone()
    }

    pub(crate) fn set_secret(&mut self, key: &str, value: &str) {
        self.secret.insert(key.to_owned(), value.to_owned());
    }

    /// Changes `spec.postgresql`. Pods have it once they are mounted or rolled.
    pub(crate) fn set_postgresql(&mut self, postgresql: &Value) {
        self.set_fields(&json!({"postgresql": postgresql}));
    }

    /// Changes the spec. Pods have it once they are mounted or rolled.
    pub(crate) fn set_fields(&mut self, fields: &Value) {
        self.cluster = cluster(fields);
    }

    /// Replaces the Secret that `spec.tls` names. Pods have it once they are mounted.
    pub(crate) fn set_tls(&mut self, keys: &[(&str, &str)]) {
        let keys = keys.iter();
        self.tls = keys
            .map(|(key, text)| ((*key).to_owned(), (*text).to_owned()))
            .collect();
    }

    pub(crate) fn set_initialized(&mut self) {
        self.initialized = true;
    }

    /// What the operator applies for the only child of this kind.
    fn manifest(&self, kind: ChildKind) -> Value {
        let source = Source {
            cluster: &self.cluster,
            claim: None,
            initialized: self.initialized,
        };
        let mut children = source.children().into_iter();
        let child = children.find(|child| child.id.kind == kind).unwrap();
        source.manifest(&child, &token()).unwrap()
    }

    /// The address that applications use, with this Pod instead of the Service.
    pub(crate) fn uri(&self, pod: &Pod) -> String {
        let uri = self.secret("uri");
        let host = format!("{}:5432", self.secret("host"));
        assert!(uri.contains(&host), "{uri}");
        uri.replace(&host, &format!("127.0.0.1:{}", pod.port))
    }
}

impl Pod {
    pub(crate) fn new(world: &World, ordinal: usize) -> Self {
        let name = format!("orders-db-{ordinal}");
        Self::in_folder(world, ordinal, &name)
    }

    /// The next Pod of this name, on the same volume, while this one may still run.
    pub(crate) fn successor(&self, world: &World) -> Self {
        let ordinal = self.name.rsplit('-').next().unwrap().parse().unwrap();
        let mut next = Self::in_folder(world, ordinal, &format!("{}-next", self.name));
        let volume = self.path(VOLUME);
        let mounts = next.mounts.iter_mut();
        mounts
            .filter(|(at, _)| at == VOLUME)
            .for_each(|(_, path)| path.clone_from(&volume));
        next
    }

    fn in_folder(world: &World, ordinal: usize, folder: &str) -> Self {
        let set = world.manifest(ChildKind::StatefulSet);
        let spec = set.pointer("/spec/template/spec").unwrap().clone();
        let name = format!("orders-db-{ordinal}");
        let folder = world.folder.path().join(folder);
        fs::create_dir(&folder).unwrap();
        give(&folder, 0o755);
        let stubs = folder.join(STUBS);
        fs::create_dir(&stubs).unwrap();
        give(&stubs, 0o700);
        let mut pod = Self {
            folder,
            spec,
            name,
            mounts: Vec::new(),
            port: world.ports[ordinal],
            primary_port: world.ports[0],
            primary_host: "127.0.0.1",
            programs: world.programs.clone(),
            server: None,
            nameless: false,
            resolver: None,
        };
        pod.add_mounts();
        pod.mount(world);
        pod
    }

    /// A folder for each mount that has none yet.
    fn add_mounts(&mut self) {
        let containers = [&self.spec["initContainers"][0], &self.spec["containers"][0]];
        let all = containers.map(|container| container["volumeMounts"].as_array().unwrap());
        for mount in all.into_iter().flatten() {
            let at = mount["mountPath"].as_str().unwrap();
            let path = self.folder.join(mount["name"].as_str().unwrap());
            if self.mounts.iter().any(|(known, _)| known == at) {
                continue;
            }
            fs::create_dir(&path).unwrap();
            give(&path, 0o700);
            self.mounts.push((at.to_owned(), path));
        }
        let mounts = &mut self.mounts;
        mounts.sort_by_key(|(at, _)| (std::cmp::Reverse(at.len()), at.clone()));
    }

    /// Reaches the primary under a name that certificates can have.
    pub(crate) fn find_primary_by_name(mut self) -> Self {
        self.primary_host = "localhost";
        self
    }

    /// Writes Secret and ConfigMap into their folders, as the kubelet does for a Pod that starts.
    pub(crate) fn mount(&self, world: &World) {
        let config = world.manifest(ChildKind::ConfigMap);
        let data = config["data"].as_object().unwrap();
        for volume in self.spec["volumes"].as_array().unwrap() {
            let folder = self.folder.join(volume["name"].as_str().unwrap());
            if volume["configMap"].is_object() {
                let items = volume["configMap"]["items"].as_array();
                let is_mounted = |key: &str| {
                    items.is_none_or(|items| items.iter().any(|item| item["key"] == key))
                };
                for (key, text) in data.iter().filter(|(key, _)| is_mounted(key)) {
                    write(&folder.join(key), text.as_str().unwrap(), 0o444);
                }
            }
            for source in volume["projected"]["sources"]
                .as_array()
                .into_iter()
                .flatten()
            {
                let secret = match source["secret"]["name"].as_str().unwrap() {
                    "orders-app" => &world.secret,
                    _ => &world.tls,
                };
                for item in source["secret"]["items"].as_array().unwrap() {
                    let key = item["key"].as_str().unwrap();
                    let path = folder.join(item["path"].as_str().unwrap());
                    match secret.get(key) {
                        Some(text) => write(&path, text, 0o440),
                        None => {
                            assert_eq!(source["secret"]["optional"], true, "{key}");
                            let _absent = fs::remove_file(&path);
                        }
                    }
                }
            }
        }
    }

    /// As a rollout does: the Pod is replaced by one of the newest template.
    pub(crate) fn rolled(mut self, world: &World) -> Self {
        self.stop();
        self.rolled_only(world);
        self.prepared().start()
    }

    /// The newest template, without a start. What was on no volume that stays is gone.
    pub(crate) fn rolled_only(&mut self, world: &World) -> &Self {
        for volume in self.spec["volumes"].as_array().unwrap() {
            if volume["emptyDir"].is_object() {
                let folder = self.folder.join(volume["name"].as_str().unwrap());
                fs::remove_dir_all(&folder).unwrap();
                fs::create_dir(&folder).unwrap();
                give(&folder, 0o700);
            }
        }
        let set = world.manifest(ChildKind::StatefulSet);
        self.spec = set.pointer("/spec/template/spec").unwrap().clone();
        self.add_mounts();
        self.mount(world);
        self
    }

    /// The container of this name.
    pub(crate) fn container(&self, name: &str) -> &Value {
        let mut all = self.spec["containers"].as_array().unwrap().iter();
        all.find(|container| container["name"] == name).unwrap()
    }

    /// A folder that the Pod may write to.
    pub(crate) fn new_folder(&self, path: &Path) {
        fs::create_dir(path).unwrap();
        give(path, 0o700);
    }

    /// Runs a command as a Pod of the same image would.
    pub(crate) fn run(
        &self,
        words: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<String, String> {
        let mut command = self.command(words[0], &Value::Null);
        let variables = environment.iter().copied();
        finish(command.args(&words[1..]).envs(variables))
    }

    /// The metrics of this exporter, started as its container is.
    pub(crate) fn run_exporter(&self, program: &std::ffi::OsStr, port: u16) -> String {
        let container = self.container("exporter");
        let mut command = Command::new(program);
        command.env_clear().current_dir(&self.folder);
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        for variable in container["env"].as_array().unwrap() {
            let value = self.mapped(variable["value"].as_str().unwrap());
            let value = value.replace(":5432/", &format!(":{}/", self.port));
            command.env(variable["name"].as_str().unwrap(), value);
        }
        let log = fs::File::create(self.folder.join("exporter.log")).unwrap();
        let mut exporter = command.stderr(log).spawn().unwrap();
        let url = format!("http://127.0.0.1:{port}/metrics");
        let deadline = Instant::now() + PATIENCE;
        let metrics = loop {
            let answer = Command::new("curl").args(["-fsS", &url]).output().unwrap();
            if answer.status.success() || Instant::now() >= deadline {
                break String::from_utf8(answer.stdout).unwrap();
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        exporter.kill().unwrap();
        exporter.wait().unwrap();
        metrics
    }

    /// Gives this Pod a copy of another one's volume.
    pub(crate) fn take_volume_of(&self, other: &Self) {
        let (from, to) = (other.path(VOLUME), self.path(VOLUME));
        let from = format!("{}/.", from.display());
        finish(Command::new("cp").args(["-a", &from]).arg(to)).unwrap();
    }

    /// Replaces the parameters in the mounted ConfigMap.
    pub(crate) fn edit_parameters(&self, text: &str) {
        write(&self.path("/parameters/parameters.conf"), text, 0o444);
    }

    /// Where this path of the Pod is here.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        let found = self.mounts.iter().find(|(at, _)| path.starts_with(at));
        let (at, here) = found.unwrap_or_else(|| panic!("{path} is on no mount"));
        here.join(path[at.len()..].trim_start_matches('/'))
    }

    fn mapped(&self, text: &str) -> String {
        match text.starts_with('/') {
            true => self.path(text).display().to_string(),
            false => text.to_owned(),
        }
    }

    fn command(&self, program: &str, environment: &Value) -> Command {
        let mut command = match &self.resolver {
            None => Command::new("setpriv"),
            Some(file) => {
                let mut command = Command::new("unshare");
                let bind = "mount --bind \"$0\" /etc/resolv.conf; exec \"$@\"";
                command.args(["--mount", "sh", "-ec", bind]);
                command.arg(file).arg("setpriv");
                command
            }
        };
        command.args(["--pdeathsig", "TERM"]);
        let nameless = NAMELESS.to_string();
        match (user(), self.nameless) {
            (Some(_), false) => {
                command.args(["--reuid", USER, "--regid", USER, "--clear-groups", "--"]);
            }
            (Some(_), true) => {
                command.args(["--reuid", &nameless, "--regid", &nameless]);
                command.args(["--clear-groups", "--"]);
            }
            (None, false) => {
                command.arg("--");
            }
            (None, true) => {
                let (user, group) = (
                    format!("--map-user={nameless}"),
                    format!("--map-group={nameless}"),
                );
                command.args(["--", "unshare", "--user", &user, &group, "--"]);
            }
        }
        command.arg(program).current_dir(&self.folder);
        let stubs = self.folder.join(STUBS);
        let path = format!(
            "{}:{}:/usr/bin:/bin",
            stubs.display(),
            self.programs.display()
        );
        command.env_clear().env("PATH", path);
        for variable in environment.as_array().into_iter().flatten() {
            let name = variable["name"].as_str().unwrap();
            let value = match name {
                "POD_NAME" => self.name.clone(),
                _ => self.mapped(variable["value"].as_str().unwrap()),
            };
            command.env(name, value);
        }
        // In Pods every server has an address, a socket folder and a /tmp of its own.
        command
            .env("PGPORT", self.port.to_string())
            .env("PRIMARY_PORT", self.primary_port.to_string())
            .env("PGHOST", self.path("/var/run/postgresql"))
            .env("TMPDIR", self.path("/tmp"))
            .env("INITDB_FOLDER", self.path("/docker-entrypoint-initdb.d"))
            .env("HOLD", self.path("/tmp/hold"));
        if self.resolver.is_none() {
            command.env("PRIMARY_HOST", self.primary_host);
        }
        command
    }

    /// A rendered command.
    fn rendered(&self, command: &Value, environment: &Value) -> Command {
        let words: Vec<&str> = command
            .as_array()
            .unwrap()
            .iter()
            .map(|word| word.as_str().unwrap())
            .collect();
        let mut built = self.command(words[0], environment);
        built.args(words[1..].iter().map(|word| self.mapped(word)));
        built
    }

    fn init(&self) -> Command {
        let prepare = &self.spec["initContainers"][0];
        self.rendered(&prepare["command"], &prepare["env"])
    }

    /// The init container: its output, as an error if it failed.
    pub(crate) fn prepare(&self) -> Result<String, String> {
        self.begin().end()
    }

    /// Starts the init container.
    pub(crate) fn begin(&self) -> Init {
        let said = self.folder.join("said");
        let mut command = self.init();
        let output = fs::File::create(&said).unwrap();
        let (input, more) = (Stdio::null(), output.try_clone().unwrap());
        let command = command.stdin(input).stdout(more).stderr(output);
        let child = command.spawn().unwrap();
        Init { child, said }
    }

    /// Starts the init container, and sends SIGTERM once it prints this: its exit code, none when it did not end by
    /// itself.
    pub(crate) fn interrupt_once_it_says(&self, words: &str) -> Option<i32> {
        let mut init = self.begin();
        self.until(&format!("it prints {words:?}"), |_| {
            init.output().contains(words)
        });
        let pid = Pid::from_raw(i32::try_from(init.child.id()).unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let asked = Instant::now();
        let status = init.child.wait().unwrap();
        assert!(asked.elapsed() < Duration::from_secs(20), "it went on");
        status.code()
    }

    pub(crate) fn prepared(self) -> Self {
        self.prepare().unwrap();
        self
    }

    pub(crate) fn probe(&self, probe: &str) -> Result<String, String> {
        let main = &self.spec["containers"][0];
        finish(&mut self.rendered(&main[probe]["exec"]["command"], &main["env"]))
    }

    /// The main container: the image's entry point with its default command.
    pub(crate) fn start(mut self) -> Self {
        let entrypoint = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/postgres/entrypoint.sh"
        );
        let copy = self.folder.join("entrypoint.sh");
        write(&copy, &fs::read_to_string(entrypoint).unwrap(), 0o555);
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("log"))
            .unwrap();
        let environment = self.spec["containers"][0]["env"].clone();
        let mut command = self.command("sh", &environment);
        command
            .arg(copy)
            .arg("postgres")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.server = Some(command.spawn().unwrap());
        self
    }

    /// As the image's stop signal does: a fast shutdown.
    pub(crate) fn stop(&mut self) {
        let Some(mut server) = self.server.take() else {
            return;
        };
        let pid = Pid::from_raw(i32::try_from(server.id()).unwrap()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        let deadline = Instant::now() + PATIENCE;
        while server.try_wait().unwrap().is_none() {
            if Instant::now() >= deadline {
                server.kill().unwrap();
                panic!(
                    "{} did not stop within {PATIENCE:?}: {}",
                    self.name,
                    self.log()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn hold_first_start(&self) {
        write(&self.path("/tmp/hold"), "", 0o600);
    }

    pub(crate) fn release_first_start(&self) {
        fs::remove_file(self.path("/tmp/hold")).unwrap();
    }

    /// A database without the operator's roles, as after an interrupted first start or from another tool.
    pub(crate) fn initdb_only(&self) {
        let data = self.path("/pgdata/data").display().to_string();
        let mut command = self.command("initdb", &Value::Null);
        let password = self.path("/secret/password").display().to_string();
        command.args(["-D", &data, "-U", "postgres", "--pwfile", &password]);
        finish(command.args(["--auth-local=trust", "--auth-host=scram-sha-256"])).unwrap();
    }

    /// Everything belongs to and runs as a user without a name from now on.
    pub(crate) fn without_a_name(&mut self) {
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        let named = passwd.contains(&format!(":{NAMELESS}:"));
        assert!(!named, "user {NAMELESS} has a name on this machine");
        self.nameless = true;
        if user().is_some() {
            let owner = format!("{NAMELESS}:{NAMELESS}");
            finish(Command::new("chown").args(["-R", &owner]).arg(&self.folder)).unwrap();
        }
    }

    /// Runs this script instead of a program of this name. `$REAL` in it is where PostgreSQL's programs are.
    pub(crate) fn stub(&self, program: &str, script: &str) {
        let script = script.replace("$REAL", &self.programs.display().to_string());
        let path = self.folder.join(STUBS).join(program);
        write(&path, &format!("#!/bin/sh\n{script}\n"), 0o555);
    }

    /// The major version of the programs here.
    pub(crate) fn version(&self) -> String {
        let output = finish(self.command("postgres", &Value::Null).arg("--version")).unwrap();
        let mut numbers = output.split(|letter: char| !letter.is_ascii_digit());
        let number = numbers.find(|part| !part.is_empty());
        number.unwrap().to_owned()
    }

    /// As if everything in /tmp had been written this much earlier.
    pub(crate) fn age_files_of_tmp(&self, by: Duration) {
        let then = std::time::SystemTime::now() - by;
        for entry in fs::read_dir(self.path("/tmp")).unwrap() {
            let file = fs::File::options()
                .write(true)
                .open(entry.unwrap().path())
                .unwrap();
            file.set_modified(then).unwrap();
        }
    }

    /// Resolves names by this resolv.conf, instead of using the address of the primary.
    pub(crate) fn resolve_by(&mut self, resolver: &str) {
        let file = self.folder.join("resolv.conf");
        write(&file, resolver, 0o444);
        self.resolver = Some(file);
    }

    /// Replaces a key of the mounted ConfigMap, as the kubelet does after an edit; without a text the key is removed.
    pub(crate) fn edit_config(&self, key: &str, text: Option<&str>) {
        let file = self.path("/config").join(key);
        fs::remove_file(&file).unwrap();
        if let Some(text) = text {
            write(&file, text, 0o444);
        }
    }

    /// Reads a file of the volume.
    pub(crate) fn read_volume(&self, file: &str) -> String {
        fs::read_to_string(self.path(VOLUME).join(file)).unwrap()
    }

    /// Writes a file of the volume.
    pub(crate) fn write_volume(&self, file: &str, text: &str) {
        let path = self.path(VOLUME).join(file);
        let folder = path.parent().unwrap();
        if !folder.exists() {
            fs::create_dir(folder).unwrap();
            give(folder, 0o700);
        }
        write(&path, text, 0o600);
    }

    /// Writes a file into /tmp.
    pub(crate) fn write_tmp(&self, file: &str, text: &str) {
        write(&self.path("/tmp").join(file), text, 0o600);
    }

    /// Whether a file of the volume contains this text.
    pub(crate) fn volume_contains(&self, text: &str) -> bool {
        let mut grep = Command::new("grep");
        grep.args(["-rqF", text]).arg(self.path(VOLUME));
        grep.status().unwrap().success()
    }

    pub(crate) fn is_on_volume(&self, file: &str) -> bool {
        self.path(VOLUME).join(file).exists()
    }

    pub(crate) fn has_data(&self) -> bool {
        self.is_on_volume("data/PG_VERSION")
    }

    /// Whether the server has ended unexpectedly.
    pub(crate) fn has_ended(&mut self) -> bool {
        let server = self.server.as_mut().expect("it was started");
        server.try_wait().unwrap().is_some()
    }

    /// The output of a client with this connection.
    pub(crate) fn psql(&self, address: &str, query: &str) -> Result<String, String> {
        let mut command = self.command("psql", &Value::Null);
        finish(command.args(["-XAtqw", "-d", address, "-c", query]))
    }

    /// A dump of all databases, as docs/explanation/limits.md describes it.
    pub(crate) fn pg_dumpall(&self) -> Result<String, String> {
        finish(
            self.command("pg_dumpall", &Value::Null)
                .args(["-U", "postgres"]),
        )
    }

    /// The output of the superuser inside the Pod.
    pub(crate) fn psql_local(&self, query: &str) -> Result<String, String> {
        self.psql("user=postgres dbname=postgres", query)
    }

    pub(crate) fn until_ready(&self) {
        self.until("it is ready", |pod| pod.probe("readinessProbe").is_ok());
    }

    pub(crate) fn until(&self, what: &str, met: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !met(self) {
            let late = Instant::now() >= deadline;
            assert!(
                !late,
                "{}: not so after {PATIENCE:?}: {what}\n{}",
                self.name,
                self.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

/// A stopped process.
pub(crate) struct Stopped(Pid);

impl Stopped {
    pub(crate) fn new(id: i32) -> Self {
        let pid = Pid::from_raw(id).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _gone = kill_process(self.0, Signal::CONT);
    }
}

impl Init {
    /// Its output so far.
    pub(crate) fn output(&self) -> String {
        fs::read_to_string(&self.said).unwrap()
    }

    /// Its output until it ended, as an error if it failed.
    pub(crate) fn end(mut self) -> Result<String, String> {
        let deadline = Instant::now() + PREPARATION_MAX;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() >= deadline {
                let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
                kill_process(pid, Signal::TERM).unwrap();
                self.child.wait().unwrap();
                panic!("it still runs after {PREPARATION_MAX:?}: {}", self.output());
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let said = self.output();
        if status.success() {
            Ok(said)
        } else {
            Err(said)
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let pid = Pid::from_raw(i32::try_from(server.id()).unwrap_or(0));
            if let Some(pid) = pid {
                let _gone = kill_process(pid, Signal::QUIT);
                let _gone = server.wait();
            }
        }
    }
}

/// Output of a command that succeeded, or all output of one that failed.
fn finish(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let err = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match (output.status.success(), out.is_empty()) {
        (true, false) => Ok(out),
        (true, true) => Ok(err),
        (false, _) => Err(format!("{out}\n{err}")),
    }
}
