//! What PostgreSQL is configured with: the defaults of the operator, and the parameters of the spec over them.
//!
//! What a running server can reload is in the ConfigMap, and the rest in the Pod template, whose change restarts the
//! instances. What is in the template must depend on nothing but the memory and the parameters of the spec: a default
//! that follows from the size of the volume would restart a database whose volume grows.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::api::Initdb;
use crate::api::postgresql::{DEFAULT_ENCODING, DEFAULT_LOCALE, DEFAULT_WAL_SEGMENT_MB};
use crate::core::image;
use crate::core::observed::ClusterRecord;
use crate::core::parameters::{
    self, Applies, DEFAULT_MAX_CONNECTIONS, MAX_CONNECTIONS, SHARED_BUFFERS,
};

const MB: u64 = 1024 * 1024;
/// First version whose initdb turns checksums on by default.
const CHECKSUMS_BY_DEFAULT: u32 = 18;

/// Parameters that take effect when an instance starts, as the lines of a file.
pub(super) fn at_start(cluster: &ClusterRecord) -> String {
    let memory = parameters::memory_bytes(&cluster.spec);
    let defaults = BTreeMap::from([
        (MAX_CONNECTIONS, DEFAULT_MAX_CONNECTIONS.to_string()),
        (SHARED_BUFFERS, kilobytes((memory / 4).max(MB))),
    ]);
    lines(cluster, Applies::Restart, defaults)
}

/// Parameters that a running server reloads, as the lines of a file.
pub(super) fn reloaded(cluster: &ClusterRecord) -> String {
    let memory = parameters::memory_bytes(&cluster.spec);
    let volume = parameters::bytes(&cluster.spec.storage.size);
    let segment = u64::from(parameters::wal_segment_mb(&cluster.spec)) * MB;
    // The log may take a tenth of the volume between checkpoints, a tenth for replicas that are away, and a fifth for
    // replication slots.
    let log =
        |part: u64, most: u64| megabytes((volume / part).clamp(4 * segment, most.max(4 * segment)));
    let defaults = BTreeMap::from([
        ("checkpoint_completion_target", "0.9".to_owned()),
        ("effective_cache_size", kilobytes((memory / 4 * 3).max(MB))),
        ("log_line_prefix", "%m [%p] %q%u@%d/%a ".to_owned()),
        ("log_lock_waits", "on".to_owned()),
        (
            "maintenance_work_mem",
            kilobytes((memory / 16).clamp(MB, 2 * 1024 * MB)),
        ),
        ("max_slot_wal_keep_size", log(5, 64 * 1024 * MB)),
        ("max_wal_size", log(10, 8 * 1024 * MB)),
        ("random_page_cost", "1.1".to_owned()),
        ("wal_keep_size", log(10, 16 * 1024 * MB)),
    ]);
    lines(cluster, Applies::Reload, defaults)
}

fn kilobytes(bytes: u64) -> String {
    format!("{}kB", bytes / 1024)
}

fn megabytes(bytes: u64) -> String {
    format!("{}MB", bytes / MB)
}

/// Parameters of a cluster that are refused never get here.
fn lines(cluster: &ClusterRecord, applies: Applies, defaults: BTreeMap<&str, String>) -> String {
    let mut all = defaults;
    let fields = cluster.spec.customization.as_ref();
    let given = fields.and_then(|fields| fields.postgresql.as_ref());
    for (name, value) in given.iter().flat_map(|given| &given.parameters) {
        if let Some(parameter) = parameters::find(name).filter(|known| known.applies == applies) {
            all.insert(parameter.name, value.clone());
        }
    }
    let mut text = String::new();
    for (name, value) in all {
        // Writing to a String cannot fail.
        let _ok = writeln!(text, "{name} = '{value}'");
    }
    text
}

/// Arguments of initdb. The entry point of the image runs them through a shell: each is checked before.
pub(super) fn initdb_arguments(cluster: &ClusterRecord) -> String {
    let none = Initdb::default();
    let fields = cluster.spec.customization.as_ref();
    let given = fields.and_then(|fields| fields.postgresql.as_ref());
    let given = given.and_then(|postgresql| postgresql.initdb.as_ref());
    let given = given.unwrap_or(&none);
    let locale = given.locale.as_deref().unwrap_or(DEFAULT_LOCALE);
    let encoding = given.encoding.as_deref().unwrap_or(DEFAULT_ENCODING);
    let mut arguments =
        format!("--auth-host=scram-sha-256 --locale={locale} --encoding={encoding}");
    if given.data_checksums.unwrap_or(true) {
        arguments.push_str(" --data-checksums");
    } else if image::major(&cluster.spec.image)
        .is_some_and(|version| version >= CHECKSUMS_BY_DEFAULT)
    {
        arguments.push_str(" --no-data-checksums");
    }
    let segment = parameters::wal_segment_mb(&cluster.spec);
    if segment != DEFAULT_WAL_SEGMENT_MB {
        let _ok = write!(arguments, " --wal-segsize={segment}");
    }
    arguments
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::super::{config, sample, statefulset};
    use super::*;
    use crate::core::parameters::Parameter;

    fn with(fields: Value) -> ClusterRecord {
        let mut spec = json!({"image": "postgres:18"});
        let fields = fields.as_object().unwrap().clone();
        spec.as_object_mut().unwrap().extend(fields);
        ClusterRecord {
            spec: serde_json::from_value(spec).unwrap(),
            ..sample()
        }
    }

    fn set(given: Value) -> ClusterRecord {
        with(json!({"postgresql": {"parameters": given}}))
    }

    #[test]
    fn defaults_follow_from_memory_and_volume() {
        let small = with(json!({}));
        assert_eq!(
            at_start(&small),
            "max_connections = '100'\nshared_buffers = '131072kB'\n"
        );
        assert_eq!(
            reloaded(&small),
            "checkpoint_completion_target = '0.9'\n\
             effective_cache_size = '393216kB'\n\
             log_line_prefix = '%m [%p] %q%u@%d/%a '\n\
             log_lock_waits = 'on'\n\
             maintenance_work_mem = '32768kB'\n\
             max_slot_wal_keep_size = '204MB'\n\
             max_wal_size = '102MB'\n\
             random_page_cost = '1.1'\n\
             wal_keep_size = '102MB'\n"
        );
        let large =
            with(json!({"resources": {"cpu": 8, "memory": "64Gi"}, "storage": {"size": "2Ti"}}));
        assert!(at_start(&large).contains("shared_buffers = '16777216kB'\n"));
        for line in [
            "effective_cache_size = '50331648kB'\n",
            "maintenance_work_mem = '2097152kB'\n",
            "max_slot_wal_keep_size = '65536MB'\n",
            "max_wal_size = '8192MB'\n",
            "wal_keep_size = '16384MB'\n",
        ] {
            assert!(reloaded(&large).contains(line), "{line}");
        }
        // What is kept for others never takes more than two fifths of the volume.
        let tiny = with(json!({"storage": {"size": "16Mi"}}));
        assert!(reloaded(&tiny).contains("wal_keep_size = '64MB'\n"));
    }

    #[test]
    fn the_same_memory_in_other_words_restarts_nothing() {
        let text = |memory: Value| {
            let cluster = with(json!({"resources": {"cpu": 1, "memory": memory}}));
            at_start(&cluster)
        };
        assert_eq!(text(json!("1Gi")), text(json!(1_073_741_824)));
    }

    #[test]
    fn parameters_override_the_defaults_and_only_those_for_a_start_change_the_template() {
        let template = |cluster: &ClusterRecord| {
            statefulset::render(cluster, None)["spec"]["template"].clone()
        };
        let plain = with(json!({}));
        let reload = set(json!({"work_mem": "16MB", "random_page_cost": "4"}));
        assert_eq!(template(&reload), template(&plain));
        let text = config::render(&reload, true)["data"][config::PARAMETERS].clone();
        let text = text.as_str().unwrap();
        assert!(text.contains("work_mem = '16MB'\n") && text.contains("random_page_cost = '4'\n"));
        assert!(!text.contains("1.1"), "{text}");
        let grown = with(json!({"storage": {"size": "100Gi"}}));
        assert_eq!(template(&grown), template(&plain));
        let restart = set(json!({"max_connections": 200, "work_mem": "16MB"}));
        assert_ne!(template(&restart), template(&plain));
        assert!(at_start(&restart).starts_with("max_connections = '200'\nshared_buffers"));
        assert!(!reloaded(&restart).contains("max_connections"));
    }

    #[test]
    fn initdb_gets_what_the_spec_asks_for() {
        let arguments =
            |initdb: Value| initdb_arguments(&with(json!({"postgresql": {"initdb": initdb}})));
        let default = "--auth-host=scram-sha-256 --locale=C.UTF-8 --encoding=UTF8 --data-checksums";
        assert_eq!(initdb_arguments(&with(json!({}))), default);
        assert_eq!(arguments(json!({})), default);
        assert_eq!(
            arguments(
                json!({"locale": "C", "encoding": "LATIN1", "dataChecksums": false, "walSegmentSizeMB": 64})
            ),
            "--auth-host=scram-sha-256 --locale=C --encoding=LATIN1 --no-data-checksums --wal-segsize=64"
        );
        // Older versions do not know the opposite.
        let older = with(
            json!({"image": "postgres:17", "postgresql": {"initdb": {"dataChecksums": false}}}),
        );
        assert!(!initdb_arguments(&older).contains("checksums"));
    }

    /// Set UPDATE_GENERATED to write the table again.
    #[test]
    fn the_page_of_parameters_lists_the_table() {
        const MARKER: &str = "<!-- Generated from src/operator/src/core/parameters.rs: `UPDATE_GENERATED=1 cargo test --lib` -->\n";
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/reference/parameters.md"
        );
        let page = std::fs::read_to_string(path).unwrap();
        let (before, _) = page.split_once(MARKER).unwrap();
        let mut expected = format!(
            "{before}{MARKER}\n| parameter | values | applied by | PostgreSQL |\n| --- | --- | --- | --- |\n"
        );
        for parameter in parameters::PARAMETERS {
            let Parameter { name, kind, .. } = parameter;
            let applied = match parameter.applies {
                Applies::Reload => "reload",
                Applies::Restart => "restart",
            };
            let versions = match parameter.versions {
                (0, _) => String::new(),
                (since, _) => format!("{since} and newer"),
            };
            expected.push_str(&format!("| `{name}` | {kind} | {applied} | {versions} |\n"));
        }
        if std::env::var_os("UPDATE_GENERATED").is_some() {
            std::fs::write(path, &expected).unwrap();
        }
        let page = std::fs::read_to_string(path).unwrap();
        assert!(
            page == expected,
            "docs/reference/parameters.md differs from:\n{expected}"
        );
    }
}
