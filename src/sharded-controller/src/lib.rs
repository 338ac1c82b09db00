//! Sharding, fencing and handover for Kubernetes operators that are written with kube-rs.
//!
//! ```text
//!  objects of the sharded kind, and their dependents
//!        │
//!        ▼  list and watch, own shards only
//!   ShardReflector ──▶ ShardCache ──▶ queue ──▶ pool ──▶ your Reconcile ──▶ Write
//!        ▲                              ▲        ▲                            │
//!        │ watch, unwatch               │ admit, drain, stop                  │ ShardPermit::guard:
//!        └───────────────┬──────────────┴────────┘                            │ is the shard still ours?
//!                      agent                                                  ▼
//!                        │ runs the state machine            ┌──────────────────────────────────┐
//!                        │ of shard-ownership                │ API server                       │
//!   member Leases ◀──────┤ heartbeat                         │   admission policies compare     │
//!   shard Leases  ◀──────┤ locks, by compare-and-swap        │   the fencing token of the write │
//!   shard table   ◀──────┘ who may write, which epoch ──────▶│   with the shard table           │
//!                                                            └──────────────────────────────────┘
//! ```
//!
//! # Purpose
//!
//! With leader election, one replica of an operator works and the others wait. With this crate all
//! replicas work: each object lies in one shard, by a hash of its uid, and one replica at a time holds a
//! shard. A replica watches, caches and reconciles only the objects in its own shards. In a rolling update
//! a shard moves directly from the leaving replica to one that has already listed its objects, and after a
//! crash the other replicas take the shards over without a leader.
//!
//! The crate knows no kind of its own. An operator provides its [`Names`], the watched kinds and their
//! cache ([`ShardCache`]), and a reconciler ([`Reconcile`]). [`Controller`] assembles a replica from them.
//!
//! # Example
//!
//! `examples/configmap.rs` is a complete operator, with its admission policies. This is its core, without
//! the check whether the object already has its desired state:
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use k8s_openapi::api::core::v1::ConfigMap;
//! use kube::Resource;
//! use kube::api::{Patch, PatchParams};
//! use kube::core::Request;
//! use prometheus::Registry;
//! use serde_json::json;
//! use shard_ownership::hash::Bucket;
//! use sharded_controller::config::Config;
//! use sharded_controller::controller::Controller;
//! use sharded_controller::names::Names;
//! use sharded_controller::object::ObjectKey;
//! use sharded_controller::outcome::{Failure, Next, Outcome};
//! use sharded_controller::permit::ShardPermit;
//! use sharded_controller::pool::{Backlog, Reconcile};
//! use sharded_controller::watch::object_cache::{ObjectCache, Objects};
//! use sharded_controller::write::GuardedClient;
//!
//! const NAMES: Names = Names {
//!     app: "copy-operator",
//!     prefix: "copy",
//!     domain: "copy.example.com",
//!     manifests: "deploy",
//! };
//!
//! /// Sources are sharded; their copies are watched by their bucket label.
//! struct Copies;
//!
//! impl Objects for Copies {
//!     type Owner = ConfigMap;
//!     type Dependent = ConfigMap;
//!     const OWNER_PLURAL: &'static str = "configmaps";
//!     const OWNER_LABELS: &'static str = "copy.example.com/source=true";
//!     const DEPENDENT_PLURAL: &'static str = "configmaps";
//! }
//!
//! struct Copier {
//!     cache: Arc<ObjectCache<Copies>>,
//!     client: GuardedClient,
//! }
//!
//! impl Reconcile for Copier {
//!     async fn reconcile(
//!         &self,
//!         key: &ObjectKey,
//!         permit: &ShardPermit,
//!         _: &dyn Backlog,
//!     ) -> Result<Outcome, Failure> {
//!         let Some(source) = self.cache.owner(key) else {
//!             return Ok(Outcome { wrote: false, next: Next::Forget });
//!         };
//!         let uid = source.metadata.uid.as_deref().unwrap_or_default();
//!         let name = format!("{}-copy", key.name);
//!         let copy = json!({
//!             "apiVersion": "v1", "kind": "ConfigMap", "data": source.data,
//!             "metadata": {
//!                 "name": name,
//!                 "labels": {NAMES.bucket_label(): Bucket::of(uid).to_string()},
//!                 "annotations": {NAMES.fencing_token(): permit.token().for_cluster(uid)},
//!                 "ownerReferences": source.controller_owner_ref(&()),
//!             },
//!         });
//!         let request = Request::new(ConfigMap::url_path(&(), Some(&key.namespace)));
//!         let apply = PatchParams::apply(NAMES.app).force();
//!         let request = request.patch(&name, &apply, &Patch::Apply(copy));
//!         // A `Write` is not a future: only the permit sends it.
//!         let write = self.client.write("ConfigMap", request);
//!         let written = permit.guard(write).await;
//!         written.map_err(|refusal| refusal.into_failure(&format!("applying {name}")))?;
//!         Ok(Outcome { wrote: true, next: Next::Ready })
//!     }
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let config = Config::from_env("copy-system")?;
//!     let cache = Arc::new(ObjectCache::new(NAMES, config.shards));
//!     let controller = Controller::new(NAMES, config, Arc::clone(&cache), Registry::new()).await?;
//!     let client = controller.client();
//!     controller.run(Copier { cache, client }).await?;
//!     Ok(())
//! }
//! ```
//!
//! # Guarantees
//!
//! docs/ownership.md and docs/fence.md of the repository state them in full, with their limits.
//!
//! - For each shard and epoch at most one replica works, and it stops by itself before others may take the
//!   shard over. Epochs in the shard table only rise.
//! - A write is sent only while its permit is valid. No function but [`ShardPermit::guard`] sends a
//!   [`Write`](write::Write).
//! - On each object epochs never go down: once a holder has written an object, the API server refuses every
//!   write of an earlier holder there.
//! - No object is reconciled twice at once in a replica, and no run continues after its permit has ended.
//! - A live replica that can reach the API server takes a shard over within the lifetime of a member Lease
//!   plus one second after its holder crashed (7 s by default), plus the time to list the objects.
//!
//! # Assumptions
//!
//! - The API server is of version 1.30 or later, for `ValidatingAdmissionPolicy`, and orders the writes of
//!   one object, as etcd does.
//! - The kind `ShardTable` is installed ([`ShardTable::crd`](fleet::shard_table::ShardTable::crd)), and then
//!   the admission policies ([`fence_policies`]). At its start a replica proves by dry runs that the policies
//!   apply to it, and with [`Config::require_fence`](config::Config::require_fence) waits until they do.
//! - Each replica has credentials of its own: a ServiceAccount token that is bound to its Pod. With any
//!   others the policies cannot distinguish replicas, and
//!   [`Config::allow_unfenced`](config::Config::allow_unfenced) has to accept that.
//! - Each replica has an identity of its own, and all have the same number of shards and the same namespaces.
//! - The kernel's boot-time clock (`CLOCK_BOOTTIME`) counts the time for which the machine is suspended and
//!   is never set. The rates of two machines' clocks differ by less than one second in the lifetime of a member
//!   Lease. Clocks need not agree on the time.
//! - Only the operator writes its Leases and its shard table.
//! - Every object that is written carries the fencing token in the annotation `<domain>/fencing-token` (the
//!   status of an owner in `status.shard`); every dependent carries the bucket of its owner in the label
//!   `<domain>/bucket`.
//!
//! # Limits
//!
//! - A write that was sent just before the right to write ended may arrive later. The API server refuses it on
//!   objects that the new holder has written. On others it may pass while the API server's cache of the shard
//!   table lags, for milliseconds.
//! - One controller has one sharded kind, whose objects are namespaced, as are the dependents.
//! - The crate installs nothing: no kinds, no policies, no rights.
//! - It retries no request. A failed reconcile runs again, after a pause that grows.
//! - It serves no webhooks and keeps no finalizers; cleanup is the reconciler's.
//! - It runs on Linux, in a tokio runtime.
//!
//! # Modules
//!
//! | concept | modules |
//! | --- | --- |
//! | Assembly: a replica from its parts, started and stopped in order | [`controller`], [`config`], [`names`], `shutdown` |
//! | Ownership on Kubernetes: Leases, shard table, leader, probes of the fence | [`fleet`] |
//! | The right to write, and what an answer means | [`permit`], [`write`](mod@write), [`refusal`], `refused_writes` |
//! | The policies of the API server | [`fence_policies`], `credentials` |
//! | Lists and watches by shard, into a cache | [`watch`] |
//! | What runs next, and running it | `queue`, `backoff`, `rate_limit`, [`outcome`], [`pool`] |
//! | What a replica reports | [`metrics`](mod@metrics), [`health`], `liveness`, `server`, `reporting`, `stats`, `process`, `cgroup`, `failures` |
//! | Shared parts | [`object`], `client`, `clock`, `duration`, `text` |
//! | Fault injection | `failpoints` |
//!
//! The decisions about ownership are in the crate [`shard_ownership`], which does no I/O.
//!
//! [`Names`]: names::Names
//! [`ShardCache`]: watch::kinds::ShardCache
//! [`Reconcile`]: pool::Reconcile
//! [`Controller`]: controller::Controller
//! [`ShardPermit::guard`]: permit::ShardPermit::guard

pub mod backoff;
#[doc(hidden)]
pub mod benchmarks;
mod cgroup;
mod client;
pub mod clock;
pub mod config;
mod connections;
pub mod controller;
mod credentials;
pub mod duration;
mod failpoints;
mod failures;
pub mod fence_policies;
pub mod fleet;
pub mod health;
mod heartbeats;
mod host;
mod liveness;
pub mod metrics;
mod multiplex;
pub mod names;
pub mod object;
pub mod outcome;
pub mod permit;
pub mod pool;
pub mod process;
mod queue;
pub mod rate_limit;
pub mod refusal;
mod refused_writes;
mod reporting;
pub mod server;
mod shutdown;
mod stats;
pub mod text;
pub mod watch;
pub mod write;
