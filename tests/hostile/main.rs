//! Users and thieves of credentials against a fleet, on a real API server. Each has real credentials and tries what
//! these permit; after each attack the checker compares everything that must not have changed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod checker;
mod config_maps;
mod database_clusters;
mod edit;
mod environment;
mod requests;
mod stolen_token;

use std::panic::AssertUnwindSafe;

use checker::Checker;
use environment::Environment;
use futures::FutureExt;
use testbed::{ControlPlane, ControlPlaneOptions};

/// One control plane and one fleet for all attacks: objects of one attack stay during the next.
#[tokio::test]
async fn hostile_tenants_and_a_stolen_token_affect_no_other_namespace_and_no_shard() {
    let options = ControlPlaneOptions {
        statefulset_stage: true,
        lift_client_limits: true,
        ..ControlPlaneOptions::default()
    };
    let control_plane = ControlPlane::start(options)
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    let environment = Environment::start(&control_plane).await;
    let mut checker = Checker::start(&environment).await;
    let mut failed = Vec::new();
    let attacks = config_maps::attacks(&environment, &mut checker);
    failed.extend(failure("ConfigMaps", attacks).await);
    let attacks = database_clusters::attacks(&environment, &mut checker);
    failed.extend(failure("DatabaseClusters", attacks).await);
    let attacks = edit::attacks(&environment, &mut checker);
    failed.extend(failure("edit", attacks).await);
    let attacks = stolen_token::attacks(&environment, &mut checker);
    failed.extend(failure("stolen token", attacks).await);
    let start = checker.replicas_that_start_now_stay_small(environment);
    failed.extend(failure("a late start", start).await);
    assert!(failed.is_empty(), "see above: {failed:?}");
}

/// One attacker's failure does not hide those of the others.
async fn failure(name: &str, attacks: impl Future<Output = ()>) -> Option<&str> {
    let ended = AssertUnwindSafe(attacks).catch_unwind().await;
    ended.err().map(|_| name)
}
