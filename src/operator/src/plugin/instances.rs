//! Lag and volume use of instances, measured inside their containers with the user's right to `pods/exec`.

use std::time::Duration;

use futures::StreamExt as _;
use serde::Serialize;

use super::access::Kubectl;
use sharded_controller::text::safe;

/// Longest measurement of one instance.
const AT_MOST: Duration = Duration::from_secs(10);
/// Instances that are measured at once.
const AT_ONCE: usize = 8;
const WHY_CHARS_MAX: usize = 200;

/// One line about the file system, one about PostgreSQL. Users of the database may have created functions and operators
/// under the names of PostgreSQL's, hence the search path.
const SCRIPT: &str = r#"df -Pk "$PGDATA" | tail -n 1
PGOPTIONS='-c search_path=pg_catalog' psql -XAtq -F ' ' -U postgres -d postgres -c "SELECT pg_is_in_recovery(),
CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
coalesce((SELECT status FROM pg_stat_wal_receiver), '-'),
CASE WHEN NOT pg_is_in_recovery() OR pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0
ELSE coalesce(extract(epoch FROM now() - pg_last_xact_replay_timestamp())::bigint, 0) END""#;

/// What was measured inside one instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Measured {
    /// Bytes in use on the volume.
    pub(crate) volume_used_bytes: Option<u64>,
    /// Size of the volume's file system in bytes.
    pub(crate) volume_size_bytes: Option<u64>,
    /// How far a replica is behind the primary, in bytes of the write-ahead log.
    pub(crate) lag_bytes: Option<u64>,
    /// How old the last replayed change is while some are left, in seconds.
    pub(crate) lag_seconds: Option<u64>,
    /// State of the WAL receiver of a replica, such as `streaming`.
    pub(crate) receiver: Option<String>,
    #[serde(skip)]
    position: Option<u64>,
    #[serde(skip)]
    is_replica: bool,
}

impl Measured {
    /// Percent of the volume in use.
    pub(crate) fn volume_percent(&self) -> Option<u64> {
        let size = self.volume_size_bytes.filter(|size| *size > 0)?;
        Some(self.volume_used_bytes?.saturating_mul(100) / size)
    }
}

/// Measures the instances in these Pods; for each, why it could not be measured otherwise.
pub(crate) async fn measure(
    kubectl: &Kubectl,
    namespace: &str,
    pods: &[String],
) -> Vec<Result<Measured, String>> {
    let one = |pod: &String| {
        let pod = pod.clone();
        async move {
            let command = ["sh", "-c", SCRIPT];
            let output = kubectl.output((namespace, &pod), &command, AT_MOST).await;
            output
                .and_then(|text| parse(&text))
                .map_err(|why| safe(&why, WHY_CHARS_MAX))
        }
    };
    let mut all: Vec<_> = futures::stream::iter(pods.iter().map(one))
        .buffered(AT_ONCE)
        .collect()
        .await;
    compare(&mut all);
    all
}

/// Fills in how far replicas are behind the primary. The positions are read one after the other, so a replica that is
/// ahead of what was read of the primary is not behind.
fn compare(all: &mut [Result<Measured, String>]) {
    let primary = all.iter().flatten().find(|found| !found.is_replica);
    let Some(primary) = primary.and_then(|found| found.position) else {
        return;
    };
    for found in all.iter_mut().flatten().filter(|found| found.is_replica) {
        found.lag_bytes = found
            .position
            .map(|position| primary.saturating_sub(position));
    }
}

/// Reads the output of the script.
fn parse(text: &str) -> Result<Measured, String> {
    let mut lines = text.lines();
    let volume: Vec<&str> = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let kilobytes = |index: usize| volume.get(index)?.parse::<u64>().ok()?.checked_mul(1024);
    let server: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let [is_replica, position, receiver, lag_seconds] = *server.as_slice() else {
        return Err("PostgreSQL did not answer as expected".to_owned());
    };
    let is_replica = is_replica == "t";
    Ok(Measured {
        volume_size_bytes: kilobytes(1),
        volume_used_bytes: kilobytes(2),
        lag_bytes: None,
        lag_seconds: is_replica.then(|| lag_seconds.parse().ok()).flatten(),
        receiver: is_replica.then(|| safe(receiver, 40)),
        position: lsn(position),
        is_replica,
    })
}

/// A position in the write-ahead log: two hexadecimal numbers.
fn lsn(text: &str) -> Option<u64> {
    let (high, low) = text.split_once('/')?;
    let [high, low] = [high, low].map(|part| u32::from_str_radix(part, 16).ok());
    Some(u64::from(high?) << 32 | u64::from(low?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const VOLUME: &str = "/dev/sdb 1000 250 750 25% /pgdata\n";

    #[test]
    fn lag_is_the_distance_to_the_primary() {
        let mut all = vec![
            parse(&format!("{VOLUME}f 1/00000400 - 0\n")),
            parse(&format!("{VOLUME}t 0/FFFFFF00 streaming 3\n")),
            parse(&format!("{VOLUME}t 1/00000500 streaming 0\n")),
            Err("no answer".to_owned()),
        ];
        compare(&mut all);
        let lags: Vec<_> = all.iter().flatten().map(|found| found.lag_bytes).collect();
        assert_eq!(lags, [None, Some(0x500), Some(0)]);
        let replica = all[1].as_ref().unwrap();
        assert_eq!(replica.lag_seconds, Some(3));
        assert_eq!(replica.receiver.as_deref(), Some("streaming"));
        assert_eq!(replica.volume_percent(), Some(25));
        assert_eq!(replica.volume_size_bytes, Some(1_024_000));
    }

    #[test]
    fn lag_without_a_measured_primary_is_not_guessed() {
        let mut all = vec![
            Err("no answer".to_owned()),
            parse(&format!("{VOLUME}t 0/100 streaming 0\n")),
        ];
        compare(&mut all);
        assert_eq!(all[1].as_ref().unwrap().lag_bytes, None);
    }

    #[test]
    fn output_of_another_form_is_an_error() {
        for text in ["", "sh: psql: not found", VOLUME, "a\nb c\n"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
