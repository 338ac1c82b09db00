//! Persistent failures that the object does not cause: what is reported, and how often.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

const STATUS: &str = "PATCH /apis/database.io/v1/namespaces/shop/databaseclusters/orders/status";
const DUE: ExpectedStatus = failing(false);
const EARLY: ExpectedStatus = failing(true);

fn webhook_is_down() -> Value {
    json!({
        "kind": "Status", "status": "Failure", "code": 500,
        "message": "Internal error occurred: failed calling webhook \"x.example.com\": connection refused",
    })
}

fn no_right() -> Value {
    json!({
        "kind": "Status", "status": "Failure", "code": 403,
        "message": "services is forbidden: User \"operator\" cannot patch resource \"services\"",
    })
}

impl World {
    /// The next request with this prefix gets this answer.
    fn refuse(&self, prefix: &str, answer: Value) {
        self.fake
            .with(|state| state.refusals.push((prefix.to_owned(), answer)));
    }

    /// A run in which the API server answers the first write of a Service like this.
    async fn fails(&self, backlog: &dyn Backlog, answer: Value) {
        self.refuse("PATCH /api/v1/namespaces/shop/services/", answer);
        let ended = self.reconcile_beside(backlog).await;
        assert!(matches!(ended, Err(Failure::Failed { .. })), "{ended:?}");
        self.fake.with(|state| state.refusals.clear());
    }

    fn status_writes(&self) -> usize {
        let requests = self.requests();
        requests.iter().filter(|line| *line == STATUS).count()
    }
}

#[tokio::test]
async fn new_failing_cluster_reports_the_failure_and_the_next_retry() {
    for (answer, expected, words) in [
        (
            webhook_is_down(),
            "ApiServerError",
            "failed calling webhook",
        ),
        (no_right(), "MissingRights", "cannot patch resource"),
    ] {
        let world = World::new();
        world.user_applies(json!({"image": "postgres:18"}));
        world.fails(&IDLE, answer.clone()).await;
        assert_eq!(world.status_writes(), 0, "it may pass by itself");
        world.fails(&DUE, answer.clone()).await;
        let (status, reason, message) = world.condition(ConditionType::Degraded);
        assert_eq!((status, reason.as_str()), (ConditionStatus::True, expected));
        assert!(message.contains(words), "{message}");
        let (_, at) = message.rsplit_once("tries again at ").unwrap();
        let at: jiff::Timestamp = at.parse().unwrap();
        let seconds = at.duration_since(jiff::Timestamp::now()).as_secs();
        assert!((27..=31).contains(&seconds), "in {seconds} s: {message}");
        assert_eq!(world.phase(), Phase::Degraded);
        let reported = world.notes();
        assert_eq!(reported.len(), 1, "{reported:?}");
        assert!(
            reported[0].starts_with("Warning DatabaseError"),
            "{reported:?}"
        );
        assert!(reported[0].contains(words), "{reported:?}");
        // It passes.
        world.reconcile().await.unwrap();
        world.set_pods(1, 1);
        world.reconcile().await.unwrap();
        assert_eq!(world.phase(), Phase::Ready);
    }
}

#[tokio::test]
async fn an_old_cluster_is_not_ready_for_a_generation_that_cannot_be_carried_out_but_available() {
    let world = World::with_ready_cluster(1).await;
    world.user_applies(json!({"image": "postgres:18", "replicas": 2}));
    for backlog in [&IDLE as &dyn Backlog, &DUE] {
        world.refuse(&format!("PATCH {BUDGET}"), webhook_is_down());
        world.reconcile_beside(backlog).await.unwrap_err();
    }
    let cluster = world.cluster();
    assert_eq!(cluster.status.observed_generation, cluster.generation);
    let (ready, reason, _) = world.condition(ConditionType::Ready);
    assert_eq!(
        (ready, reason.as_str()),
        (ConditionStatus::False, "ApiServerError")
    );
    let (available, reason, _) = world.condition(ConditionType::Available);
    assert_eq!(
        (available, reason.as_str()),
        (ConditionStatus::True, "PrimaryReady")
    );
}

#[tokio::test]
async fn repeated_reports_cause_no_extra_writes() {
    let world = World::new();
    world.user_applies(json!({"image": "postgres:18"}));
    world.fails(&DUE, webhook_is_down()).await;
    assert_eq!(world.status_writes(), 1);
    // The watch event of that write, and whatever else happens before the next retry.
    for _ in 0..20 {
        world.fails(&EARLY, webhook_is_down()).await;
    }
    assert_eq!(world.status_writes(), 0, "the next retry is unchanged");
    assert_eq!(world.notes().len(), 1);
}

#[tokio::test]
async fn unwritable_status_is_reported_in_events() {
    let world = World::new();
    world.user_applies(json!({"image": "postgres:18"}));
    for backlog in [&IDLE as &dyn Backlog, &DUE] {
        assert_eq!(world.notes(), Vec::<String>::new());
        world.refuse(STATUS, webhook_is_down());
        world.reconcile_beside(backlog).await.unwrap_err();
    }
    let reported = world.notes();
    let about = |note: &&String| note.contains("writing the status: ");
    assert!(reported.iter().any(|note| about(&note)), "{reported:?}");
}

#[tokio::test]
async fn failing_deletion_is_reported() {
    let world = World::with_ready_cluster(1).await;
    world.change(CLUSTER, |cluster| {
        cluster["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    });
    for backlog in [&IDLE as &dyn Backlog, &DUE] {
        world.refuse(&format!("DELETE {STATEFULSET}"), webhook_is_down());
        world.reconcile_beside(backlog).await.unwrap_err();
    }
    let (status, reason, message) = world.condition(ConditionType::Degraded);
    assert_eq!(
        (status, reason.as_str()),
        (ConditionStatus::True, "ApiServerError")
    );
    assert!(message.contains("failed calling webhook"), "{message}");
    assert_eq!(world.phase(), Phase::Terminating);
    world.reconcile().await.unwrap();
    let (status, ..) = world.condition(ConditionType::Degraded);
    assert_eq!(status, ConditionStatus::False, "it progresses");
}
