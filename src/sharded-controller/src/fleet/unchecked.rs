//! Lease writes without some of their preconditions, for fault injection: see [`crate::failpoints`].

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, Patch, PatchParams, PostParams};

use crate::failpoints::{Failpoint, is_active};

/// Whether Lease writes are to lack something.
pub(super) fn skips_preconditions() -> bool {
    is_active(Failpoint::CompareAndSwap) || is_active(Failpoint::Uid)
}

/// Writes a Lease without its uid, and without its version if that failpoint is active too.
pub(super) async fn write_unchecked(
    api: &Api<Lease>,
    name: &str,
    lease: &Lease,
) -> kube::Result<Lease> {
    let mut lease = lease.clone();
    lease.metadata.uid = None;
    if is_active(Failpoint::CompareAndSwap) {
        // A Lease cannot be replaced without a version; an apply creates or overwrites it.
        lease.metadata.resource_version = None;
        let params = PatchParams::apply("failpoint").force();
        return api.patch(name, &params, &Patch::Apply(&lease)).await;
    }
    let params = PostParams::default();
    match lease.metadata.resource_version {
        Some(_) => api.replace(name, &params, &lease).await,
        None => api.create(&params, &lease).await,
    }
}
