//! Names that users, scripts and the fence rely on: labels, annotations, finalizer, managers.

use sharded_controller::names::Names;

/// The names of this operator.
pub const NAMES: Names = Names {
    app: "databasecluster-operator",
    prefix: "databasecluster",
    domain: GROUP,
    manifests: "deploy/base",
};
/// API group of the kind and of our labels and annotations.
pub const GROUP: &str = "database.io";
/// API version of the kind.
pub const VERSION: &str = "v1";
/// `apiVersion` of the kind.
pub(crate) const API_VERSION: &str = "database.io/v1";
/// The kind.
pub const KIND: &str = "DatabaseCluster";
/// Finalizer of a `DatabaseCluster`: it is removed once the StatefulSet is deleted.
pub(crate) const FINALIZER: &str = "database.io/operator";
/// Label of children: the bucket (0–255) in which the cluster's uid lies.
pub const BUCKET_LABEL: &str = "database.io/bucket";
/// Annotation: the fencing token of the last writer,
/// `<table uid>/<shard>/<epoch>/<holder>/<cluster uid>`.
pub(crate) const FENCING_TOKEN_ANNOTATION: &str = "database.io/fencing-token";
/// Label of volume claims: uid of the `DatabaseCluster` that may change and delete them.
pub(crate) const CLUSTER_UID_LABEL: &str = "database.io/cluster-uid";
/// Label of Pods and volume claims: name of the `DatabaseCluster`. No other tool gives it a meaning.
pub const CLUSTER_LABEL: &str = "database.io/cluster";
/// Annotation of a `DatabaseCluster`: its own uid, if the primary may start with an empty volume
/// although volumes of its replicas exist.
pub(crate) const EMPTY_PRIMARY_ANNOTATION: &str = "database.io/allow-empty-primary";
/// Annotation of the ConfigMap: the volume of the primary has data. It outlives the status, which a
/// restore from a backup drops.
pub(crate) const INITIALIZED_ANNOTATION: &str = "database.io/initialized";
/// Annotation of children: hash of what was applied, without the fencing token.
pub const FINGERPRINT_ANNOTATION: &str = "database.io/fingerprint";
/// Annotation of children: generation of the `DatabaseCluster` from which the child was rendered.
pub(crate) const GENERATION_ANNOTATION: &str = "database.io/generation";
/// Annotation of the StatefulSet: what was done for its claims, `<size>/<number>` when they were last
/// grown, and `/<cluster uid>/marked` when each was labelled.
pub(crate) const CLAIMS_ANNOTATION: &str = "database.io/claims";
/// Field manager of every write.
pub(crate) const FIELD_MANAGER: &str = NAMES.app;
/// Reporter of Events.
pub(crate) const REPORTER: &str = "database-controller";
/// Recommended label, by which Argo CD may know the objects of an application.
pub(crate) const INSTANCE_LABEL: &str = "app.kubernetes.io/instance";
/// Label of children: who manages them.
pub(crate) const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// The operator's name in `app.kubernetes.io/managed-by`.
pub(crate) const MANAGED_BY: &str = NAMES.app;
