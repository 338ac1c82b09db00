//! Requests on their way through the proxy.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::bodies::{Body, Bytes, full, passed_on};
use super::rules::{Action, Class, Rules};
use super::tls::Upstream;
use crate::scenario::{Answer, By};

/// The `Retry-After` of a 429 response.
const RETRY_AFTER_SECONDS: &str = "1";
/// The reply must have left before the replica is killed for it.
const REPLY_LEAVES: Duration = Duration::from_millis(5);

/// What all connections of one proxy share.
pub(super) struct Shared {
    pub(super) server: String,
    pub(super) client: Upstream,
    pub(super) rules: watch::Receiver<Rules>,
    pub(super) bites: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) draws: AtomicU64,
    pub(super) crash: mpsc::Sender<()>,
}

impl Shared {
    /// A number below 100 that depends on the seed and on the number of earlier draws.
    fn draw(&self, seed: u64) -> u8 {
        let number = self.draws.fetch_add(1, Ordering::SeqCst);
        fastrand::Rng::with_seed(seed.wrapping_add(number.wrapping_mul(0x9e37_79b9))).u8(..100)
    }
}

/// Serves until it is dropped, and all its connections with it.
pub(super) async fn serve(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(connection(stream, acceptor.clone(), Arc::clone(&shared)));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let _slower = stream.set_nodelay(true);
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let service = service_fn(|request| handle(request, Arc::clone(&shared)));
    // An error is a request that was to be cut, or a killed replica.
    let _ended = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn broken() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

async fn handle(request: Request<Incoming>, shared: Arc<Shared>) -> io::Result<Response<Body>> {
    let class = Class::of(request.method(), request.uri());
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let mut rules = shared.rules.clone();
    let number = match class.counts() {
        true => shared.writes.fetch_add(1, Ordering::SeqCst) + 1,
        false => 0,
    };
    let (action, crash) = {
        let now = rules.borrow_and_update();
        (
            now.action(class, shared.draw(now.seed)),
            now.crash.filter(|_| class.counts()),
        )
    };
    if action != Action::Pass {
        shared.bites.fetch_add(1, Ordering::SeqCst);
    }
    let request = Request::from_parts(parts, body);
    match action {
        Action::Cut => Err(broken()),
        Action::Answer(answer) => Ok(in_its_place(answer)),
        Action::Hang => {
            let _changed = rules.changed().await;
            Err(broken())
        }
        Action::Swallow => {
            forward(request, class, shared).await?;
            let _changed = rules.changed().await;
            Err(broken())
        }
        Action::Late(late) => {
            // It arrives even when its client is gone, as in a slow network.
            let arrives = tokio::spawn(async move {
                tokio::time::sleep(late).await;
                forward(request, class, shared).await
            });
            arrives.await.map_err(io::Error::other)?
        }
        Action::Hold => {
            let arrives = tokio::spawn(async move {
                let _changed = rules.changed().await;
                forward(request, class, shared).await
            });
            arrives.await.map_err(io::Error::other)?
        }
        Action::Pass => match crash {
            None => forward(request, class, shared).await,
            Some(crash) if number < crash.at_write => forward(request, class, shared).await,
            Some(crash) if number > crash.at_write => std::future::pending().await,
            Some(crash) => crash_here(request, class, shared, crash.by).await,
        },
    }
}

async fn crash_here(
    request: Request<Bytes>,
    class: Class,
    shared: Arc<Shared>,
    by: By,
) -> io::Result<Response<Body>> {
    shared.bites.fetch_add(1, Ordering::SeqCst);
    let crash = shared.crash.clone();
    let answer = forward(request, class, shared).await;
    match by {
        By::BeforeReply => {
            let _known_already = crash.try_send(());
            std::future::pending().await
        }
        By::AfterReply => {
            tokio::spawn(async move {
                tokio::time::sleep(REPLY_LEAVES).await;
                let _known_already = crash.try_send(());
            });
            answer
        }
    }
}

async fn forward(
    mut request: Request<Bytes>,
    class: Class,
    shared: Arc<Shared>,
) -> io::Result<Response<Body>> {
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str());
    *request.uri_mut() = format!("{}{path}", shared.server)
        .parse()
        .map_err(io::Error::other)?;
    // The client sets that of the server.
    request.headers_mut().remove(HOST);
    let answer = shared
        .client
        .request(request.map(Full::new))
        .await
        .map_err(io::Error::other)?;
    Ok(answer.map(|body| passed_on(body, class, shared)))
}

/// The response that the API server would send.
fn in_its_place(answer: Answer) -> Response<Body> {
    let (status, reason) = match answer {
        Answer::TooManyRequests => (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"),
        Answer::InternalError => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        Answer::Conflict => (StatusCode::CONFLICT, "Conflict"),
        Answer::Gone => (StatusCode::GONE, "Expired"),
    };
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "injected by the proxy of an experiment", "reason": reason, "code": status.as_u16(),
    });
    let mut response = Response::new(full(body.to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        hyper::header::HeaderValue::from_static("application/json"),
    );
    if answer == Answer::TooManyRequests {
        headers.insert(
            RETRY_AFTER,
            hyper::header::HeaderValue::from_static(RETRY_AFTER_SECONDS),
        );
    }
    response
}
