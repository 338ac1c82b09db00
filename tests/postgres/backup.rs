//! The recipes of docs/how-to/backup.md: what they back up can be restored.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use serde_json::Value;

use crate::pod::{Pod, World};

fn page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/how-to/backup.md");
    fs::read_to_string(path).unwrap()
}

/// The first block of code of this language.
fn block(language: &str) -> String {
    let page = page();
    let (_, rest) = page.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

/// The container of the CronJob.
fn job() -> Value {
    let job: Value = serde_saphyr::from_str(&block("yaml")).unwrap();
    let _: k8s_openapi::api::batch::v1::CronJob = serde_json::from_value(job.clone()).unwrap();
    job.pointer("/spec/jobTemplate/spec/template/spec/containers/0")
        .unwrap()
        .clone()
}

#[test]
fn dump_of_the_cron_job_is_restored_in_a_new_cluster() {
    let world = World::new();
    let primary = Pod::new(&world, 0).prepared().start();
    primary.until_ready();
    let uri = world.uri(&primary);
    primary
        .psql(
            &uri,
            "CREATE TABLE orders (n int PRIMARY KEY); INSERT INTO orders VALUES (42)",
        )
        .unwrap();
    let job = job();
    let folder = primary.path("/tmp").join("backup");
    primary.new_folder(&folder);
    let command = job["command"].as_array().unwrap();
    let words: Vec<&str> = command.iter().map(|word| word.as_str().unwrap()).collect();
    let folder_text = folder.display().to_string();
    let environment = [("BACKUP_DIR", folder_text.as_str()), ("URI", uri.as_str())];
    primary.run(&words, &environment).unwrap();
    // A server that is away leaves no dump.
    let away = [
        ("BACKUP_DIR", folder_text.as_str()),
        ("URI", "postgresql://app@127.0.0.1:1/app"),
    ];
    primary.run(&words, &away).unwrap_err();
    let files = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let dumps: Vec<String> = files.filter(|name| name.ends_with(".dump")).collect();
    assert_eq!(dumps.len(), 1, "{dumps:?}");

    let other = World::new();
    let next = Pod::new(&other, 0).prepared().start();
    next.until_ready();
    let restore = block("sh").trim().replace(
        "orders-20260101T031500Z.dump",
        &format!("{folder_text}/{}", dumps[0]),
    );
    let to = other.uri(&next);
    // Both Pods belong to the same user here.
    primary
        .run(&["sh", "-ec", &restore], &[("URI", to.as_str())])
        .unwrap();
    assert_eq!(next.psql(&to, "SELECT n FROM orders").as_deref(), Ok("42"));
}

/// The steps on the page, with the volume of a primary.
#[test]
fn copy_of_the_primarys_volume_starts_under_another_secret() {
    let world = World::new();
    let mut primary = Pod::new(&world, 0).prepared().start();
    primary.until_ready();
    primary
        .psql(
            &world.uri(&primary),
            "CREATE TABLE orders (n int); INSERT INTO orders VALUES (42)",
        )
        .unwrap();
    // After a crash, the next server only waits longer: `hazards` has that.
    primary.stop();
    let mut other = World::new();
    other.set_secret("password", "another");
    let restored = Pod::new(&other, 0);
    restored.take_volume_of(&primary);
    let output = restored.prepare().unwrap();
    assert!(!output.contains("beginning again"), "{output}");
    let restored = restored.start();
    restored.until_ready();
    let uri = format!("postgresql://app:another@127.0.0.1:{}/app", restored.port);
    assert_eq!(
        restored.psql(&uri, "SELECT n FROM orders").as_deref(),
        Ok("42")
    );
    let replica = Pod::new(&other, 1).prepared().start();
    replica.until_ready();
}
