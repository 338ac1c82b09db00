//! HTTP clients that mean harm: the replica stays healthy, and its heartbeats on time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use testbed::audit::{AuditEvent, Reader};
use testbed::{ControlPlane, Replica, http_get, shards};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// How long it lasts: several heartbeats.
const ATTACK: Duration = Duration::from_secs(10);
/// What a replica may go without a renewal before it stops by itself: its lifetime less the margin.
const GAP_MAX: Duration = Duration::from_secs(5);
/// When two heartbeats of a replica without an attack are further apart than this, the machine or the API
/// server is too busy to measure the effect of an attack.
const CALM_GAP_MAX: Duration = Duration::from_secs(3);
const ATTACKS_MAX: usize = 3;
/// What the server has room for by default.
const CONNECTIONS_MAX: f64 = 256.0;

/// A kubelet's probe, as `deploy/base/deployment.yaml` asks for it.
struct Probe {
    path: &'static str,
    timeout: Duration,
    /// How long it has to fail until a kubelet acts: all but the first of the failures that it bears,
    /// a period apart.
    failing_max: Duration,
}

const PROBES: [Probe; 2] = [
    Probe {
        path: "/livez",
        timeout: Duration::from_secs(5),
        failing_max: Duration::from_secs(2 * 10),
    },
    Probe {
        path: "/readyz",
        timeout: Duration::from_secs(2),
        failing_max: Duration::from_secs(2),
    },
];

async fn connect(host: &str) -> Option<TcpStream> {
    let connected = timeout(Duration::from_secs(5), TcpStream::connect(host)).await;
    connected.ok()?.ok()
}

/// Says nothing, or begins a request and leaves it there.
async fn idler(host: String, number: usize) {
    let Some(mut stream) = connect(&host).await else {
        return;
    };
    if number.is_multiple_of(2) {
        let _gone = stream.write_all(b"GET /metrics HTT").await;
    }
    sleep(ATTACK).await;
}

/// Sends a header byte by byte (slow loris).
async fn dripper(host: String, until: Instant) {
    while Instant::now() < until {
        let Some(mut stream) = connect(&host).await else {
            continue;
        };
        let _gone = stream.write_all(b"GET /metrics HTTP/1.1\r\nX-A: ").await;
        while Instant::now() < until && stream.write_all(b"a").await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Asks for the metrics again and again and reads no answer.
async fn deaf_scraper(host: String, until: Instant) {
    let Some(mut stream) = connect(&host).await else {
        return;
    };
    let left = || until.saturating_duration_since(Instant::now());
    let ask = async {
        while stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .is_ok()
        {}
    };
    let _over = timeout(left(), ask).await;
    sleep(left()).await;
}

/// A header of a mebibyte, again and again.
async fn enormous(host: String, until: Instant) {
    let head = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
    let patience = Duration::from_secs(2);
    while Instant::now() < until {
        let Some(mut stream) = connect(&host).await else {
            continue;
        };
        let _refused = timeout(patience, stream.write_all(head.as_bytes())).await;
        let mut answer = Vec::new();
        let _gone = timeout(patience, stream.read_to_end(&mut answer)).await;
        assert!(
            !answer.starts_with(b"HTTP/1.1 200"),
            "such a header was taken"
        );
        sleep(Duration::from_millis(50)).await;
    }
}

/// Asks for what costs most, again and again.
async fn greedy(url: String, path: &'static str, until: Instant) {
    while Instant::now() < until {
        let _busy = http_get::get(&url, path, "application/json").await;
        sleep(Duration::from_millis(10)).await;
    }
}

/// Asks like a kubelet, only more often. How many were asked, how many failed, and the longest that an
/// answer took; or why a kubelet would have acted.
async fn probe(url: &str, until: Instant) -> Result<(u32, u32, Duration), String> {
    let (mut asked, mut failed, mut longest) = (0, 0, Duration::ZERO);
    let mut failing_since = [None; PROBES.len()];
    while Instant::now() < until {
        for (probe, since) in PROBES.iter().zip(&mut failing_since) {
            let begun = Instant::now();
            let path = ("GET", probe.path);
            let answer = http_get::send(url, path, "", "", probe.timeout).await;
            asked += 1;
            let trouble = match answer {
                Ok(answer) if answer.status == 200 => {
                    longest = longest.max(begun.elapsed());
                    *since = None;
                    continue;
                }
                Ok(answer) => format!("{}: {}", answer.status, answer.body),
                Err(error) => error.to_string(),
            };
            failed += 1;
            // From one probe to another: a single one, however long it waits, is one failure.
            let failing = begun - *since.get_or_insert(begun);
            if failing >= probe.failing_max {
                return Err(format!("{} failed for {failing:?}: {trouble}", probe.path));
            }
        }
        sleep(Duration::from_millis(200)).await;
    }
    Ok((asked, failed, longest))
}

fn attack(replica: &Replica, until: Instant) -> JoinSet<()> {
    let url = replica.url().to_owned();
    let host = url.trim_start_matches("http://").to_owned();
    let mut clients = JoinSet::new();
    for number in 0..1000 {
        clients.spawn(idler(host.clone(), number));
    }
    for _ in 0..50 {
        clients.spawn(dripper(host.clone(), until));
    }
    for _ in 0..20 {
        clients.spawn(deaf_scraper(host.clone(), until));
    }
    clients.spawn(enormous(host, until));
    for path in ["/metrics", "/fleet"] {
        clients.spawn(greedy(url.clone(), path, until));
    }
    clients
}

/// Room for the sockets of a thousand clients.
fn lift_descriptors() {
    let nofile = rustix::process::Resource::Nofile;
    let mut limit = rustix::process::getrlimit(nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(nofile, limit).unwrap();
}

async fn held(control_plane: &ControlPlane) -> Vec<(String, i32)> {
    let all = shards::list(&control_plane.client()).await.unwrap();
    let held = all.into_iter().map(|shard| (shard.holder, shard.epoch));
    held.collect()
}

/// The longest time between two heartbeats of one replica.
fn longest_gap(events: &[AuditEvent], lease: &str) -> Option<Duration> {
    let renewals: Vec<i64> = events
        .iter()
        .filter(|event| event.resource == "leases" && event.name == lease)
        .filter(|event| event.is_accepted_write())
        .map(|event| event.completed_micros)
        .collect();
    let gap = renewals.windows(2).map(|pair| pair[1] - pair[0]).max()?;
    u64::try_from(gap).ok().map(Duration::from_micros)
}

/// The result of one attack.
struct Attacked {
    probes: Result<(u32, u32, Duration), String>,
    gap: Option<Duration>,
    /// The longest gap of a replica that was left alone.
    gap_of_others: Option<Duration>,
}

async fn attack_once(control_plane: &ControlPlane, replica: &Replica) -> Attacked {
    let mut log = Reader::from_end(control_plane.audit_log().unwrap()).unwrap();
    let until = Instant::now() + ATTACK;
    let mut clients = attack(replica, until);
    let probes = probe(replica.url(), until).await;
    let metrics = replica.metrics().await.unwrap();
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    let evicted = metrics.sum("databasecluster_http_evictions_total").unwrap();
    let open = metrics.sum("databasecluster_http_connections").unwrap();
    assert!(evicted > 0.0, "the places were never all taken");
    assert!(open <= CONNECTIONS_MAX, "{open} connections at once");

    let events = log.next_events().unwrap();
    let own = format!("databasecluster-member-{}", replica.name());
    let others: BTreeSet<&str> = events
        .iter()
        .map(|event| event.name.as_str())
        .filter(|name| name.starts_with("databasecluster-member-") && *name != own)
        .collect();
    Attacked {
        probes,
        gap: longest_gap(&events, &own),
        gap_of_others: others
            .iter()
            .filter_map(|lease| longest_gap(&events, lease))
            .max(),
    }
}

/// Heartbeats stay on time, probes are answered and no shard moves, whatever clients do. The control
/// plane keeps an audit log.
pub(crate) async fn disturb_nothing(control_plane: &ControlPlane, replica: &Replica) {
    lift_descriptors();
    for attempt in 1..=ATTACKS_MAX {
        let before = held(control_plane).await;
        let attacked = attack_once(control_plane, replica).await;
        let is_in_time = attacked.gap.is_some_and(|gap| gap < GAP_MAX);
        if let Ok((asked, failed, longest)) = attacked.probes
            && is_in_time
        {
            println!(
                "under attack for {} s: heartbeats {:?} apart at most; {asked} probes, {failed} failed, \
                 the slowest answer took {longest:?}",
                ATTACK.as_secs(),
                attacked.gap.unwrap_or_default(),
            );
            assert_eq!(before, held(control_plane).await, "shards moved");
            return;
        }
        let calm = attacked.gap_of_others.is_some_and(|gap| gap < CALM_GAP_MAX);
        assert!(
            !calm && attempt < ATTACKS_MAX,
            "attack {attempt}: heartbeats {:?} apart, those of the others {:?}; probes {:?}",
            attacked.gap,
            attacked.gap_of_others,
            attacked.probes,
        );
        println!("attack {attempt} is inconclusive: other replicas were late, too");
    }
}
