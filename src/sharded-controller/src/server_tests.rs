//! Tests of the HTTP server over real sockets: its answers, and its robustness against clients.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use prometheus::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

use super::*;
use crate::names::testing::NAMES;

const PATIENCE: Duration = Duration::from_secs(20);

struct Running {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

async fn start() -> Running {
    start_with(Box::new(|| {}), HttpLimits::default()).await
}

async fn start_with(refresh: Refresh, limits: HttpLimits) -> Running {
    let metrics = Arc::new(Metrics::register(Registry::new(), NAMES).unwrap());
    let health = Arc::new(Health::new(&["heartbeat"]));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let server = Server {
        limits,
        ..Server::new(
            Arc::clone(&metrics),
            Arc::clone(&health),
            refresh,
            ExtraRoutes::default(),
        )
    };
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
    // A reset is one way of being closed.
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
    let running = start_with(refresh, HttpLimits::default()).await;
    running.metrics.fleet.shards.set(32);
    for scrape in 1..=2 {
        let (status, text) = get(running.address, "/metrics").await;
        assert_eq!(status, 200);
        assert!(
            text.contains("content-type: text/plain; version=0.0.4"),
            "{text}"
        );
        assert!(text.contains("\nexample_shards 32\n"), "{text}");
        assert_eq!(scrapes.load(Ordering::SeqCst), scrape);
    }
    assert_eq!(get(running.address, "/nothing").await.0, 404);
}

#[tokio::test]
async fn readiness_reports_reasons_and_liveness_ignores_external_failures() {
    let running = start().await;
    let (status, text) = get(running.address, "/readyz").await;
    assert_eq!(status, 503);
    assert!(text.contains("[-] heartbeat: not checked yet\n"), "{text}");
    assert_eq!(get(running.address, "/livez").await.0, 200);
    running.health.ok("heartbeat");
    assert_eq!(get(running.address, "/readyz").await.0, 200);
    running.health.give_up("the runtime has ended");
    assert_eq!(get(running.address, "/livez").await.0, 503);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousand_idle_connections_are_tolerated() {
    let nofile = rustix::process::Resource::Nofile;
    let mut limit = rustix::process::getrlimit(nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(nofile, limit).unwrap();
    let running = start().await;
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
    let open = running.metrics.http.http_connections.get();
    let most = HttpLimits::default().connections_max as i64;
    assert!(open <= most, "{open} connections are open");
    let evicted = running.metrics.http.http_evictions_total.get() as i64;
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
    assert_eq!(running.metrics.http.http_connections.get(), 0);
    drop(idle);
}

#[tokio::test]
async fn a_slow_or_huge_request_is_cut_off() {
    let limits = HttpLimits {
        header_read_timeout: Duration::from_millis(100),
        ..HttpLimits::default()
    };
    let running = start_with(Box::new(|| {}), limits).await;
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
    let running = start().await;
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
