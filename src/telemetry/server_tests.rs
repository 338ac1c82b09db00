//! Tests of the HTTP server over real sockets: its answers, and its robustness against clients.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

struct Running {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

async fn start(adjust: impl FnOnce(Server) -> Server) -> Running {
    let metrics = Arc::new(Metrics::new().unwrap());
    let health = Arc::new(Health::new(&["heartbeat"]));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let server = adjust(Server::new(Arc::clone(&metrics), Arc::clone(&health)));
    let task = tokio::spawn(server.serve(listener, stop.clone()));
    Running {
        address,
        metrics,
        health,
        stop,
        task,
    }
}

/// Reads until the server closes the connection.
async fn read_all(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
    // A reset is a way of closing, too.
    let _ = read.expect_or_report("the server to close the connection");
    String::from_utf8_lossy(&bytes).into_owned()
}

trait ExpectOrReport<T> {
    fn expect_or_report(self, what: &str) -> T;
}

impl<T, E> ExpectOrReport<T> for Result<T, E> {
    fn expect_or_report(self, what: &str) -> T {
        self.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for {what}"))
    }
}

async fn get_with(address: SocketAddr, path: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let text = read_all(&mut stream).await;
    let status = text
        .split(' ')
        .nth(1)
        .unwrap_or_else(|| panic!("no answer: {text:?}"));
    (status.parse().unwrap(), text)
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    get_with(address, path, "").await
}

#[tokio::test]
async fn metrics_are_refreshed_at_each_scrape() {
    let scrapes = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&scrapes);
    let refresh: Refresh = Box::new(move || {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    let running = start(|server| server.with_refresh(refresh)).await;
    running.metrics.shards.set(32);
    for scrape in 1..=2 {
        let (status, text) = get(running.address, "/metrics").await;
        assert_eq!(status, 200);
        assert!(
            text.contains("content-type: text/plain; version=0.0.4"),
            "{text}"
        );
        assert!(text.contains("\ndatabasecluster_shards 32\n"), "{text}");
        assert_eq!(scrapes.load(Ordering::SeqCst), scrape);
    }
    assert_eq!(get(running.address, "/nothing").await.0, 404);
}

#[tokio::test]
async fn readiness_reports_reasons_and_liveness_ignores_external_failures() {
    let running = start(|server| server).await;
    let (status, text) = get(running.address, "/readyz").await;
    assert_eq!(status, 503);
    assert!(text.contains("[-] heartbeat: not checked yet\n"), "{text}");
    assert_eq!(get(running.address, "/livez").await.0, 200);
    running.health.ok("heartbeat");
    assert_eq!(get(running.address, "/readyz").await.0, 200);
    running.health.give_up("the runtime has ended");
    assert_eq!(get(running.address, "/livez").await.0, 503);
}

#[tokio::test]
async fn the_fleet_is_json_for_programs_and_a_table_for_terminals() {
    let running = start(|server| server).await;
    assert_eq!(get(running.address, "/fleet").await.0, 503);
    let running = start(|server| {
        server.with_fleet(Box::new(|| {
            Some(FleetView {
                notes: vec!["a note".into()],
                ..FleetView::default()
            })
        }))
    })
    .await;
    for headers in ["", "Accept: application/json\r\n"] {
        let (status, text) = get_with(running.address, "/fleet", headers).await;
        assert_eq!(status, 200);
        let body = text.split("\r\n\r\n").nth(1).unwrap();
        let view: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(view["notes"][0], "a note");
    }
    let (_, text) = get_with(running.address, "/fleet", "Accept: text/plain\r\n").await;
    assert!(text.contains("note: a note\n"), "{text}");
}

#[tokio::test]
async fn browsers_get_a_page_that_may_load_nothing_else() {
    let running = start(|server| server).await;
    let people = "Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\n";
    let (status, text) = get_with(running.address, "/fleet", people).await;
    assert_eq!(status, 200, "the page shows what it waits for");
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let policy = head
        .lines()
        .find(|line| line.starts_with("content-security-policy: "));
    let policy = policy.unwrap();
    assert!(
        policy.contains("default-src 'none'") && !policy.contains("unsafe"),
        "{policy}"
    );
    let nonce = policy.split("script-src 'nonce-").nth(1).unwrap();
    let nonce = nonce.split('\'').next().unwrap();
    assert!(
        body.contains(&format!("<script nonce=\"{nonce}\">")),
        "{nonce}"
    );
    let (_, again) = get_with(running.address, "/fleet", people).await;
    assert!(!again.contains(nonce), "each answer has a nonce of its own");
    for header in [
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
        "cache-control: no-store",
    ] {
        assert!(head.contains(header), "{header}: {head}");
    }
}

#[tokio::test]
async fn fleet_view_is_cached_across_requests() {
    let reads = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&reads);
    let running = start(|server| {
        server.with_fleet(Box::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            Some(FleetView::default())
        }))
    })
    .await;
    let begun = Instant::now();
    for _ in 0..100 {
        assert_eq!(get(running.address, "/fleet").await.0, 200);
    }
    let most = 2 + begun.elapsed().as_millis() / FLEET_KEPT.as_millis();
    assert!(
        reads.load(Ordering::SeqCst) as u128 <= most,
        "{reads:?} reads"
    );
}

async fn put(address: SocketAddr, body: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let request = format!(
        "PUT /log-level HTTP/1.1\r\n{headers}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let text = read_all(&mut stream).await;
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, text)
}

#[tokio::test]
async fn log_level_is_changed_only_from_loopback() {
    let applied = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&applied);
    let level = LogLevel::new(Box::new(move |directives| {
        record.lock().unwrap().push(directives.to_owned());
        Ok(())
    }));
    let running = start(|server| server.with_log_level(level)).await;
    let here = "Host: localhost\r\n";
    let (status, text) = put(running.address, "debug 5m", here).await;
    assert!(status == 200 && text.ends_with("debug\n"), "{text}");
    let (status, text) = put(running.address, "h2=trace", here).await;
    assert!(
        status == 400 && text.contains("allowed: one of off"),
        "{text}"
    );
    let (status, _) = put(running.address, &"x".repeat(LOG_LEVEL_BYTES_MAX + 1), here).await;
    assert_eq!(status, 400);
    for headers in [
        "Host: rebound.example\r\n",
        "Host: localhost\r\nX-Forwarded-For: 10.0.0.1\r\n",
        "Host: localhost\r\nOrigin: http://localhost\r\n",
    ] {
        assert_eq!(
            put(running.address, "trace", headers).await.0,
            403,
            "{headers}"
        );
        let (status, _) = get_with(running.address, "/log-level", headers).await;
        assert!(status == 403 || status == 400, "{headers}");
    }
    assert_eq!(*applied.lock().unwrap(), ["databasecluster_operator=debug"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousand_idle_connections_are_tolerated() {
    let nofile = rustix::process::Resource::Nofile;
    let mut limit = rustix::process::getrlimit(nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(nofile, limit).unwrap();
    let running = start(|server| server).await;
    let mut idle = Vec::new();
    for n in 0..1000 {
        let mut stream = TcpStream::connect(running.address).await.unwrap();
        // Some never send anything, some start a request and do not finish it.
        if n % 2 == 0 {
            stream.write_all(b"GET /metrics HTT").await.unwrap();
        }
        idle.push(stream);
    }
    for _ in 0..20 {
        let begun = Instant::now();
        assert_eq!(get(running.address, "/livez").await.0, 200);
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "{:?}",
            begun.elapsed()
        );
    }
    let open = running.metrics.http_connections.get();
    let most = HttpLimits::default().connections_max as i64;
    assert!(open <= most, "{open} connections are open");
    let evicted = running.metrics.http_evictions_total.get() as i64;
    assert!(evicted >= 1000 - most, "{evicted} were evicted");
    let begun = Instant::now();
    running.stop.cancel();
    let stopped = tokio::time::timeout(PATIENCE, running.task).await;
    stopped.expect_or_report("the server to stop").unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(running.metrics.http_connections.get(), 0);
    drop(idle);
}

#[tokio::test]
async fn a_slow_or_huge_request_is_cut_off() {
    let limits = HttpLimits {
        header_read_timeout: Duration::from_millis(100),
        ..HttpLimits::default()
    };
    let running = start(|server| server.with_limits(limits)).await;
    let mut slow = TcpStream::connect(running.address).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
    read_all(&mut slow).await;

    let mut huge = TcpStream::connect(running.address).await.unwrap();
    let head = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(64 * 1024));
    // The server may close the connection before it has read everything.
    let _ = huge.write_all(head.as_bytes()).await;
    let text = read_all(&mut huge).await;
    assert!(!text.contains(" 200 "), "{text}");

    let many = "X: y\r\n".repeat(limits.headers_max + 1);
    assert_eq!(get_with(running.address, "/", &many).await.0, 431);
    assert_eq!(get(running.address, "/livez").await.0, 200);
}

#[tokio::test]
async fn stopping_ends_kept_connections_and_takes_no_new_ones() {
    let running = start(|server| server).await;
    let mut kept = TcpStream::connect(running.address).await.unwrap();
    kept.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    let mut byte = [0];
    kept.read_exact(&mut byte).await.unwrap();
    running.stop.cancel();
    let rest = read_all(&mut kept).await;
    assert!(rest.contains("livez check passed"), "{rest}");
    let stopped = tokio::time::timeout(PATIENCE, running.task).await;
    stopped.expect_or_report("the server to stop").unwrap();
    assert!(TcpStream::connect(running.address).await.is_err());
}
