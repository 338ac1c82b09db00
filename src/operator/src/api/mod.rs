//! The kinds `DatabaseCluster` and `ShardTable`: spec, status, conditions, and the CRDs generated from them.

mod crd;
mod customization;
mod monitoring;
pub mod names;
mod pod_schema;
pub(crate) mod postgresql;
mod quantity;
mod spec;
mod status;
mod tls;

pub use crd::{CrdError, cluster_crd, crd_yaml, shard_table_crd};
pub use customization::{
    Customization, ExternalTrafficPolicy, JsonText, ObjectMetadata, PodMetadata, PodTemplate,
    SeLinuxOptions, SeLinuxType, SecretReference, SecurityContext, Service, ServiceType, Services,
};
pub use monitoring::{Exporter, Monitoring};
pub use postgresql::{Initdb, Postgresql};
pub use spec::{DatabaseCluster, DatabaseClusterSpec, Resources, Retain, Storage};
pub use status::{
    Condition, ConditionStatus, ConditionType, DatabaseClusterStatus, Phase, ShardStatus,
};
pub use tls::Tls;
