//! The HTTP server of a replica: metrics, health, and what its operator adds; every use of it is bounded.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::connections::{Connections, Place};
use crate::health::{Health, Verdict};
use crate::metrics::Metrics;

/// Content type of plain text.
pub const PLAIN: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Nobody else's page may take in what we answer, or keep a handle to our window.
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
/// After a failed accept, such as one for want of file descriptors, which does not mend at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Copies statistics into the metrics before they are rendered.
pub(crate) type Refresh = Box<dyn Fn() + Send + Sync>;

/// Routes that an operator adds to its HTTP server.
#[derive(Debug, Default)]
pub struct ExtraRoutes {
    /// The routes.
    pub router: Router,
    /// Their paths, which the answer to `/` lists.
    pub paths: Vec<&'static str>,
}

/// How much the server lets clients use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HttpLimits {
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

/// Who sent a request: an extension of each request.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub Option<SocketAddr>);

/// The server, before it serves.
pub struct Server {
    shared: Arc<Shared>,
    more: Router,
    limits: HttpLimits,
}

struct Shared {
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    refresh: Refresh,
    /// What `/` answers.
    index: String,
}

impl Server {
    /// A server of `/metrics`, `/livez`, `/readyz` and `more`. It calls `refresh` before each rendering of
    /// the metrics; that must not block.
    #[must_use]
    pub fn new(
        metrics: Arc<Metrics>,
        health: Arc<Health>,
        refresh: Refresh,
        more: ExtraRoutes,
    ) -> Self {
        let app = metrics.names().app;
        let all = ["/metrics", "/livez", "/readyz"]
            .iter()
            .chain(&more.paths)
            .copied();
        let all: Vec<&str> = all.collect();
        let index = format!("{app}\n{}\n", all.join(" "));
        Self {
            shared: Arc::new(Shared {
                metrics,
                health,
                refresh,
                index,
            }),
            more: more.router,
            limits: HttpLimits::default(),
        }
    }

    /// Serves until `stop` is cancelled and active requests are answered or the drain times out.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let limits = self.limits;
        let connections = Connections::new(
            limits.connections_max,
            self.shared.metrics.http.http_connections.clone(),
            self.shared.metrics.http.http_evictions_total.clone(),
        );
        let app = router(self.shared).merge(self.more);
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

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(shared)
}

/// A response that no page of another origin can take in.
pub fn answer(status: StatusCode, content_type: &'static str, body: impl IntoResponse) -> Response {
    let headers = [
        (CONTENT_TYPE, content_type),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, headers, CROSS_ORIGIN, body).into_response()
}

async fn index(State(shared): State<Arc<Shared>>) -> Response {
    answer(StatusCode::OK, PLAIN, shared.index.clone())
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    (shared.refresh)();
    match shared.metrics.render() {
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

async fn livez(State(shared): State<Arc<Shared>>) -> Response {
    verdict(shared.health.livez())
}

async fn readyz(State(shared): State<Arc<Shared>>) -> Response {
    verdict(shared.health.readyz())
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
