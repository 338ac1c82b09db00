//! The HTTP server of a replica: metrics, health, the fleet, the log level; all resources are bounded.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{Extension, Request, State};
use axum::http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, body};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use super::connections::{Connections, Place};
use super::fleet_table;
use super::fleet_view::FleetView;
use super::health::{Health, Verdict};
use super::log_level::{self, LogLevel};
use super::loopback::{Peer, is_from_loopback};
use super::metrics::Metrics;
use super::page::{self, Form};

const PLAIN: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";
/// No other page may read our answers, or keep a handle to our window.
const CROSS_ORIGIN: [(HeaderName, &str); 2] = [
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
];
/// The fleet view is computed at most this often, however many requests there are.
const FLEET_KEPT: Duration = Duration::from_millis(250);
const LOG_LEVEL_BYTES_MAX: usize = 100;
const LOG_LEVEL_PATIENCE: Duration = Duration::from_secs(2);
/// Pause after a failed accept, for example because of missing file descriptors, which may persist.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Copies statistics into the metrics before they are rendered.
pub type Refresh = Box<dyn Fn() + Send + Sync>;
/// The fleet as this replica knows it; `None` while it has not observed the Leases.
pub type FleetSource = Box<dyn Fn() -> Option<FleetView> + Send + Sync>;

/// Limits of what clients may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// Maximum number of connections; a further one closes the one that is idle for longest.
    pub connections_max: usize,
    /// How long a connection may take to send a request's head, and may stay idle.
    pub header_read_timeout: Duration,
    /// Maximum size of a request's head, in bytes.
    pub header_bytes_max: usize,
    /// Maximum number of headers in a request.
    pub headers_max: usize,
    /// How long active requests may take when the server stops.
    pub drain_timeout: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connections_max: 256,
            header_read_timeout: Duration::from_secs(30),
            header_bytes_max: 16 * 1024,
            headers_max: 64,
            drain_timeout: Duration::from_secs(1),
        }
    }
}

/// The server, before it serves.
pub struct Server {
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    refreshes: Vec<Refresh>,
    fleet: FleetSource,
    /// The last fleet view. Locked while a new one is computed: concurrent requests need the same
    /// one.
    cached: Mutex<Option<CachedView>>,
    log_level: Arc<LogLevel>,
    limits: HttpLimits,
}

#[derive(Clone)]
struct CachedView {
    at: Instant,
    view: Arc<FleetView>,
    json: Bytes,
}

impl Server {
    /// A server for these metrics and this health.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, health: Arc<Health>) -> Self {
        Self {
            metrics,
            health,
            refreshes: Vec::new(),
            fleet: Box::new(|| None),
            cached: Mutex::default(),
            log_level: LogLevel::fixed(),
            limits: HttpLimits::default(),
        }
    }

    /// Calls `refresh` before each rendering of the metrics; it must not block.
    #[must_use]
    pub fn with_refresh(mut self, refresh: Refresh) -> Self {
        self.refreshes.push(refresh);
        self
    }

    /// Sets the source of `/fleet`; it must not block.
    #[must_use]
    pub fn with_fleet(mut self, fleet: FleetSource) -> Self {
        self.fleet = fleet;
        self
    }

    /// Sets what `/log-level` changes.
    #[must_use]
    pub fn with_log_level(mut self, log_level: Arc<LogLevel>) -> Self {
        self.log_level = log_level;
        self
    }

    /// Sets other limits than the defaults.
    #[must_use]
    pub fn with_limits(mut self, limits: HttpLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Serves until `stop` is cancelled and active requests are answered or the drain times out.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let limits = self.limits;
        let connections = Connections::new(
            limits.connections_max,
            self.metrics.http_connections.clone(),
            self.metrics.http_evictions_total.clone(),
        );
        let app = router(Arc::new(self));
        let tasks = TaskTracker::new();
        let end = CancellationToken::new();
        loop {
            let next = async {
                let stream = accept(&listener).await;
                (stream, connections.place().await)
            };
            let (stream, place) = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                next = next => next,
            };
            let connection = serve_connection(stream, place, app.clone(), limits, stop.clone());
            tasks.spawn(end.clone().run_until_cancelled_owned(connection));
        }
        drop(listener);
        tasks.close();
        // A client that has not read its answer by then is disconnected.
        let _ = tokio::time::timeout(limits.drain_timeout, tasks.wait()).await;
        end.cancel();
        tasks.wait().await;
    }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept an HTTP connection; trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(
    stream: TcpStream,
    place: Place,
    app: Router,
    limits: HttpLimits,
    stop: CancellationToken,
) {
    let peer = Peer(stream.peer_addr().ok());
    let service = service_fn(|mut request: http::Request<hyper::body::Incoming>| {
        let busy = place.busy();
        request.extensions_mut().insert(peer);
        let answer = app.clone().oneshot(request);
        async move {
            let _busy = busy;
            let response: Result<Response, Infallible> = answer.await;
            response
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_read_timeout)
        .max_headers(limits.headers_max)
        .max_buf_size(limits.header_bytes_max)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // An error here is a client that disconnected, was slow or sent an invalid request.
        _ = connection.as_mut() => return,
        () = place.evicted() => return,
        () = stop.cancelled() => {}
    }
    if place.unused() {
        return;
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/fleet", get(fleet))
        .route("/log-level", get(log_level).put(change_log_level))
        .with_state(server)
}

fn answer(status: StatusCode, content_type: &'static str, body: impl IntoResponse) -> Response {
    let headers = [
        (CONTENT_TYPE, content_type),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, headers, CROSS_ORIGIN, body).into_response()
}

async fn index() -> Response {
    let text = "databasecluster-operator\n/metrics /livez /readyz /fleet /log-level\n";
    answer(StatusCode::OK, PLAIN, text)
}

async fn metrics(State(server): State<Arc<Server>>) -> Response {
    for refresh in &server.refreshes {
        refresh();
    }
    match server.metrics.render() {
        Ok(text) => answer(StatusCode::OK, PROMETHEUS, text),
        Err(error) => answer(
            StatusCode::INTERNAL_SERVER_ERROR,
            PLAIN,
            format!("cannot render the metrics: {error}\n"),
        ),
    }
}

fn verdict(verdict: Verdict) -> Response {
    let status = if verdict.ok {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    answer(status, PLAIN, verdict.text)
}

async fn livez(State(server): State<Arc<Server>>) -> Response {
    verdict(server.health.livez())
}

async fn readyz(State(server): State<Arc<Server>>) -> Response {
    verdict(server.health.readyz())
}

async fn fleet(State(server): State<Arc<Server>>, headers: HeaderMap) -> Response {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    let form = page::form(accept);
    if form == Form::Page {
        return fleet_page();
    }
    match server.fleet_view() {
        Ok(Some(cached)) if form == Form::Table => {
            answer(StatusCode::OK, PLAIN, fleet_table::render(&cached.view))
        }
        Ok(Some(cached)) => answer(StatusCode::OK, JSON, cached.json),
        Ok(None) => {
            let text = "this replica has not observed the Leases yet; see /readyz\n";
            answer(StatusCode::SERVICE_UNAVAILABLE, PLAIN, text)
        }
        Err(error) => answer(
            StatusCode::INTERNAL_SERVER_ERROR,
            PLAIN,
            format!("cannot write the fleet as JSON: {error}\n"),
        ),
    }
}

/// The page itself is always available: it shows what it waits for.
fn fleet_page() -> Response {
    let Some(nonce) = page::nonce() else {
        let text = "the kernel gave no random numbers; try again\n";
        return answer(StatusCode::SERVICE_UNAVAILABLE, PLAIN, text);
    };
    let policy = [
        (CONTENT_SECURITY_POLICY, page::policy(&nonce)),
        (REFERRER_POLICY, "no-referrer".to_owned()),
    ];
    (policy, answer(StatusCode::OK, HTML, page::page(&nonce))).into_response()
}

impl Server {
    fn fleet_view(&self) -> serde_json::Result<Option<CachedView>> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = cached
            .as_ref()
            .filter(|last| last.at.elapsed() < FLEET_KEPT)
        {
            return Ok(Some(last.clone()));
        }
        let Some(view) = (self.fleet)() else {
            return Ok(None);
        };
        let json = serde_json::to_string(&view)? + "\n";
        let fresh = CachedView {
            at: Instant::now(),
            view: Arc::new(view),
            json: json.into(),
        };
        *cached = Some(fresh.clone());
        Ok(Some(fresh))
    }
}

async fn log_level(
    State(server): State<Arc<Server>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
) -> Response {
    if let Err(why) = is_from_loopback(peer, &headers) {
        return answer(StatusCode::FORBIDDEN, PLAIN, format!("{why}\n"));
    }
    let level = server.log_level.changed_to().unwrap_or("default");
    answer(StatusCode::OK, PLAIN, format!("{level}\n"))
}

async fn change_log_level(
    State(server): State<Arc<Server>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Response {
    // Before the body is read: a client without permission must not keep us waiting.
    if let Err(why) = is_from_loopback(peer, request.headers()) {
        return answer(StatusCode::FORBIDDEN, PLAIN, format!("{why}\n"));
    }
    let body = body::to_bytes(request.into_body(), LOG_LEVEL_BYTES_MAX);
    let request = match tokio::time::timeout(LOG_LEVEL_PATIENCE, body).await {
        Ok(Ok(bytes)) => log_level::parse(&String::from_utf8_lossy(&bytes)),
        _ => Err(format!(
            "send the level within 2 s, in {LOG_LEVEL_BYTES_MAX} bytes at most"
        )),
    };
    match request.map(|request| server.log_level.execute(request)) {
        Ok(Ok(())) => {
            let level = server.log_level.changed_to().unwrap_or("default");
            answer(StatusCode::OK, PLAIN, format!("{level}\n"))
        }
        Ok(Err(why)) => answer(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("{why}\n")),
        Err(why) => answer(StatusCode::BAD_REQUEST, PLAIN, format!("{why}\n")),
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
