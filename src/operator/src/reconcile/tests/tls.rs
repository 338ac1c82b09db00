//! `spec.tls`: what the operator knows of the Secret, and what it leaves alone because of it.

use super::*;
use crate::core::lifecycle::reason;

const TLS_SECRET: &str = "/api/v1/namespaces/shop/secrets/orders-tls";
const POD_EVENTS: &str = "/api/v1/namespaces/shop/events";

fn spec(replicas: i32, has_tls: bool) -> Value {
    let mut spec = json!({"image": "postgres:18", "replicas": replicas});
    if has_tls {
        spec["tls"] = json!({"secretName": "orders-tls"});
    }
    spec
}

fn forbid_reads(world: &World) {
    let answer = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden",
        "message": "secrets \"orders-tls\" is forbidden",
    });
    world.fake.with(|state| {
        for _ in 0..8 {
            state
                .refusals
                .push((format!("GET {TLS_SECRET}"), answer.clone()));
        }
    });
}

fn degraded(world: &World) -> Option<String> {
    let (status, reason, _) = world.condition(ConditionType::Degraded);
    (status == ConditionStatus::True).then_some(reason)
}

fn template(world: &World) -> Value {
    world.object(STATEFULSET).unwrap()["spec"]["template"].clone()
}

async fn ready(world: &World, has_tls: bool) {
    world.user_applies(spec(1, has_tls));
    for _ in 0..6 {
        let _outcome = world.reconcile().await;
        world.time.advance(Duration::from_secs(15));
        if world.object(STATEFULSET).is_some() {
            world.set_pods(1, 1);
        }
    }
}

/// Without a right to read it, a dry run shows whether it exists.
#[tokio::test]
async fn missing_secret_keeps_the_template_and_nothing_else() {
    let world = World::new();
    ready(&world, false).await;
    let before = template(&world);
    forbid_reads(&world);
    world.user_applies(spec(1, true));
    let outcome = world.reconcile().await.unwrap();
    assert!(matches!(outcome.next, Next::RequeueAfter { ms } if ms <= 30_000));
    assert_eq!(degraded(&world).as_deref(), Some(reason::TLS_MISSING));
    assert_eq!(template(&world), before);
    let script = world.object(CONFIG).unwrap()["data"]["tls.sh"].is_string();
    assert!(script, "the other children wait for nothing");

    world
        .fake
        .with(|state| state.put(TLS_SECRET, json!({"metadata": {"name": "orders-tls"}})));
    world.time.advance(Duration::from_secs(30));
    world.reconcile().await.unwrap();
    assert_ne!(template(&world), before);
}

#[tokio::test]
async fn what_the_primary_reports_is_repeated_while_it_serves() {
    let world = World::new();
    forbid_reads(&world);
    world
        .fake
        .with(|state| state.put(TLS_SECRET, json!({"metadata": {"name": "orders-tls"}})));
    ready(&world, true).await;
    assert_eq!(degraded(&world), None);
    let at = world.clock.now().to_string();
    let event = |message: &str| {
        json!({
            "metadata": {"name": "a", "namespace": "shop"}, "involvedObject": {},
            "lastTimestamp": at, "message": message,
        })
    };
    let words = "Readiness probe failed: TLS: the certificate in the Secret orders-tls has expired";
    world
        .fake
        .with(|state| state.put(&format!("{POD_EVENTS}/a"), event(words)));
    world.time.advance(Duration::from_secs(15));
    world.reconcile().await.unwrap();
    assert_eq!(degraded(&world).as_deref(), Some(reason::TLS_INVALID));
    let (available, ..) = world.condition(ConditionType::Available);
    assert_eq!(available, ConditionStatus::True);
    // What else changes is applied.
    world.user_applies(spec(2, true));
    world.time.advance(Duration::from_secs(15));
    world.reconcile().await.unwrap();
    let replicas = world.object(STATEFULSET).unwrap()["spec"]["replicas"].clone();
    assert_eq!(replicas, 2);
}

/// Many runs of a rollout read it once.
#[tokio::test]
async fn secret_is_read_at_most_once_in_ten_seconds() {
    let world = World::new();
    ready(&world, true).await;
    let reads = || {
        let is_read = |line: &&String| **line == format!("GET {TLS_SECRET}");
        world
            .fake
            .with(|state| state.log.iter().filter(is_read).count())
    };
    world.time.advance(Duration::from_secs(15));
    let before = reads();
    for _ in 0..5 {
        let _outcome = world.reconcile().await;
    }
    assert_eq!(reads(), before + 1);
}
