//! The API server's audit log as an independent record: users, requests, times, outcomes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde::Deserialize;
use serde_json::Value;

use crate::error::{Context, Result};

/// One request that the API server completed.
#[derive(Clone, Debug, Default)]
pub struct AuditEvent {
    /// Who asked, such as `system:serviceaccount:NAMESPACE:NAME`.
    pub user: String,
    /// The Pod to which the user's token is bound.
    pub pod_name: Option<String>,
    /// The program that asked.
    pub user_agent: String,
    /// get, list, watch, create, update, patch, delete, …
    pub verb: String,
    /// The API group; empty for the core.
    pub group: String,
    /// The resource in plural; empty for paths that are no resource.
    pub resource: String,
    /// The subresource, or empty.
    pub subresource: String,
    /// The namespace, or empty.
    pub namespace: String,
    /// The object's name, or empty.
    pub name: String,
    /// The HTTP status that was answered.
    pub code: u16,
    /// Whether RBAC refused it (and not admission, which answers 403 too).
    pub refused_by_rbac: bool,
    /// When the request arrived, in microseconds since 1970.
    pub received_micros: i64,
    /// When it was answered in full, in microseconds since 1970.
    pub completed_micros: i64,
    /// The path and query.
    pub uri: String,
    /// The request's body, with [`crate::AuditLevel::RequestResponse`].
    pub request: Option<Value>,
    /// The response's body, with [`crate::AuditLevel::RequestResponse`].
    pub response: Option<Value>,
}

impl AuditEvent {
    /// Whether it was a write that the API server carried out.
    #[must_use]
    pub fn is_accepted_write(&self) -> bool {
        let write = matches!(
            self.verb.as_str(),
            "create" | "update" | "patch" | "delete" | "deletecollection"
        );
        write && (200..300).contains(&self.code) && !self.uri.contains("dryRun=")
    }

    /// `resource` or `resource/subresource`.
    #[must_use]
    pub fn full_resource(&self) -> String {
        match self.subresource.as_str() {
            "" if self.resource.is_empty() => {
                self.uri.split('?').next().unwrap_or_default().to_owned()
            }
            "" => self.resource.clone(),
            subresource => format!("{}/{subresource}", self.resource),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    user: RawUser,
    #[serde(default)]
    user_agent: String,
    verb: String,
    #[serde(default)]
    object_ref: RawReference,
    #[serde(default)]
    response_status: RawStatus,
    request_received_timestamp: MicroTime,
    stage_timestamp: MicroTime,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(rename = "requestURI", default)]
    request_uri: String,
    request_object: Option<Value>,
    response_object: Option<Value>,
}

#[derive(Default, Deserialize)]
struct RawUser {
    #[serde(default)]
    username: String,
    #[serde(default)]
    extra: BTreeMap<String, Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawReference {
    #[serde(default)]
    api_group: String,
    #[serde(default)]
    resource: String,
    #[serde(default)]
    subresource: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
}

#[derive(Default, Deserialize)]
struct RawStatus {
    #[serde(default)]
    code: u16,
}

impl From<Raw> for AuditEvent {
    fn from(raw: Raw) -> Self {
        let decision = raw.annotations.get("authorization.k8s.io/decision");
        let pod_name = raw.user.extra.get("authentication.kubernetes.io/pod-name");
        Self {
            pod_name: pod_name.and_then(|names| names.first().cloned()),
            user: raw.user.username,
            user_agent: raw.user_agent,
            verb: raw.verb,
            group: raw.object_ref.api_group,
            resource: raw.object_ref.resource,
            subresource: raw.object_ref.subresource,
            namespace: raw.object_ref.namespace,
            name: raw.object_ref.name,
            code: raw.response_status.code,
            refused_by_rbac: decision.is_some_and(|decision| decision == "forbid"),
            received_micros: raw.request_received_timestamp.0.as_microsecond(),
            completed_micros: raw.stage_timestamp.0.as_microsecond(),
            uri: raw.request_uri,
            request: raw.request_object,
            response: raw.response_object,
        }
    }
}

/// Reads the log piece by piece: each call of [`Reader::next_events`] gives what is new.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    offset: u64,
}

impl Reader {
    /// From the beginning of the log.
    #[must_use]
    pub fn from_start(path: PathBuf) -> Self {
        Self { path, offset: 0 }
    }

    /// From the present end of the log.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn from_end(path: PathBuf) -> Result<Self> {
        let offset = std::fs::metadata(&path)
            .context(format!("read {}", path.display()))?
            .len();
        Ok(Self { path, offset })
    }

    /// The events that were written since the last call.
    ///
    /// # Errors
    /// When the log cannot be read or parsed.
    pub fn next_events(&mut self) -> Result<Vec<AuditEvent>> {
        self.next_events_at_most(usize::MAX)
    }

    /// The next events, at most so many; none when there are no more.
    ///
    /// # Errors
    /// As [`Reader::next_events`].
    pub fn next_events_at_most(&mut self, count: usize) -> Result<Vec<AuditEvent>> {
        let what = || format!("read {}", self.path.display());
        let mut file = File::open(&self.path).context(what())?;
        file.seek(SeekFrom::Start(self.offset)).context(what())?;
        let mut reader = BufReader::new(file);
        let mut events = Vec::new();
        let mut line = String::new();
        // A line without its end is still being written: it is left for the next call.
        while events.len() < count
            && reader.read_line(&mut line).context(what())? > 0
            && line.ends_with('\n')
        {
            self.offset += line.len() as u64;
            events.push(parse(&line)?);
            line.clear();
        }
        Ok(events)
    }
}

fn parse(line: &str) -> Result<AuditEvent> {
    let raw: Raw = serde_json::from_str(line).context("understand a line of the audit log")?;
    Ok(raw.into())
}

/// Calls `each` with every event of a log, however long it is.
///
/// # Errors
/// When the log cannot be read or parsed.
pub fn for_each(path: &Path, mut each: impl FnMut(AuditEvent)) -> Result<()> {
    let what = || format!("read {}", path.display());
    for line in BufReader::new(File::open(path).context(what())?).lines() {
        let line = line.context(what())?;
        // The API server may have been killed in the middle of its last one.
        if let Ok(event) = parse(&line) {
            each(event);
        }
    }
    Ok(())
}

/// All events of a log.
///
/// # Errors
/// When the log cannot be read or parsed.
pub fn read(path: &Path) -> Result<Vec<AuditEvent>> {
    Reader::from_start(path.to_owned()).next_events()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use std::io::Write;

    const LINE: &str = r#"{"kind":"Event","stage":"ResponseComplete","requestURI":"/apis/apps/v1/namespaces/a/statefulsets/x-db/status?fieldManager=m","verb":"patch","user":{"username":"system:serviceaccount:s:o","extra":{"authentication.kubernetes.io/pod-name":["p1"]}},"userAgent":"op/1","objectRef":{"resource":"statefulsets","subresource":"status","namespace":"a","name":"x-db","apiGroup":"apps","apiVersion":"v1"},"responseStatus":{"metadata":{},"code":200},"requestReceivedTimestamp":"2026-01-02T03:04:05.000006Z","stageTimestamp":"2026-01-02T03:04:05.001007Z"}"#;

    #[test]
    fn audit_event_is_parsed() {
        let event = parse(LINE).unwrap();
        assert_eq!(
            (event.user.as_str(), event.pod_name.as_deref()),
            ("system:serviceaccount:s:o", Some("p1"))
        );
        assert_eq!(event.full_resource(), "statefulsets/status");
        assert_eq!(event.completed_micros - event.received_micros, 1_001);
        assert_eq!(event.received_micros % 1_000_000, 6);
        assert!(event.is_accepted_write());
    }

    #[test]
    fn rejected_and_dry_run_requests_are_not_accepted_writes() {
        let refused = parse(&LINE.replace("\"code\":200", "\"code\":409")).unwrap();
        let dry = parse(&LINE.replace("?fieldManager=m", "?dryRun=All")).unwrap();
        assert!(!refused.is_accepted_write() && !dry.is_accepted_write());
    }

    #[test]
    fn partial_line_is_read_later() {
        let path = std::env::temp_dir().join(format!("audit-{}.log", std::process::id()));
        let mut file = File::create(&path).unwrap();
        write!(file, "{LINE}\n{}", &LINE[..40]).unwrap();
        let mut reader = Reader::from_start(path.clone());
        assert_eq!(reader.next_events().unwrap().len(), 1);
        writeln!(file, "{}", &LINE[40..]).unwrap();
        assert_eq!(reader.next_events().unwrap().len(), 1);
        assert_eq!(reader.next_events().unwrap().len(), 0);
        std::fs::remove_file(path).unwrap();
    }
}
