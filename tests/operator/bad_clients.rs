//! HTTP clients that mean harm: the replica stays healthy, and its heartbeats on time.

use std::time::{Duration, Instant};

use testbed::audit::Reader;
use testbed::{ControlPlane, Replica, http_get, shards};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// How long it lasts: several heartbeats.
const ATTACK: Duration = Duration::from_secs(10);
/// What a replica may go without a renewal before it stops by itself: its lifetime less the margin.
const GAP_MAX: Duration = Duration::from_secs(5);
/// What the server has room for by default.
const CONNECTIONS_MAX: f64 = 256.0;

/// A kubelet's probe, as `deploy/base/deployment.yaml` asks for it.
struct Probe {
    path: &'static str,
    timeout: Duration,
    failures_max: u32,
}

const PROBES: [Probe; 2] = [
    Probe {
        path: "/livez",
        timeout: Duration::from_secs(5),
        failures_max: 3,
    },
    Probe {
        path: "/readyz",
        timeout: Duration::from_secs(2),
        failures_max: 2,
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

/// Asks like a kubelet, only more often, and fails when a kubelet would act. How many were asked,
/// how many were not answered in time, and the longest that an answer took.
async fn probe(url: &str, until: Instant) -> (u32, u32, Duration) {
    let (mut asked, mut late, mut longest) = (0, 0, Duration::ZERO);
    let mut in_a_row = [0; PROBES.len()];
    while Instant::now() < until {
        for (probe, failures) in PROBES.iter().zip(&mut in_a_row) {
            let begun = Instant::now();
            let path = ("GET", probe.path);
            let answer = http_get::send(url, path, "", "", probe.timeout).await;
            asked += 1;
            match answer {
                Ok(answer) => {
                    assert_eq!(answer.status, 200, "{}: {}", probe.path, answer.body);
                    longest = longest.max(begun.elapsed());
                    *failures = 0;
                }
                Err(error) => {
                    late += 1;
                    *failures += 1;
                    assert!(*failures < probe.failures_max, "{}: {error}", probe.path);
                }
            }
        }
        sleep(Duration::from_millis(200)).await;
    }
    (asked, late, longest)
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

/// Heartbeats stay on time, probes are answered and no shard moves, whatever clients do. The control
/// plane keeps an audit log.
pub(crate) async fn disturb_nothing(control_plane: &ControlPlane, replica: &Replica) {
    lift_descriptors();
    let before = held(control_plane).await;
    let mut log = Reader::from_end(control_plane.audit_log().unwrap()).unwrap();
    let until = Instant::now() + ATTACK;
    let mut clients = attack(replica, until);
    let (asked, late, longest) = probe(replica.url(), until).await;
    let metrics = replica.metrics().await.unwrap();
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }

    let lease = format!("databasecluster-member-{}", replica.name());
    let renewals: Vec<i64> = log
        .next_events()
        .unwrap()
        .into_iter()
        .filter(|event| event.resource == "leases" && event.name == lease)
        .filter(|event| event.is_accepted_write())
        .map(|event| event.completed_micros)
        .collect();
    let gap = renewals.windows(2).map(|pair| pair[1] - pair[0]).max();
    let gap = gap.expect("two renewals in the time of the attack");
    let gap = Duration::from_micros(u64::try_from(gap).unwrap());
    let evicted = metrics.sum("databasecluster_http_evictions_total").unwrap();
    let open = metrics.sum("databasecluster_http_connections").unwrap();
    println!(
        "under attack for {} s: {} heartbeats, {:.2} s apart at most; {asked} probes, {late} late, the slowest \
         answer took {:.2} s; {evicted:.0} connections closed to make room, {open:.0} open",
        ATTACK.as_secs(),
        renewals.len(),
        gap.as_secs_f64(),
        longest.as_secs_f64(),
    );
    assert!(gap < GAP_MAX, "{gap:?} between two heartbeats");
    assert!(evicted > 0.0, "the places were never all taken");
    assert!(open <= CONNECTIONS_MAX, "{open} connections at once");
    assert_eq!(before, held(control_plane).await, "shards moved");
}
