//! What the tests of the plugin share: a folder with the programs, and a user's shell.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use testbed::fleet::repository;
use testbed::{ControlPlane, ControlPlaneOptions, Fleet, FleetOptions, load};

pub(crate) const PATIENCE: Duration = Duration::from_secs(180);
pub(crate) const OPERATOR: &str = "databasecluster-system";

/// What one command printed, and how it ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) error: String,
}

impl Outcome {
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// Asserts the code, one line of error with these parts, and an empty output.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.out, "", "nothing but the error");
        assert_eq!(self.error.lines().count(), 1, "{}", self.error);
        self.reports(parts);
    }

    #[track_caller]
    pub(crate) fn reports(&self, parts: &[&str]) {
        for part in parts {
            assert!(self.error.contains(part), "{part}: {self:?}");
        }
    }
}

/// A user at a shell, with kubectl and the plugin in the PATH.
pub(crate) struct User<'a> {
    control_plane: &'a ControlPlane,
    programs: PathBuf,
    kubeconfig: PathBuf,
}

impl<'a> User<'a> {
    /// An administrator, with the real kubectl.
    pub(crate) fn administrator(control_plane: &'a ControlPlane) -> Self {
        let programs = control_plane.folder().join("programs");
        fs::create_dir_all(&programs).unwrap();
        let plugin = Path::new(env!("CARGO_BIN_EXE_kubectl-dbc"));
        let complete = repository().join("deploy/plugin/kubectl_complete-dbc");
        for (program, name) in [
            (control_plane.kubectl().as_path(), "kubectl"),
            (plugin, "kubectl-dbc"),
            (complete.as_path(), "kubectl_complete-dbc"),
        ] {
            symlink(program, programs.join(name)).unwrap();
        }
        Self {
            control_plane,
            programs,
            kubeconfig: control_plane.kubeconfig(),
        }
    }

    /// The same shell with another kubeconfig.
    pub(crate) fn with_kubeconfig(&self, kubeconfig: PathBuf) -> Self {
        Self {
            control_plane: self.control_plane,
            programs: self.programs.clone(),
            kubeconfig,
        }
    }

    /// The same shell with a kubectl that runs this script: the nodes here are not real, and `exec` reaches no container.
    pub(crate) fn with_kubectl(&self, script: &str) -> Self {
        let programs = self.control_plane.folder().join("fake-programs");
        fs::create_dir_all(&programs).unwrap();
        let kubectl = programs.join("kubectl");
        fs::write(&kubectl, format!("#!/bin/sh\n{script}")).unwrap();
        fs::set_permissions(&kubectl, fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            control_plane: self.control_plane,
            programs,
            kubeconfig: self.kubeconfig.clone(),
        }
    }

    /// The plugin itself.
    pub(crate) fn dbc(&self, arguments: &[&str]) -> Outcome {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-dbc"));
        command.args(arguments);
        self.run(command)
    }

    /// kubectl, which finds the plugin in the PATH.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Outcome {
        let mut command = Command::new(self.programs.join("kubectl"));
        command.args(arguments);
        self.run(command)
    }

    /// The plugin as a process of its own.
    pub(crate) fn command(&self, mut command: Command) -> Command {
        let path = std::env::var("PATH").unwrap();
        command
            .env("PATH", format!("{}:{path}", self.programs.display()))
            .env("KUBECONFIG", &self.kubeconfig)
            .env(
                "KUBECACHEDIR",
                self.control_plane.folder().join("kubectl-cache"),
            )
            .env_remove("DBC_NAMESPACE")
            .current_dir(self.control_plane.folder())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, command: Command) -> Outcome {
        let run = self.command(command).output().unwrap();
        let [out, error] = [run.stdout, run.stderr].map(|text| String::from_utf8(text).unwrap());
        Outcome {
            code: run.status.code().unwrap_or(-1),
            out,
            error,
        }
    }
}

pub(crate) async fn control_plane() -> ControlPlane {
    let options = ControlPlaneOptions {
        lift_client_limits: true,
        ..ControlPlaneOptions::default()
    };
    ControlPlane::start(options)
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

/// Three replicas, ready and balanced.
pub(crate) async fn fleet_of_three(control_plane: &ControlPlane) -> Fleet<'_> {
    let fleet = Fleet::start(control_plane, 3, FleetOptions::default())
        .await
        .unwrap();
    testbed::shards::wait_balanced(&fleet, PATIENCE)
        .await
        .unwrap();
    fleet
}

/// DatabaseClusters of a namespace, each with its number of instances, all Ready.
pub(crate) async fn ready_clusters(
    control_plane: &ControlPlane,
    namespace: &str,
    clusters: &[(&str, u32)],
) {
    let new = clusters.iter().map(|(name, replicas)| load::NewCluster {
        namespace: namespace.to_owned(),
        name: (*name).to_owned(),
        spec: load::spec(*replicas),
    });
    load::create(control_plane, new.collect()).await.unwrap();
    load::wait_all_ready(&control_plane.client(), clusters.len(), PATIENCE)
        .await
        .unwrap();
}

pub(crate) fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A kubeconfig with these rights in these namespaces, and none elsewhere.
pub(crate) async fn user_with(
    control_plane: &ControlPlane,
    name: &str,
    rules: Value,
    namespaces: &[&str],
) -> PathBuf {
    let kubeconfig = testbed::accounts::create(control_plane, "default", name)
        .await
        .unwrap();
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": name}, "rules": rules,
    });
    let mut objects = vec![role];
    for namespace in namespaces {
        objects.push(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "default"}],
        }));
    }
    for (number, object) in objects.iter().enumerate() {
        let file = control_plane.folder().join(format!("{name}-{number}.json"));
        fs::write(&file, object.to_string()).unwrap();
        let file = file.display().to_string();
        control_plane
            .run_kubectl(&["apply", "-f", &file])
            .await
            .unwrap();
    }
    kubeconfig
}
