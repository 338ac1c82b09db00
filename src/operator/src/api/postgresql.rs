//! What a spec sets of PostgreSQL itself.
#![allow(
    unreachable_pub,
    reason = "KubeSchema derives a private copy of each struct"
)]

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::quantity;

/// Most parameters of a spec.
pub(crate) const PARAMETERS_MAX: usize = 64;
/// Longest value of a parameter, in bytes.
pub(crate) const VALUE_LENGTH_MAX: usize = 256;
/// Locale of a database if the spec does not set it.
pub(crate) const DEFAULT_LOCALE: &str = "C.UTF-8";
/// Encoding of a database if the spec does not set it.
pub(crate) const DEFAULT_ENCODING: &str = "UTF8";
/// Size of a segment of the write-ahead log if the spec does not set it, in MB.
pub(crate) const DEFAULT_WAL_SEGMENT_MB: u32 = 16;

/// A rule on names. A search for a text within a name is no option: the API server estimates its cost from the size of
/// a request.
macro_rules! name_rule {
    (names: $($name:literal),*; begin: $($begin:literal),*; end: $($end:literal),*) => {
        concat!(
            "self.all(k, k.size() <= 63"
            $(, " && k != '", $name, "'")*
            $(, " && !k.startsWith('", $begin, "')")*
            $(, " && !k.endsWith('", $end, "')")*,
            ")"
        )
    };
}

/// Names that the API server refuses. The operator refuses more, by a table of those that it accepts.
const NAMES: &str = name_rule!(
    names: "fsync", "full_page_writes", "zero_damaged_pages", "autovacuum", "track_counts", "listen_addresses", "port", "max_wal_senders", "hot_standby", "data_directory", "log_directory", "logging_collector", "log_destination", "synchronous_standby_names", "password_encryption";
    begin: "archive_", "recovery_", "primary_", "ssl", "unix_socket_", "include";
    end: "_command", "_library", "_libraries", "_file", "_library_path"
);
const NAMES_SAYS: &str = "the operator sets archive_*, recovery_*, primary_*, ssl*, unix_socket_*, listen_addresses, port, max_wal_senders, hot_standby, *_file, log_directory, log_destination, logging_collector, synchronous_standby_names and password_encryption; *_command, *_library, *_libraries and *_library_path run commands or load libraries; fsync, full_page_writes, zero_damaged_pages, autovacuum and track_counts can lose data; names have at most 63 characters: remove them. docs/reference/parameters.md lists what can be set";
/// Values stand between single quotes on one line of a file.
const VALUES: &str = r"self.all(k, string(self[k]).matches('^[ -&(-\\[\\]-~]+$'))";
const VALUES_SAYS: &str = "each value must be 1 to 256 characters of printable ASCII, without ' and \\: no line ends, no quotes around it";

/// A locale is an argument of initdb.
const LOCALE: &str = "self.matches('^[A-Za-z0-9_][A-Za-z0-9_.@-]*$')";
const ENCODING_NEEDS_LOCALE: &str =
    "!has(self.encoding) || self.encoding == 'UTF8' || has(self.locale)";

/// A rule that a field of initdb stays; with the value that it has when it is absent.
macro_rules! stays {
    ($field:literal, $default:literal) => {
        concat!(
            "(has(self.postgresql) && has(self.postgresql.initdb) && has(self.postgresql.initdb.", $field,
            ") ? self.postgresql.initdb.", $field, " : ", $default,
            ") == (has(oldSelf.postgresql) && has(oldSelf.postgresql.initdb) && has(oldSelf.postgresql.initdb.", $field,
            ") ? oldSelf.postgresql.initdb.", $field, " : ", $default, ")"
        )
    };
}

/// The arguments of initdb are in the data.
pub(super) const INITDB_IS_IMMUTABLE: &str = concat!(
    stays!("locale", "'C.UTF-8'"),
    " && ",
    stays!("encoding", "'UTF8'"),
    " && ",
    stays!("dataChecksums", "true"),
    " && ",
    stays!("walSegmentSizeMB", "16")
);
pub(super) const INITDB_SAYS: &str = "postgresql.initdb cannot be changed after creation: the data was created with it. Create another DatabaseCluster with the new values, and load a dump of this one";

/// Settings of PostgreSQL.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Postgresql {
    /// Parameters of PostgreSQL by name, for example `{work_mem: 16MB, max_connections: 200}`. A change is reloaded
    /// within about two minutes; a parameter that PostgreSQL reads at its start only, such as `max_connections`,
    /// restarts the instances one after the other, the primary last. docs/reference/parameters.md lists the parameters, what each
    /// needs, and the defaults.
    #[serde(
        default,
        deserialize_with = "quantity::texts",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    #[schemars(schema_with = "parameters")]
    #[x_kube(validation = Rule::new(NAMES).message(NAMES_SAYS))]
    #[x_kube(validation = Rule::new(VALUES).message(VALUES_SAYS))]
    pub parameters: BTreeMap<String, String>,

    /// Settings of initdb, which creates the database. They cannot be changed after creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initdb: Option<Initdb>,
}

/// Settings of initdb, which creates the database.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(ENCODING_NEEDS_LOCALE).message("another encoding than UTF8 needs a locale that has it, for example {encoding: LATIN1, locale: C}"))]
pub struct Initdb {
    /// Locale: order of texts, classes of characters, formats. `C.UTF-8` if it is not set, whose order never changes
    /// with the C library of the image. The image must have the locale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new(LOCALE).message("locale must be the name of a locale, for example C.UTF-8 or en_US.utf8"))]
    pub locale: Option<String>,

    /// Encoding of texts; `UTF8` if it is not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20), regex(pattern = "^[A-Za-z0-9_]+$"))]
    pub encoding: Option<String>,

    /// Whether data pages have checksums; `true` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_checksums: Option<bool>,

    /// Size of the files of the write-ahead log, in MB: a power of two, 16 if it is not set.
    #[serde(
        rename = "walSegmentSizeMB",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(range(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("self in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]").message("walSegmentSizeMB must be a power of two from 1 to 1024"))]
    pub wal_segment_size_mb: Option<i32>,
}

fn parameters(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": PARAMETERS_MAX,
        "additionalProperties": {
            "x-kubernetes-int-or-string": true,
            "nullable": false,
            "maxLength": VALUE_LENGTH_MAX,
        },
    })
}
