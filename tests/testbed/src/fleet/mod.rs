//! A fleet of operator processes against a control plane, each with an identity and a token of its own.

mod fence;
mod identity;
mod install;
mod replica;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use fence::wait_in_force;
use identity::Identity;
pub(crate) use install::ensure_namespace;
pub use replica::Replica;

use crate::control_plane::ControlPlane;
use crate::error::{Context, Result, failed};
use crate::names::OperatorNames;

/// The namespace of the operator itself.
pub const OPERATOR_NAMESPACE: &str = OperatorNames::DATABASE_CLUSTERS.namespace;
/// The operator's ServiceAccount.
pub const OPERATOR_ACCOUNT: &str = OperatorNames::DATABASE_CLUSTERS.account;
/// The operator as the API server knows it.
pub const OPERATOR_USER: &str =
    "system:serviceaccount:databasecluster-system:databasecluster-operator";
const BINARY: &str = "databasecluster-operator";
/// The program in which `DBC_FAILPOINTS` activates failpoints.
const FAILPOINTS_BINARY: &str = "databasecluster-operator-failpoints";
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// How a replica gets its identity and its address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Launcher {
    /// By the flags of the DatabaseCluster operator's command `run`.
    #[default]
    Flags,
    /// By the variables that a Pod's template sets, which the library reads.
    Environment,
}

/// Options of a fleet.
#[derive(Clone, Debug, Default)]
pub struct FleetOptions {
    /// More arguments of `run`, for every replica.
    pub extra_args: Vec<String>,
    /// More environment, for every replica.
    pub extra_env: Vec<(String, String)>,
    /// The operator's program; by default `OPERATOR_BIN`, else beside the running executable.
    pub binary: Option<PathBuf>,
    /// The prefix of the replicas' names; by default the operator's ServiceAccount.
    pub name_prefix: Option<String>,
    /// The operator, by default that of DatabaseClusters.
    pub operator: OperatorNames,
    /// How its replicas are started.
    pub launcher: Launcher,
    /// Leaves the fence out of what is installed.
    pub without_fence: bool,
    /// Also installs the guard, which refuses to delete the kinds and the shard table.
    pub guard: bool,
}

/// How one replica differs from the others of its fleet.
#[derive(Clone, Debug, Default)]
pub struct ReplicaOptions {
    /// More arguments of `run`.
    pub args: Vec<String>,
    /// More environment.
    pub env: Vec<(String, String)>,
    /// A program and its arguments that becomes the replica, such as `unshare`.
    pub through: Vec<String>,
    /// Where it finds the API server instead: a URL, and the file of the authority that signed its certificate.
    pub endpoint: Option<(String, PathBuf)>,
}

/// Operator processes against one control plane. Dropping it kills them.
pub struct Fleet<'a> {
    control_plane: &'a ControlPlane,
    options: FleetOptions,
    binary: PathBuf,
    started: usize,
    replicas: Vec<Replica>,
}

impl<'a> Fleet<'a> {
    /// Installs CRD, RBAC and fence from `deploy/`, as administrator, and starts no replica yet.
    ///
    /// # Errors
    /// When a file is missing or the API server refuses it.
    pub async fn install(control_plane: &'a ControlPlane, options: FleetOptions) -> Result<Self> {
        install::install(control_plane, &options).await?;
        Self::installed(control_plane, options)
    }

    /// Starts no replica yet, and installs nothing: everything they need exists.
    ///
    /// # Errors
    /// When the operator's program is nowhere.
    pub fn installed(control_plane: &'a ControlPlane, options: FleetOptions) -> Result<Self> {
        let binary = match &options.binary {
            Some(binary) => binary.clone(),
            None => operator_binary()?,
        };
        Ok(Self {
            control_plane,
            options,
            binary,
            started: 0,
            replicas: Vec::new(),
        })
    }

    /// Installs, starts `count` replicas and waits until all are ready.
    ///
    /// # Errors
    /// When anything of that fails.
    pub async fn start(
        control_plane: &'a ControlPlane,
        count: usize,
        options: FleetOptions,
    ) -> Result<Self> {
        let mut fleet = Self::install(control_plane, options).await?;
        for _ in 0..count {
            fleet.start_replica(&[]).await?;
        }
        fleet.wait_ready(READY_TIMEOUT).await?;
        Ok(fleet)
    }

    /// Starts one more replica under a new name, with `extra_args` beside the fleet's, and returns its index.
    /// It listens when this returns; whether it is ready is another question.
    ///
    /// # Errors
    /// When it cannot be started or does not log its address; the end of its log is in the message.
    pub async fn start_replica(&mut self, extra_args: &[String]) -> Result<usize> {
        let options = ReplicaOptions {
            args: extra_args.to_vec(),
            ..ReplicaOptions::default()
        };
        self.start_replica_with(options).await
    }

    /// As [`Fleet::start_replica`], of a replica that differs from the others.
    ///
    /// # Errors
    /// As [`Fleet::start_replica`].
    pub async fn start_replica_with(&mut self, options: ReplicaOptions) -> Result<usize> {
        let name = self.next_name();
        let endpoint = options.endpoint.as_ref();
        let identity = self.identity(&name, endpoint).await?;
        let together = |all: &[(String, String)], own: Vec<(String, String)>| {
            all.iter().cloned().chain(own).collect()
        };
        let launch = replica::Launch {
            binary: self.binary.clone(),
            launcher: self.options.launcher,
            namespace: self.options.operator.namespace,
            through: options.through,
            identity,
            args: [self.options.extra_args.clone(), options.args].concat(),
            env: together(&self.options.extra_env, options.env),
        };
        self.replicas.push(launch.start(self.control_plane).await?);
        Ok(self.replicas.len() - 1)
    }

    /// Starts more replicas such that they see the API server at the same instant, so that none of them
    /// has taken everything before the others have joined. Returns the index of the first.
    ///
    /// # Errors
    /// As [`Fleet::start_replica`].
    pub async fn start_replicas_at_once(&mut self, count: usize) -> Result<usize> {
        let mut launches = Vec::new();
        for _ in 0..count {
            let name = self.next_name();
            launches.push(replica::Launch {
                binary: self.binary.clone(),
                launcher: self.options.launcher,
                namespace: self.options.operator.namespace,
                through: Vec::new(),
                identity: self.identity(&name, None).await?,
                args: self.options.extra_args.clone(),
                env: self.options.extra_env.clone(),
            });
        }
        self.control_plane.pause("kube-apiserver")?;
        let starts = launches.into_iter().map(|l| l.start(self.control_plane));
        let started = futures::future::try_join_all(starts).await;
        self.control_plane.resume("kube-apiserver")?;
        let first = self.replicas.len();
        self.replicas.extend(started?);
        Ok(first)
    }

    /// Starts a process again that has ended, under the same identity, as the kubelet does with a container.
    ///
    /// # Errors
    /// When the replica still runs or cannot be started.
    pub async fn restart_replica(&mut self, index: usize) -> Result<()> {
        let replica = self.replica(index)?;
        if replica.is_alive() {
            return failed(format!("{} still runs", replica.name()));
        }
        let fresh = replica.launch().clone().start(self.control_plane).await?;
        match self.replicas.get_mut(index) {
            Some(place) => *place = fresh,
            None => return failed(format!("there is no replica {index}")),
        }
        Ok(())
    }

    /// All replicas ever started, also those that have ended, in order.
    #[must_use]
    pub fn replicas(&self) -> &[Replica] {
        &self.replicas
    }

    /// One replica.
    ///
    /// # Errors
    /// When there is none with this index.
    pub fn replica(&self, index: usize) -> Result<&Replica> {
        self.replicas
            .get(index)
            .map_or_else(|| failed(format!("there is no replica {index}")), Ok)
    }

    /// One replica, to be ended.
    ///
    /// # Errors
    /// When there is none with this index.
    pub fn replica_mut(&mut self, index: usize) -> Result<&mut Replica> {
        self.replicas
            .get_mut(index)
            .map_or_else(|| failed(format!("there is no replica {index}")), Ok)
    }

    /// The replicas that run.
    pub fn alive(&self) -> impl Iterator<Item = &Replica> {
        self.replicas.iter().filter(|replica| replica.is_alive())
    }

    /// Waits until every replica that runs is ready.
    ///
    /// # Errors
    /// When one is not in time or has ended; the end of its log is in the message.
    pub async fn wait_ready(&self, timeout: Duration) -> Result<()> {
        for replica in self.alive() {
            replica.wait_ready(timeout).await?;
        }
        Ok(())
    }

    /// A kubeconfig with the token of one more replica, of which no process runs.
    ///
    /// # Errors
    /// When the API server refuses its Pod or its token.
    pub async fn kubeconfig_of_pod(&self, name: &str) -> Result<PathBuf> {
        Ok(self.identity(name, None).await?.kubeconfig)
    }

    /// A client with the token of one more replica, of which no process runs.
    ///
    /// # Errors
    /// When the API server refuses its Pod or its token.
    pub async fn client_of_pod(&self, name: &str) -> Result<kube::Client> {
        let kubeconfig = self.kubeconfig_of_pod(name).await?;
        crate::control_plane::client_from(&kubeconfig).await
    }

    /// The operator whose replicas these are.
    #[must_use]
    pub fn operator(&self) -> &OperatorNames {
        &self.options.operator
    }

    fn next_name(&mut self) -> String {
        let options = &self.options;
        let prefix = options.name_prefix.as_deref();
        let name = format!(
            "{}-{}",
            prefix.unwrap_or(options.operator.account),
            self.started
        );
        self.started += 1;
        name
    }

    async fn identity(&self, name: &str, endpoint: Option<&(String, PathBuf)>) -> Result<Identity> {
        identity::create(self.control_plane, &self.options.operator, name, endpoint).await
    }

    /// The control plane that it runs against.
    #[must_use]
    pub fn control_plane(&self) -> &'a ControlPlane {
        self.control_plane
    }

    /// Removes the fake Pod of a replica, as when its node is lost forever.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn delete_pod(&self, name: &str) -> Result<()> {
        identity::delete(self.control_plane, &self.options.operator, name).await
    }
}

/// The operator's program: `OPERATOR_BIN`, else beside the running executable or one folder up.
///
/// # Errors
/// When it is nowhere.
pub fn operator_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("OPERATOR_BIN") {
        let path = PathBuf::from(path);
        return match path.is_file() {
            true => path.canonicalize().context("OPERATOR_BIN"),
            false => failed(format!("OPERATOR_BIN={} is no file", path.display())),
        };
    }
    beside(BINARY, "cargo build, or set OPERATOR_BIN")
}

/// The kubectl plugin.
///
/// # Errors
/// When it was not built.
pub fn plugin_binary() -> Result<PathBuf> {
    beside("kubectl-dbc", "cargo build --bin kubectl-dbc")
}

/// The operator built with failpoints (`DBC_FAILPOINTS`).
///
/// # Errors
/// When it was not built.
pub fn failpoints_binary() -> Result<PathBuf> {
    let how = format!("cargo build --features failpoints --bin {FAILPOINTS_BINARY}");
    beside(FAILPOINTS_BINARY, &how)
}

/// An example program of the library.
///
/// # Errors
/// When it was not built.
pub fn example_binary(name: &str) -> Result<PathBuf> {
    let how = format!("cargo build -p sharded-controller --example {name}");
    beside(&format!("examples/{name}"), &how)
}

/// A program beside the running executable, or up to two folders up.
fn beside(name: &str, how: &str) -> Result<PathBuf> {
    let executable = std::env::current_exe().context("find the running executable")?;
    let folders = executable.ancestors().skip(1).take(3);
    let found = folders
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    let missing = || {
        let beside = executable.display();
        failed(format!("no {name} beside {beside}: build it ({how})"))
    };
    found.map_or_else(missing, Ok)
}

/// The repository's top folder.
#[must_use]
pub fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    here.canonicalize().unwrap_or(here)
}
