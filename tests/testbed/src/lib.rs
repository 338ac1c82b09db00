//! A real Kubernetes control plane and a fleet of operator processes on one machine.
//!
//! It is an outside observer: it uses the operator's command line, its objects, its HTTP
//! endpoints and the API server's audit log, and shares no code with it.
//!
//! | module | provides |
//! | --- | --- |
//! | [`control_plane`] | etcd, API server, controller manager, scheduler and fake nodes, on loopback |
//! | [`fleet`] | operator processes, each with a token bound to a fake Pod of its own |
//! | [`accounts`] | credentials of other users |
//! | [`load`] | DatabaseClusters by the hundred, and waiting until they are Ready |
//! | [`audit`] | the API server's record: users, requests, times, outcomes |
//! | [`metrics`], [`http_get`] | what a replica exports |
//! | [`certificates`] | certificates of an authority of its own, and which one a PostgreSQL server uses |
//! | [`browser`] | a headless Chromium: the appearance and behavior of a page |
//! | [`shards`], [`table`] | holders of shards, by the Leases and by the shard table |
//! | [`fencing`] | which term of a shard wrote an object |
//! | [`names`] | the names of the operator under test |
//! | [`process`], [`guardian`] | processes by pid and start time, and the promise that nothing stays behind |
//! | [`wait`] | waiting for a condition, with a deadline and a description |

pub mod accounts;
pub mod audit;
pub mod browser;
pub mod certificates;
pub mod control_plane;
pub mod error;
pub mod fencing;
pub mod fleet;
pub mod guardian;
pub mod http_get;
pub mod load;
pub mod metrics;
pub mod names;
pub mod ports;
pub mod process;
pub mod shards;
pub mod statistics;
pub mod table;
pub mod wait;

pub use control_plane::{AuditLevel, ControlPlane, ControlPlaneOptions};
pub use error::{Context, Error, Result};
pub use fleet::{Fleet, FleetOptions, Replica};
pub use names::OperatorNames;
pub use wait::{Progress, wait_for};
