//! The shard table: rules of its CRD, which apply to every user, and the policy for the operator's credentials.

use kube::Client;
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};
use testbed::fleet::repository;

use crate::support::*;

const KIND: &str = "ShardTable";

async fn replace(client: &Client, mut object: Value, at: Option<String>) -> Answer {
    let api = api(client, KIND);
    let now = api.get(TABLE).await.unwrap();
    let version = at.or(now.metadata.resource_version.clone());
    object["metadata"]["resourceVersion"] = json!(version);
    object["metadata"]["labels"] = json!(now.metadata.labels);
    let object = serde_json::from_value(object).unwrap();
    let answer = api.replace(TABLE, &PostParams::default(), &object).await;
    answer
        .map(|object| object.metadata)
        .map_err(|error| error.to_string())
}

fn entries(entries: Value) -> Value {
    json!({"spec": {"shards": 32, "entries": entries}})
}

#[tokio::test]
async fn shard_table_only_moves_forward() {
    let control_plane = control_plane().await;
    let world = World::new(&control_plane).await;
    a_new_table_is_vacant(&world).await;
    entries_only_rise(&world).await;
    a_replica_writes_its_own_entries(&world).await;
    the_table_keeps_its_metadata(&world).await;
    conversion_is_atomic(&world).await;
    two_hundred_and_fifty_six_entries_work(&world).await;
    its_deletion_is_guarded(&world).await;
    let refused = refusals(&world, "databasecluster-fence-table").await;
    assert!(refused >= 12.0, "{refused} refusals");
}

async fn a_new_table_is_vacant(world: &World<'_>) {
    let named = |name: &str, mut table: Value| {
        table["metadata"]["name"] = json!(name);
        table
    };
    for (what, change, why) in [
        (
            "a holder",
            json!({"epoch": 0, "holder": "alpha", "incarnation": "i"}),
            "must be vacant",
        ),
        (
            "an incarnation",
            json!({"epoch": 0, "holder": "", "incarnation": "i"}),
            "must be vacant",
        ),
        (
            "a negative epoch",
            json!({"epoch": -1, "holder": "", "incarnation": ""}),
            "greater than or equal to 0",
        ),
        (
            "an epoch too high",
            json!({"epoch": EPOCH_MAX + 1, "holder": "", "incarnation": ""}),
            "less than or equal",
        ),
        (
            "no incarnation",
            json!({"epoch": 0, "holder": ""}),
            "Required value",
        ),
        (
            "a long holder",
            json!({"epoch": 0, "holder": "h".repeat(254), "incarnation": ""}),
            "may not be more than 253",
        ),
        (
            "a long incarnation",
            json!({"epoch": 0, "holder": "", "incarnation": "h".repeat(65)}),
            "may not be more than 64",
        ),
    ] {
        let mut object = named("new", table(4, 0));
        object["spec"]["entries"]["002"] = change;
        invalid(what, create(&world.admin, object).await, why);
    }
    for (shards, why) in [
        (0, "greater than or equal to 1"),
        (3, "power of two"),
        (512, "less than or equal to 256"),
        (8, "exactly the keys"),
        (2, "exactly the keys"),
    ] {
        let mut object = named("new", table(4, 0));
        object["spec"]["shards"] = json!(shards);
        invalid(
            &format!("{shards} shards"),
            create(&world.admin, object).await,
            why,
        );
    }
    for key in ["4", "004", "0004", "+03", "-03", "0x3", "3", "a", "٠٠٣", ""] {
        let mut object = named("new", table(4, 0));
        let entries = object["spec"]["entries"].as_object_mut().unwrap();
        let third = entries.remove("003").unwrap();
        entries.insert(key.to_owned(), third);
        invalid(
            &format!("key {key:?}"),
            create(&world.admin, object).await,
            "",
        );
    }
    let other = named("other", table(4, 0));
    refused(
        "another name",
        create(&world.alpha, other).await,
        "writes no ShardTable but",
    );
}

async fn entries_only_rise(world: &World<'_>) {
    let admin = async |change: Value| merge(&world.admin, KIND, TABLE, entries(change)).await;
    let stays = "an entry must stay, or get a higher epoch";
    for (what, change, why) in [
        ("a lower epoch", json!({"000": entry(4, "alpha")}), stays),
        ("another holder", json!({"000": entry(5, "beta")}), stays),
        ("no holder", json!({"000": entry(5, "")}), stays),
        (
            "another incarnation",
            json!({"000": {"incarnation": "alpha-2"}}),
            stays,
        ),
        ("no entry", json!({"000": null}), "exactly the keys"),
        (
            "one entry too many",
            json!({"032": entry(1, "alpha")}),
            "exactly the keys",
        ),
        (
            "an entry under another key",
            json!({"000": null, "032": entry(6, "alpha")}),
            stays,
        ),
        (
            "a wild epoch",
            json!({"000": entry(5 + (1 << 20) + 1, "alpha")}),
            stays,
        ),
        (
            "one bad entry of two",
            json!({"000": entry(7, "alpha"), "001": entry(2, "beta")}),
            stays,
        ),
    ] {
        invalid(what, admin(change).await, why);
    }
    let late = json!({"spec": {"shards": 64, "entries": {"000": entry(9, "alpha")}}});
    invalid(
        "a late patch",
        merge(&world.admin, KIND, TABLE, late).await,
        "exactly the keys",
    );
    let furthest = json!({"010": entry(1 << 20, "gamma")});
    let_through("the furthest raise", admin(furthest).await);
    let_through(
        "the same again",
        admin(json!({"010": entry(1 << 20, "gamma")})).await,
    );
    let elsewhere =
        json!({"metadata": {"uid": NOBODY}, "spec": {"entries": {"000": entry(9, "alpha")}}});
    let answer = merge(&world.alpha, KIND, TABLE, elsewhere).await;
    let error = answer.expect_err("a patch for another table was let through");
    assert!(
        error.contains("409") || error.contains("Precondition") || error.contains("immutable"),
        "{error}"
    );
}

async fn a_replica_writes_its_own_entries(world: &World<'_>) {
    let by =
        async |client: &Client, change: Value| merge(client, KIND, TABLE, entries(change)).await;
    let own = "writes only entries that name it";
    for (what, change) in [
        (
            "an entry for another replica",
            json!({"000": entry(6, "beta")}),
        ),
        ("an entry without a holder", json!({"000": entry(6, "")})),
        ("another's entry, taken away", json!({"001": entry(4, "")})),
        ("another's entry, raised", json!({"001": entry(4, "beta")})),
        (
            "its own and another's",
            json!({"002": entry(1, "alpha"), "003": entry(1, "beta")}),
        ),
    ] {
        refused(what, by(&world.alpha, change).await, own);
    }
    let_through(
        "its own, raised",
        by(&world.alpha, json!({"000": entry(6, "alpha")})).await,
    );
    let batch =
        json!({"002": entry(1, "alpha"), "003": entry(1, "alpha"), "004": entry(1, "alpha")});
    let_through("several at once", by(&world.alpha, batch).await);
    let_through(
        "taking over",
        by(&world.beta, json!({"003": entry(2, "beta")})).await,
    );
    let answer = by(&world.alpha, json!({"003": entry(1, "alpha")})).await;
    invalid("the former holder, late", answer, "an entry must stay");
}

async fn the_table_keeps_its_metadata(world: &World<'_>) {
    for (what, change, why) in [
        (
            "a label",
            json!({"labels": {"a": "b"}}),
            "does not change labels",
        ),
        (
            "an annotation",
            json!({"annotations": {"database.io/deletion": "allowed"}}),
            "does not change labels",
        ),
        (
            "a finalizer",
            json!({"finalizers": ["a.io/b"]}),
            "neither finalizers nor owners",
        ),
        (
            "an owner",
            json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": NOBODY}]}),
            "neither finalizers nor owners",
        ),
    ] {
        let change = json!({"metadata": change, "spec": {"entries": {"000": entry(7, "alpha")}}});
        refused(what, merge(&world.alpha, KIND, TABLE, change).await, why);
    }
}

async fn conversion_is_atomic(world: &World<'_>) {
    let highest = 1 << 20;
    let whole = "a change of shards must set every entry";
    for (what, object) in [
        ("a low epoch", table(64, highest)),
        ("a wild epoch", table(64, 2 * highest + 1)),
        ("64 shards at epoch 0", table(64, 0)),
    ] {
        invalid(what, replace(&world.admin, object, None).await, whole);
    }
    let mut held = table(64, highest + 1);
    held["spec"]["entries"]["000"] = entry(highest + 1, "alpha");
    invalid("a holder", replace(&world.alpha, held, None).await, whole);
    let mut one_low = table(64, highest + 1);
    one_low["spec"]["entries"]["063"] = entry(highest, "");
    invalid(
        "one low epoch",
        replace(&world.alpha, one_low, None).await,
        whole,
    );
    let before = api(&world.admin, KIND).get(TABLE).await.unwrap();
    let_through(
        "to 64",
        replace(&world.beta, table(64, highest + 1), None).await,
    );
    let again = replace(
        &world.alpha,
        table(64, highest + 1),
        before.metadata.resource_version,
    )
    .await;
    let error = again.expect_err("a conversion of an old version was let through");
    assert!(
        error.contains("409") || error.contains("modified"),
        "{error}"
    );
    // Late patches for 32 shards.
    let late = entries(json!({"000": entry(highest + 2, "alpha")}));
    invalid(
        "a late patch",
        merge(&world.alpha, KIND, TABLE, late).await,
        "",
    );
    let_through(
        "a new entry",
        write_entry(&world.alpha, 64, "000", highest + 2, "alpha").await,
    );
    invalid(
        "back to 32, too low",
        replace(&world.alpha, table(32, highest + 2), None).await,
        whole,
    );
    let_through(
        "back to 32",
        replace(&world.alpha, table(32, highest + 3), None).await,
    );
}

async fn two_hundred_and_fifty_six_entries_work(world: &World<'_>) {
    let epoch = (1 << 20) + 4;
    let_through(
        "256 shards",
        replace(&world.alpha, table(256, epoch), None).await,
    );
    let all: serde_json::Map<String, Value> = (0..256)
        .map(|shard| (format!("{shard:03}"), entry(epoch + 1, "alpha")))
        .collect();
    let change = json!({"spec": {"shards": 256, "entries": all}});
    let_through(
        "all at once",
        merge(&world.alpha, KIND, TABLE, change).await,
    );
    let_through(
        "one",
        write_entry(&world.alpha, 256, "255", epoch + 2, "alpha").await,
    );
    let answer = write_entry(&world.alpha, 256, "255", epoch + 3, "beta").await;
    refused(
        "one for another replica",
        answer,
        "writes only entries that name it",
    );
    invalid(
        "one too low",
        write_entry(&world.alpha, 256, "255", epoch, "alpha").await,
        "an entry must stay",
    );
    // As long as names can be.
    let long = "h".repeat(253);
    let wide: serde_json::Map<String, Value> = (0..256)
        .map(|shard| {
            let wide = json!({"epoch": epoch + 5, "holder": long, "incarnation": "i".repeat(64)});
            (format!("{shard:03}"), wide)
        })
        .collect();
    let change = json!({"spec": {"entries": wide}});
    let_through(
        "the longest names",
        merge(&world.admin, KIND, TABLE, change).await,
    );
    let_through(
        "a conversion of them",
        replace(&world.alpha, table(128, epoch + 6), None).await,
    );
}

async fn its_deletion_is_guarded(world: &World<'_>) {
    let tables = api(&world.alpha, KIND);
    let answer = tables.delete(TABLE, &DeleteParams::default()).await;
    let answer = answer.map(drop).map_err(|error| error.to_string());
    refused(
        "deletion by a replica",
        answer,
        "never deletes the shard table",
    );

    let guard = repository()
        .join("deploy/base/guard.yaml")
        .display()
        .to_string();
    world
        .control_plane
        .run_kubectl(&["apply", "-f", &guard])
        .await
        .unwrap();
    let tables = api(&world.admin, KIND);
    testbed::wait_for("the guard to be in force", PATIENCE, || async {
        let params = DeleteParams {
            dry_run: true,
            ..DeleteParams::default()
        };
        let answer = tables.delete(TABLE, &params).await;
        Ok(testbed::Progress::when(answer.is_err(), (), || {
            "it is not".into()
        }))
    })
    .await
    .unwrap();
    for crd in ["shardtables.database.io", "databaseclusters.database.io"] {
        let answer = world
            .control_plane
            .run_kubectl(&["delete", "crd", crd, "--dry-run=server"])
            .await;
        let error = answer
            .expect_err("the deletion of a kind was let through")
            .to_string();
        assert!(error.contains("database.io/deletion=allowed"), "{error}");
    }
    let answer = tables.delete(TABLE, &DeleteParams::default()).await;
    let answer = answer.map(drop).map_err(|error| error.to_string());
    refused(
        "deletion by an administrator",
        answer,
        "with all replicas stopped",
    );
    let allow = json!({"metadata": {"annotations": {"database.io/deletion": "allowed"}}});
    merge(&world.admin, KIND, TABLE, allow).await.unwrap();
    tables
        .delete(TABLE, &DeleteParams::default())
        .await
        .unwrap();

    let mut allowed = table(32, 0);
    allowed["metadata"]["annotations"] = json!({"database.io/deletion": "allowed"});
    let answer = create(&world.alpha, allowed).await;
    refused(
        "a table that may be deleted",
        answer,
        "does not allow the deletion",
    );
    let_through("a new table", create(&world.alpha, table(32, 0)).await);
}
