//! The HTTP server of a replica: `/metrics`, `/livez`, `/readyz`, `/fleet`; every use of it is bounded.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
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
use super::metrics::Metrics;

const PLAIN: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const JSON: &str = "application/json";
/// After a failed accept, such as one for want of file descriptors, which does not mend at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Copies figures into the metrics before they are rendered.
pub type Refresh = Box<dyn Fn() + Send + Sync>;
/// What this replica knows of the fleet; `None` while it has not seen the Leases.
pub type FleetSource = Box<dyn Fn() -> Option<FleetView> + Send + Sync>;

/// How much the server lets clients use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// Most connections at once; a further one closes the one that is idle for longest.
    pub connections_max: usize,
    /// How long a connection may take to send a request's head, and may stay idle.
    pub header_read_timeout: Duration,
    /// Most bytes in a request's head.
    pub header_bytes_max: usize,
    /// Most headers in a request.
    pub headers_max: usize,
    /// How long requests under way may take when the server stops.
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
    limits: HttpLimits,
}

impl Server {
    /// A server that tells these metrics and this health.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, health: Arc<Health>) -> Self {
        Self {
            metrics,
            health,
            refreshes: Vec::new(),
            fleet: Box::new(|| None),
            limits: HttpLimits::default(),
        }
    }

    /// Calls `refresh` before each rendering of the metrics; it must not block.
    #[must_use]
    pub fn with_refresh(mut self, refresh: Refresh) -> Self {
        self.refreshes.push(refresh);
        self
    }

    /// Where `/fleet` gets its view from; it must not block.
    #[must_use]
    pub fn with_fleet(mut self, fleet: FleetSource) -> Self {
        self.fleet = fleet;
        self
    }

    /// Other limits than the default ones.
    #[must_use]
    pub fn with_limits(mut self, limits: HttpLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Serves until `stop` is cancelled and requests under way are answered or the drain times out.
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
        // Whoever has not read its answer by then is cut off.
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
    let service = service_fn(|request| {
        let busy = place.busy();
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
        // An error here is a client that went away, was slow or sent nonsense: its own affair.
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
        .with_state(server)
}

fn answer(status: StatusCode, content_type: &'static str, body: String) -> Response {
    let headers = [
        (CONTENT_TYPE, content_type),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, headers, body).into_response()
}

async fn index() -> Response {
    let text = "databasecluster-operator\n/metrics /livez /readyz /fleet\n";
    answer(StatusCode::OK, PLAIN, text.to_owned())
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
    let for_people = accept.is_some_and(|accept| accept.contains("text/html"));
    let Some(view) = (server.fleet)() else {
        let text = "this replica has not seen the Leases yet; see /readyz\n".to_owned();
        return answer(StatusCode::SERVICE_UNAVAILABLE, PLAIN, text);
    };
    if for_people {
        return answer(StatusCode::OK, PLAIN, fleet_table::render(&view));
    }
    match serde_json::to_string(&view) {
        Ok(json) => answer(StatusCode::OK, JSON, json + "\n"),
        Err(error) => answer(
            StatusCode::INTERNAL_SERVER_ERROR,
            PLAIN,
            format!("cannot write the fleet as JSON: {error}\n"),
        ),
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
