//! The parameters of PostgreSQL that a spec may set: which there are, what values they take, and how each is applied.
//!
//! Parameters are accepted by name from one table. A list of what is refused would have to grow with each version of
//! PostgreSQL, and what it lacks could run commands or lose data.

use std::fmt;

use super::digest::quantity_nano;
use super::image;
use super::lifecycle::{ConditionReason, reason};
use crate::api::postgresql::{DEFAULT_WAL_SEGMENT_MB, PARAMETERS_MAX, VALUE_LENGTH_MAX};
use crate::api::{DatabaseClusterSpec, Initdb};

/// Longest text that is repeated in a message, in bytes.
const REPEATED_LENGTH_MAX: usize = 64;
/// Name of PostgreSQL's parameter for the number of connections.
pub(crate) const MAX_CONNECTIONS: &str = "max_connections";
/// Connections of an instance if the spec does not set them.
pub(crate) const DEFAULT_MAX_CONNECTIONS: u32 = 100;
/// Name of PostgreSQL's parameter for its own cache.
pub(crate) const SHARED_BUFFERS: &str = "shared_buffers";
/// Most of an instance's memory that may be its own cache, in percent.
const SHARED_BUFFERS_PERCENT_MAX: f64 = 60.0;
/// Connections that PostgreSQL reserves for superusers by default.
const DEFAULT_RESERVED: f64 = 3.0;

/// How a changed parameter takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Applies {
    /// PostgreSQL reads it while it runs.
    Reload,
    /// The instances restart one after the other.
    Restart,
}

/// Unit of a number that has none, in bytes or milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Unit {
    Bytes(f64),
    Milliseconds(f64),
}

const B: Unit = Unit::Bytes(1.0);
const KB: Unit = Unit::Bytes(1024.0);
const PAGES: Unit = Unit::Bytes(8192.0);
const MB: Unit = Unit::Bytes(1_048_576.0);
const MS: Unit = Unit::Milliseconds(1.0);
const S: Unit = Unit::Milliseconds(1000.0);

/// The values of a parameter. Bounds are in its unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Bool,
    Integer(f64, f64),
    Real(f64, f64),
    Amount(Unit, f64, f64),
    OneOf(&'static [&'static str]),
    Text,
}

/// A parameter that a spec may set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parameter {
    pub(crate) name: &'static str,
    pub(crate) applies: Applies,
    pub(crate) kind: Kind,
    /// Major versions that have it.
    pub(crate) versions: (u32, u32),
}

const VERSION_MAX: u32 = u32::MAX;
/// Largest integer of PostgreSQL.
const INT_MAX: f64 = 2_147_483_647.0;
const COST_MAX: f64 = 1e10;

const fn reload(name: &'static str, kind: Kind) -> Parameter {
    Parameter {
        name,
        applies: Applies::Reload,
        kind,
        versions: (0, VERSION_MAX),
    }
}

const fn restart(name: &'static str, kind: Kind) -> Parameter {
    Parameter {
        applies: Applies::Restart,
        ..reload(name, kind)
    }
}

const fn since(major: u32, parameter: Parameter) -> Parameter {
    Parameter {
        versions: (major, parameter.versions.1),
        ..parameter
    }
}

use Kind::{Amount, Bool, Integer, OneOf, Real, Text};

const LOG_LEVELS: Kind = OneOf(&[
    "debug5", "debug4", "debug3", "debug2", "debug1", "info", "notice", "warning", "error", "log",
    "fatal", "panic",
]);

/// Sorted by name. Bounds are PostgreSQL's, or narrower where a value could keep a server from starting.
pub(crate) const PARAMETERS: &[Parameter] = &[
    reload("authentication_timeout", Amount(S, 1.0, 600.0)),
    reload("autovacuum_analyze_scale_factor", Real(0.0, 100.0)),
    reload("autovacuum_analyze_threshold", Integer(0.0, INT_MAX)),
    restart("autovacuum_freeze_max_age", Integer(100_000.0, 2e9)),
    restart("autovacuum_max_workers", Integer(1.0, 64.0)),
    restart(
        "autovacuum_multixact_freeze_max_age",
        Integer(10_000.0, 2e9),
    ),
    reload("autovacuum_naptime", Amount(S, 1.0, 2_147_483.0)),
    reload("autovacuum_vacuum_cost_delay", Amount(MS, -1.0, 100.0)),
    reload("autovacuum_vacuum_cost_limit", Integer(-1.0, 10_000.0)),
    since(
        13,
        reload("autovacuum_vacuum_insert_scale_factor", Real(0.0, 100.0)),
    ),
    since(
        13,
        reload("autovacuum_vacuum_insert_threshold", Integer(-1.0, INT_MAX)),
    ),
    since(
        18,
        reload("autovacuum_vacuum_max_threshold", Integer(-1.0, INT_MAX)),
    ),
    reload("autovacuum_vacuum_scale_factor", Real(0.0, 100.0)),
    reload("autovacuum_vacuum_threshold", Integer(0.0, INT_MAX)),
    reload("autovacuum_work_mem", Amount(KB, -1.0, INT_MAX)),
    reload("bgwriter_delay", Amount(MS, 10.0, 10_000.0)),
    reload("bgwriter_lru_maxpages", Integer(0.0, 1_073_741_823.0)),
    reload("bgwriter_lru_multiplier", Real(0.0, 10.0)),
    reload("checkpoint_completion_target", Real(0.0, 1.0)),
    reload("checkpoint_timeout", Amount(S, 30.0, 86_400.0)),
    reload("checkpoint_warning", Amount(S, 0.0, INT_MAX)),
    since(
        14,
        reload("client_connection_check_interval", Amount(MS, 0.0, INT_MAX)),
    ),
    reload("commit_delay", Integer(0.0, 100_000.0)),
    reload("commit_siblings", Integer(0.0, 1000.0)),
    since(
        14,
        reload("compute_query_id", OneOf(&["auto", "on", "off"])),
    ),
    reload("constraint_exclusion", OneOf(&["partition", "on", "off"])),
    reload("cpu_index_tuple_cost", Real(0.0, COST_MAX)),
    reload("cpu_operator_cost", Real(0.0, COST_MAX)),
    reload("cpu_tuple_cost", Real(0.0, COST_MAX)),
    reload("cursor_tuple_fraction", Real(0.0, 1.0)),
    reload("datestyle", Text),
    reload("deadlock_timeout", Amount(MS, 1.0, INT_MAX)),
    reload("default_statistics_target", Integer(1.0, 10_000.0)),
    reload("default_text_search_config", Text),
    since(
        14,
        reload("default_toast_compression", OneOf(&["pglz", "lz4"])),
    ),
    reload("effective_cache_size", Amount(PAGES, 1.0, INT_MAX)),
    reload("effective_io_concurrency", Integer(0.0, 1000.0)),
    since(14, reload("enable_async_append", Bool)),
    reload("enable_bitmapscan", Bool),
    reload("enable_gathermerge", Bool),
    reload("enable_hashagg", Bool),
    reload("enable_hashjoin", Bool),
    since(13, reload("enable_incremental_sort", Bool)),
    reload("enable_indexonlyscan", Bool),
    reload("enable_indexscan", Bool),
    reload("enable_material", Bool),
    since(14, reload("enable_memoize", Bool)),
    reload("enable_mergejoin", Bool),
    reload("enable_nestloop", Bool),
    reload("enable_parallel_append", Bool),
    reload("enable_parallel_hash", Bool),
    reload("enable_partition_pruning", Bool),
    reload("enable_partitionwise_aggregate", Bool),
    reload("enable_partitionwise_join", Bool),
    reload("enable_seqscan", Bool),
    reload("enable_sort", Bool),
    reload("enable_tidscan", Bool),
    reload("extra_float_digits", Integer(-15.0, 3.0)),
    reload("from_collapse_limit", Integer(1.0, INT_MAX)),
    reload("geqo", Bool),
    reload("geqo_threshold", Integer(2.0, INT_MAX)),
    reload("gin_fuzzy_search_limit", Integer(0.0, INT_MAX)),
    reload("gin_pending_list_limit", Amount(KB, 64.0, INT_MAX)),
    since(13, reload("hash_mem_multiplier", Real(1.0, 1000.0))),
    reload("hot_standby_feedback", Bool),
    restart("huge_pages", OneOf(&["off", "try"])),
    reload(
        "idle_in_transaction_session_timeout",
        Amount(MS, 0.0, INT_MAX),
    ),
    since(
        18,
        reload("idle_replication_slot_timeout", Amount(S, 0.0, INT_MAX)),
    ),
    since(14, reload("idle_session_timeout", Amount(MS, 0.0, INT_MAX))),
    reload(
        "intervalstyle",
        OneOf(&["postgres", "postgres_verbose", "sql_standard", "iso_8601"]),
    ),
    since(17, reload("io_combine_limit", Amount(PAGES, 1.0, 16.0))),
    since(18, restart("io_method", OneOf(&["worker", "sync"]))),
    since(18, reload("io_workers", Integer(1.0, 32.0))),
    reload("jit", Bool),
    reload("jit_above_cost", Real(-1.0, COST_MAX)),
    reload("jit_inline_above_cost", Real(-1.0, COST_MAX)),
    reload("jit_optimize_above_cost", Real(-1.0, COST_MAX)),
    reload("join_collapse_limit", Integer(1.0, INT_MAX)),
    reload("lock_timeout", Amount(MS, 0.0, INT_MAX)),
    reload("log_autovacuum_min_duration", Amount(MS, -1.0, INT_MAX)),
    reload("log_checkpoints", Bool),
    reload("log_connections", Bool),
    reload("log_disconnections", Bool),
    reload("log_duration", Bool),
    reload(
        "log_error_verbosity",
        OneOf(&["terse", "default", "verbose"]),
    ),
    reload("log_line_prefix", Text),
    reload("log_lock_waits", Bool),
    since(
        13,
        reload("log_min_duration_sample", Amount(MS, -1.0, INT_MAX)),
    ),
    reload("log_min_duration_statement", Amount(MS, -1.0, INT_MAX)),
    reload("log_min_error_statement", LOG_LEVELS),
    reload("log_min_messages", LOG_LEVELS),
    since(
        13,
        reload("log_parameter_max_length", Amount(B, -1.0, 1_073_741_823.0)),
    ),
    since(
        13,
        reload(
            "log_parameter_max_length_on_error",
            Amount(B, -1.0, 1_073_741_823.0),
        ),
    ),
    since(14, reload("log_recovery_conflict_waits", Bool)),
    reload("log_replication_commands", Bool),
    since(
        15,
        reload("log_startup_progress_interval", Amount(MS, 0.0, INT_MAX)),
    ),
    reload("log_statement", OneOf(&["none", "ddl", "mod", "all"])),
    since(13, reload("log_statement_sample_rate", Real(0.0, 1.0))),
    reload("log_temp_files", Amount(KB, -1.0, INT_MAX)),
    reload("log_timezone", Text),
    reload("log_transaction_sample_rate", Real(0.0, 1.0)),
    since(
        13,
        reload("logical_decoding_work_mem", Amount(KB, 64.0, INT_MAX)),
    ),
    since(
        13,
        reload("maintenance_io_concurrency", Integer(0.0, 1000.0)),
    ),
    reload("maintenance_work_mem", Amount(KB, 1024.0, INT_MAX)),
    restart(MAX_CONNECTIONS, Integer(10.0, 10_000.0)),
    restart("max_files_per_process", Integer(64.0, 1_000_000.0)),
    restart("max_locks_per_transaction", Integer(10.0, 10_000.0)),
    restart("max_logical_replication_workers", Integer(0.0, 1000.0)),
    since(
        17,
        restart("max_notify_queue_pages", Integer(64.0, INT_MAX)),
    ),
    reload("max_parallel_maintenance_workers", Integer(0.0, 1024.0)),
    reload("max_parallel_workers", Integer(0.0, 1024.0)),
    reload("max_parallel_workers_per_gather", Integer(0.0, 1024.0)),
    restart("max_pred_locks_per_transaction", Integer(10.0, 10_000.0)),
    restart("max_prepared_transactions", Integer(0.0, 10_000.0)),
    restart("max_replication_slots", Integer(1.0, 1000.0)),
    since(
        13,
        reload("max_slot_wal_keep_size", Amount(MB, 16.0, INT_MAX)),
    ),
    reload("max_standby_streaming_delay", Amount(MS, -1.0, INT_MAX)),
    reload("max_sync_workers_per_subscription", Integer(0.0, 1000.0)),
    reload("max_wal_size", Amount(MB, 2.0, INT_MAX)),
    restart("max_worker_processes", Integer(1.0, 1000.0)),
    since(
        14,
        restart("min_dynamic_shared_memory", Amount(MB, 0.0, 1_048_576.0)),
    ),
    reload(
        "min_parallel_index_scan_size",
        Amount(PAGES, 0.0, 715_827_882.0),
    ),
    reload(
        "min_parallel_table_scan_size",
        Amount(PAGES, 0.0, 715_827_882.0),
    ),
    reload("min_wal_size", Amount(MB, 2.0, INT_MAX)),
    reload("parallel_leader_participation", Bool),
    reload("parallel_setup_cost", Real(0.0, COST_MAX)),
    reload("parallel_tuple_cost", Real(0.0, COST_MAX)),
    reload(
        "plan_cache_mode",
        OneOf(&["auto", "force_generic_plan", "force_custom_plan"]),
    ),
    reload("random_page_cost", Real(0.0, COST_MAX)),
    since(16, restart("reserved_connections", Integer(0.0, 1000.0))),
    reload("search_path", Text),
    reload("seq_page_cost", Real(0.0, COST_MAX)),
    restart(SHARED_BUFFERS, Amount(PAGES, 16.0, 1_073_741_823.0)),
    reload("statement_timeout", Amount(MS, 0.0, INT_MAX)),
    since(17, reload("summarize_wal", Bool)),
    restart("superuser_reserved_connections", Integer(3.0, 100.0)),
    reload(
        "synchronous_commit",
        OneOf(&["off", "local", "remote_write", "on", "remote_apply"]),
    ),
    reload("tcp_keepalives_count", Integer(0.0, INT_MAX)),
    reload("tcp_keepalives_idle", Amount(S, 0.0, INT_MAX)),
    reload("tcp_keepalives_interval", Amount(S, 0.0, INT_MAX)),
    reload("tcp_user_timeout", Amount(MS, 0.0, INT_MAX)),
    reload("temp_buffers", Amount(PAGES, 100.0, 1_073_741_823.0)),
    reload("temp_file_limit", Amount(KB, -1.0, INT_MAX)),
    reload("timezone", Text),
    restart("track_activity_query_size", Amount(B, 100.0, 1_048_576.0)),
    restart("track_commit_timestamp", Bool),
    reload("track_functions", OneOf(&["none", "pl", "all"])),
    reload("track_io_timing", Bool),
    since(14, reload("track_wal_io_timing", Bool)),
    since(
        16,
        reload("vacuum_buffer_usage_limit", Amount(KB, 0.0, 16_777_216.0)),
    ),
    reload("vacuum_cost_delay", Amount(MS, 0.0, 100.0)),
    reload("vacuum_cost_limit", Integer(1.0, 10_000.0)),
    reload("vacuum_cost_page_dirty", Integer(0.0, 10_000.0)),
    reload("vacuum_cost_page_hit", Integer(0.0, 10_000.0)),
    reload("vacuum_cost_page_miss", Integer(0.0, 10_000.0)),
    since(
        14,
        reload("vacuum_failsafe_age", Integer(0.0, 2_100_000_000.0)),
    ),
    reload("vacuum_freeze_min_age", Integer(0.0, 1e9)),
    reload("vacuum_freeze_table_age", Integer(0.0, 2e9)),
    since(
        14,
        reload(
            "vacuum_multixact_failsafe_age",
            Integer(0.0, 2_100_000_000.0),
        ),
    ),
    reload("vacuum_multixact_freeze_min_age", Integer(0.0, 1e9)),
    reload("vacuum_multixact_freeze_table_age", Integer(0.0, 2e9)),
    restart("wal_buffers", Amount(PAGES, -1.0, 131_072.0)),
    reload(
        "wal_compression",
        OneOf(&["off", "on", "pglz", "lz4", "zstd"]),
    ),
    since(13, reload("wal_keep_size", Amount(MB, 0.0, INT_MAX))),
    restart("wal_level", OneOf(&["replica", "logical"])),
    restart("wal_log_hints", Bool),
    reload("wal_receiver_status_interval", Amount(S, 0.0, 2_147_483.0)),
    reload("wal_receiver_timeout", Amount(MS, 0.0, INT_MAX)),
    reload("wal_sender_timeout", Amount(MS, 0.0, INT_MAX)),
    reload("wal_writer_delay", Amount(MS, 1.0, 10_000.0)),
    reload("work_mem", Amount(KB, 64.0, INT_MAX)),
];

/// Names, beginnings and endings (with `*`) of parameters that are refused for a reason of their own.
const REFUSED: &[(&str, &[&str])] = &[
    (
        "the operator sets it",
        &[
            "listen_addresses",
            "port",
            "data_directory",
            "config_file",
            "hba_file",
            "ident_file",
            "external_pid_file",
            "unix_socket_*",
            "max_wal_senders",
            "hot_standby",
            "primary_*",
            "recovery_*",
            "promote_*",
            "restore_command",
            "archive_*",
            "cluster_name",
            "synchronous_standby_names",
            "password_encryption",
            "logging_collector",
            "log_destination",
            "log_directory",
            "log_filename",
            "log_file_mode",
            "log_rotation_*",
            "ssl*",
            "krb_*",
            "gss_*",
            "oauth_*",
        ],
    ),
    (
        "it makes the server run a command or load a library",
        &[
            "*_command",
            "*_library",
            "*_libraries",
            "*_provider",
            "*_library_path",
            "extension_*",
            "include*",
        ],
    ),
    (
        "it can lose data, or hide that data is lost",
        &[
            "fsync",
            "full_page_writes",
            "wal_sync_method",
            "zero_damaged_pages",
            "ignore_*",
            "data_sync_retry",
            "autovacuum",
            "track_counts",
            "allow_*",
            "debug_*",
            "wal_consistency_checking",
        ],
    ),
    (
        "replicas and the operator's own sessions would fail with it: set it for a role (ALTER ROLE app SET …)",
        &[
            "default_transaction_*",
            "transaction_*",
            "session_replication_role",
            "row_security",
        ],
    ),
    ("parameters of extensions are not supported yet", &["*.*"]),
];

/// The parameter of a name, if a spec may set it.
#[must_use]
pub(crate) fn find(name: &str) -> Option<&'static Parameter> {
    PARAMETERS.iter().find(|known| known.name == name)
}

/// Why this spec cannot be applied; none if it can. What it says depends on the spec alone.
#[must_use]
pub(crate) fn refuse(spec: &DatabaseClusterSpec) -> Option<ConditionReason> {
    let given = spec.customization.as_ref()?.postgresql.as_ref()?;
    let problem = match &given.initdb {
        Some(initdb) => refuse_initdb(initdb),
        None => None,
    };
    let problem = problem.or_else(|| {
        if given.parameters.len() > PARAMETERS_MAX {
            return Some(format!(
                "spec.postgresql.parameters has more than {PARAMETERS_MAX} entries: remove some"
            ));
        }
        let version = image::major(&spec.image);
        let wrong = given
            .parameters
            .iter()
            .find_map(|(name, value)| refuse_parameter(name, value, version));
        wrong.or_else(|| refuse_together(spec))
    })?;
    let message = format!("{problem}. Nothing is changed until then; the instances run on");
    Some(ConditionReason::new(reason::PARAMETERS, message))
}

/// The API server refuses all of this, unless its CRD is another one.
fn refuse_initdb(initdb: &Initdb) -> Option<String> {
    let is_plain = |text: &String| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_.@-".contains(c);
        !text.is_empty() && text.len() <= 63 && !text.starts_with('-') && text.chars().all(allowed)
    };
    if !initdb.locale.as_ref().is_none_or(is_plain) {
        return Some("spec.postgresql.initdb.locale is no name of a locale: set it to one, for example C.UTF-8 or en_US.utf8".to_owned());
    }
    if !initdb.encoding.as_ref().is_none_or(is_plain) {
        return Some("spec.postgresql.initdb.encoding is no name of an encoding: set it to one, for example UTF8".to_owned());
    }
    let size = initdb.wal_segment_size_mb.unwrap_or(1);
    let is_power = u32::try_from(size).is_ok_and(|size| size.is_power_of_two() && size <= 1024);
    (!is_power).then(|| {
        "spec.postgresql.initdb.walSegmentSizeMB must be a power of two from 1 to 1024".to_owned()
    })
}

fn refuse_parameter(name: &str, value: &str, version: Option<u32>) -> Option<String> {
    let path = format!("spec.postgresql.parameters.{}", repeat(name));
    let Some(parameter) = find(name) else {
        return Some(match refused_because(name) {
            Some(why) => format!("{path} is refused: {why}. Remove it"),
            None if name != name.to_lowercase() => {
                format!("{path} is refused: write the name in lower case")
            }
            None => format!(
                "{path} is no parameter that can be set: check its spelling in docs/reference/parameters.md, or remove it"
            ),
        });
    };
    let (since, until) = parameter.versions;
    if let Some(version) = version.filter(|version| !(since..=until).contains(version)) {
        return Some(format!(
            "{path} is refused: PostgreSQL {version}, which the image names, does not have it (PostgreSQL {since} and newer do). Remove it"
        ));
    }
    if value.len() > VALUE_LENGTH_MAX || !value.chars().all(is_allowed) {
        return Some(format!(
            "{path} must have at most {VALUE_LENGTH_MAX} characters, all of them printable ASCII and none of them ' or \\: correct it"
        ));
    }
    (!parameter.kind.accepts(value)).then(|| {
        format!(
            "{path} must be {}, not {:?}: correct it",
            parameter.kind,
            repeat(value)
        )
    })
}

/// What can stand between single quotes on one line of a file of PostgreSQL.
fn is_allowed(c: char) -> bool {
    (c.is_ascii_graphic() || c == ' ') && c != '\'' && c != '\\'
}

/// What each value allows and both together do not: PostgreSQL would not start.
fn refuse_together(spec: &DatabaseClusterSpec) -> Option<String> {
    let given = spec.customization.as_ref()?.postgresql.as_ref()?;
    let amount = |name: &str| {
        let value = given.parameters.get(name)?;
        find(name)?.kind.base(value)
    };
    let connections = amount(MAX_CONNECTIONS).unwrap_or(f64::from(DEFAULT_MAX_CONNECTIONS));
    let reserved = amount("superuser_reserved_connections").unwrap_or(DEFAULT_RESERVED)
        + amount("reserved_connections").unwrap_or(0.0);
    if reserved >= connections {
        return Some(format!(
            "spec.postgresql.parameters reserves {reserved} of {connections} connections: raise max_connections, or lower superuser_reserved_connections and reserved_connections"
        ));
    }
    let memory = memory_bytes(spec);
    let bytes = memory as f64;
    if let Some(buffers) = amount(SHARED_BUFFERS)
        && buffers > bytes * SHARED_BUFFERS_PERCENT_MAX / 100.0
    {
        return Some(format!(
            "spec.postgresql.parameters.shared_buffers is more than {SHARED_BUFFERS_PERCENT_MAX} % of the memory of an instance ({}): lower it, or raise the memory in spec.resources",
            spec.resources.memory()
        ));
    }
    let segment = f64::from(wal_segment_mb(spec)) * 1_048_576.0;
    for name in ["min_wal_size", "max_wal_size"] {
        if amount(name).is_some_and(|size| size < 2.0 * segment) {
            return Some(format!(
                "spec.postgresql.parameters.{name} must be at least two segments of the write-ahead log, {}MB: raise it",
                2 * wal_segment_mb(spec)
            ));
        }
    }
    None
}

/// The size of a segment of the write-ahead log, in MB.
#[must_use]
pub(crate) fn wal_segment_mb(spec: &DatabaseClusterSpec) -> u32 {
    let given = spec.customization.as_ref();
    let given = given.and_then(|fields| fields.postgresql.as_ref());
    let initdb = given.and_then(|postgresql| postgresql.initdb.as_ref());
    let size = initdb.and_then(|initdb| initdb.wal_segment_size_mb);
    size.and_then(|size| u32::try_from(size).ok())
        .unwrap_or(DEFAULT_WAL_SEGMENT_MB)
}

/// The memory of an instance, in bytes.
#[must_use]
pub(crate) fn memory_bytes(spec: &DatabaseClusterSpec) -> u64 {
    bytes(&spec.resources.memory())
}

/// A quantity in bytes; 0 if it is none.
#[must_use]
pub(crate) fn bytes(quantity: &str) -> u64 {
    let nano = quantity_nano(quantity).unwrap_or(0);
    u64::try_from(nano / 1_000_000_000).unwrap_or(u64::MAX)
}

fn refused_because(name: &str) -> Option<&'static str> {
    let matches = |pattern: &&str| match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(_), Some(_)) => name.contains('.'),
        (Some(ending), None) => name.ends_with(ending),
        (None, Some(beginning)) => name.starts_with(beginning),
        (None, None) => name == *pattern,
    };
    REFUSED
        .iter()
        .find(|(_, patterns)| patterns.iter().any(&matches))
        .map(|(why, _)| *why)
}

fn repeat(text: &str) -> &str {
    let end = text.floor_char_boundary(REPEATED_LENGTH_MAX);
    text.get(..end).unwrap_or_default()
}

impl Unit {
    /// The factor of a suffix relative to the unit of amounts, which is bytes or milliseconds.
    fn factor(self, suffix: &str) -> Option<f64> {
        match (self, suffix) {
            (Self::Bytes(unit) | Self::Milliseconds(unit), "") => Some(unit),
            (Self::Bytes(_), "B") => Some(1.0),
            (Self::Bytes(_), "kB") => Some(1024.0),
            (Self::Bytes(_), "MB") => Some(1_048_576.0),
            (Self::Bytes(_), "GB") => Some(1_073_741_824.0),
            (Self::Bytes(_), "TB") => Some(1_099_511_627_776.0),
            (Self::Milliseconds(_), "us") => Some(0.001),
            (Self::Milliseconds(_), "ms") => Some(1.0),
            (Self::Milliseconds(_), "s") => Some(1000.0),
            (Self::Milliseconds(_), "min") => Some(60_000.0),
            (Self::Milliseconds(_), "h") => Some(3_600_000.0),
            (Self::Milliseconds(_), "d") => Some(86_400_000.0),
            (Self::Bytes(_) | Self::Milliseconds(_), _) => None,
        }
    }

    const fn size(self) -> f64 {
        match self {
            Self::Bytes(unit) | Self::Milliseconds(unit) => unit,
        }
    }
}

/// A decimal number.
fn number(text: &str) -> Option<f64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_number = digits.starts_with(|c: char| c.is_ascii_digit())
        && digits.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.parse().ok().filter(|_| is_number)
}

impl Kind {
    fn accepts(self, value: &str) -> bool {
        match self {
            Bool => ["on", "off", "true", "false", "yes", "no", "1", "0"].contains(&value),
            OneOf(values) => values.contains(&value),
            Text => true,
            Integer(min, max) | Real(min, max) => self
                .base(value)
                .is_some_and(|found| (min..=max).contains(&found)),
            Amount(unit, min, max) => self.base(value).is_some_and(|found| {
                // PostgreSQL rounds to its unit.
                (min..=max).contains(&(found / unit.size()).round())
            }),
        }
    }

    /// The number that a value is, in bytes or milliseconds if it has a unit; none if it is no number.
    fn base(self, value: &str) -> Option<f64> {
        match self {
            Bool | OneOf(_) | Text => None,
            Integer(..) => number(value).filter(|_| !value.contains('.')),
            Real(..) => number(value),
            Amount(unit, ..) => {
                let end = value.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '-');
                let (amount, suffix) = value.split_at(end.unwrap_or(value.len()));
                Some(number(amount)? * unit.factor(suffix.trim_start())?)
            }
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bool => f.write_str("on or off, in quotes"),
            OneOf(values) => write!(f, "one of {}", values.join(", ")),
            Text => f.write_str("a text"),
            Integer(min, max) => write!(f, "an integer from {min} to {max}"),
            Real(min, max) => write!(f, "a number from {min} to {max}"),
            Amount(unit @ Unit::Bytes(size), min, max) => {
                let unit = match *size as u64 {
                    1 => "B",
                    1024 => "kB",
                    8192 => "8kB",
                    _ => unit_of(*unit),
                };
                write!(
                    f,
                    "a size from {min} to {max} (of {unit}), for example 64MB"
                )
            }
            Amount(unit, min, max) => {
                write!(
                    f,
                    "a time from {min} to {max} ({}), for example 30s",
                    unit_of(*unit)
                )
            }
        }
    }
}

fn unit_of(unit: Unit) -> &'static str {
    match unit {
        Unit::Bytes(_) => "MB",
        Unit::Milliseconds(size) if size > 1.0 => "s",
        Unit::Milliseconds(_) => "ms",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn spec(fields: Value) -> DatabaseClusterSpec {
        let mut spec = json!({"image": "postgres:17", "resources": {"memory": "1Gi"}});
        let fields = fields.as_object().unwrap().clone();
        spec.as_object_mut().unwrap().extend(fields);
        serde_json::from_value(spec).unwrap()
    }

    fn refused(parameters: Value) -> Option<String> {
        let why = refuse(&spec(json!({"postgresql": {"parameters": parameters}})))?;
        assert_eq!(why.reason, "InvalidParameters");
        Some(why.message)
    }

    #[test]
    fn the_table_is_sorted_and_holds_nothing_that_is_refused_for_a_reason() {
        for pair in PARAMETERS.windows(2) {
            assert!(pair[0].name < pair[1].name, "{}", pair[1].name);
        }
        for parameter in PARAMETERS {
            let name = parameter.name;
            assert!(
                name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{name}"
            );
            assert_eq!(refused_because(name), None, "{name}");
        }
    }

    #[test]
    fn usual_values_are_accepted() {
        for (name, value) in [
            ("work_mem", "16MB"),
            ("work_mem", "4096"),
            ("work_mem", "0.5 GB"),
            ("autovacuum_work_mem", "-1"),
            ("max_connections", "200"),
            ("random_page_cost", "1.1"),
            ("log_min_duration_statement", "250ms"),
            ("statement_timeout", "5min"),
            ("hot_standby_feedback", "on"),
            ("wal_level", "logical"),
            ("search_path", "\"$user\", public"),
            ("log_line_prefix", "%m [%p] %u@%d "),
            ("shared_buffers", "600MB"),
            ("superuser_reserved_connections", "10"),
        ] {
            assert_eq!(refused(json!({name: value})), None, "{name} = {value}");
        }
        assert_eq!(refused(json!({"max_connections": 200})), None);
        assert_eq!(refuse(&spec(json!({}))), None);
    }

    /// Name, value, and what the message contains.
    const WRONG: &[(&str, &str, &str)] = &[
        ("archive_command", "rm -rf /", "the operator sets it"),
        ("restore_command", "x", "the operator sets it"),
        ("ssl_passphrase_command", "x", "the operator sets it"),
        ("ssl_key_file", "/x", "the operator sets it"),
        ("hba_file", "/x", "the operator sets it"),
        ("data_directory", "/x", "the operator sets it"),
        ("log_directory", "/x", "the operator sets it"),
        ("max_wal_senders", "1", "the operator sets it"),
        ("listen_addresses", "", "the operator sets it"),
        ("shared_preload_libraries", "x", "load a library"),
        ("session_preload_libraries", "x", "load a library"),
        ("archive_library", "x", "the operator sets it"),
        ("dynamic_library_path", "x", "load a library"),
        ("include", "/etc/passwd", "load a library"),
        ("include_dir", "/etc", "load a library"),
        ("fsync", "off", "lose data"),
        ("full_page_writes", "off", "lose data"),
        ("autovacuum", "off", "lose data"),
        ("default_transaction_read_only", "on", "for a role"),
        (
            "pg_stat_statements.max",
            "1",
            "extensions are not supported yet",
        ),
        ("Work_Mem", "1MB", "lower case"),
        ("work_men", "1MB", "check its spelling"),
        ("", "1", "check its spelling"),
        ("transaction_timeout", "1", "for a role"),
        ("vacuum_defer_cleanup_age", "1", "check its spelling"),
        (
            "autovacuum_vacuum_max_threshold",
            "1",
            "PostgreSQL 17, which the image names",
        ),
        ("work_mem", "16QB", "must be a size"),
        ("work_mem", "16mb", "must be a size"),
        ("work_mem", "1kB", "must be a size"),
        ("work_mem", "", "must be a size"),
        ("work_mem", "NaN", "must be a size"),
        ("work_mem", "inf", "must be a size"),
        ("statement_timeout", "-1", "must be a time"),
        ("max_connections", "1e9", "must be an integer"),
        ("max_connections", "100.5", "must be an integer"),
        (
            "max_connections",
            "100000",
            "must be an integer from 10 to 10000",
        ),
        ("random_page_cost", "cheap", "must be a number"),
        ("hot_standby_feedback", "maybe", "must be on or off"),
        ("wal_level", "minimal", "must be one of replica, logical"),
        ("search_path", "a'\nfsync = 'off", "printable ASCII"),
        ("search_path", "a\nfsync = off", "printable ASCII"),
        ("search_path", "a\\", "printable ASCII"),
        ("timezone", "\u{e9}", "printable ASCII"),
        ("shared_buffers", "700MB", "60 % of the memory"),
        (
            "superuser_reserved_connections",
            "100",
            "of 100 connections",
        ),
        ("max_wal_size", "31MB", "two segments"),
    ];

    #[test]
    fn what_is_dangerous_wrong_or_unknown_is_refused_with_what_to_do() {
        for (name, value, says) in WRONG {
            let message = refused(json!({*name: value})).unwrap_or_default();
            assert!(message.contains(says), "{name} = {value}: {message}");
            assert!(message.contains("spec.postgresql.parameters"), "{message}");
            assert!(message.ends_with("the instances run on"), "{message}");
        }
        let long = "x".repeat(10_000);
        for given in [
            json!({long.as_str(): "1"}),
            json!({"search_path": long}),
            json!({"work_mem": long}),
        ] {
            let message = refused(given).unwrap();
            assert!(message.len() < 400, "{message}");
        }
        let many: serde_json::Map<String, Value> =
            (0..65).map(|n| (format!("p{n}"), json!("1"))).collect();
        assert!(
            refused(Value::Object(many))
                .unwrap()
                .contains("more than 64")
        );
    }

    #[test]
    fn versions_are_checked_as_far_as_the_image_names_one() {
        let refused = |image: &str| {
            let parameters = json!({"parameters": {"io_workers": "4"}});
            refuse(&spec(json!({"image": image, "postgresql": parameters}))).is_some()
        };
        assert!(refused("postgres:17.2"));
        assert!(!refused("postgres:18") && !refused("registry.test/postgres:17"));
    }

    #[test]
    fn arguments_of_initdb_are_no_shell() {
        for (initdb, says) in [
            (json!({"locale": "C; rm -rf /"}), "no name of a locale"),
            (json!({"locale": "$(id)"}), "no name of a locale"),
            (json!({"locale": "-c"}), "no name of a locale"),
            (
                json!({"encoding": "UTF8 --pwfile=/x"}),
                "no name of an encoding",
            ),
            (json!({"walSegmentSizeMB": 3}), "power of two"),
            (json!({"walSegmentSizeMB": -16}), "power of two"),
        ] {
            let why = refuse(&spec(json!({"postgresql": {"initdb": initdb}}))).unwrap();
            assert!(why.message.contains(says), "{initdb}: {}", why.message);
        }
        let good = json!({"locale": "de_DE.utf8@euro", "encoding": "UTF8", "walSegmentSizeMB": 1});
        assert_eq!(refuse(&spec(json!({"postgresql": {"initdb": good}}))), None);
    }
}
