//! Lists and watches over a few HTTP/2 connections instead of one HTTP/1.1 connection for each.
//!
//! kube's own client speaks HTTP/1.1 only (kube-rs#1923). An API server accepts about a hundred streams
//! on one connection, so further connections are opened as they are needed. Each is checked with pings:
//! one that stalls is closed after 20 s ([`PINGS`]), and its watches begin again on others. Where the API
//! server, or a proxy before it, does not speak HTTP/2, everything goes over HTTP/1.1.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{Request, Response, Version};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Builder, Client as HttpClient, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::Config;
use kube::client::{Body, ConfigExt};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::sync::Mutex;
use tower::Service;

/// Most streams on one connection. Kubernetes accepts 100 by default
/// (`--http2-max-streams-per-connection`), and counts one that was closed for a moment longer than we do.
/// Where it accepts fewer, that is noticed by requests that are not answered.
const STREAMS_MAX: usize = 90;
/// Connections: enough for the watches of 256 shards. Beyond, streams wait for others to end.
const CONNECTIONS_MAX: usize = 24;
/// An API server that stands still for ten seconds loses no watch.
const PINGS: Pings = Pings {
    every: Duration::from_secs(10),
    timeout: Duration::from_secs(10),
};
/// Bytes that the API server may send ahead on one stream and on one connection. They bound what a
/// replica that decodes too slowly has to keep.
const STREAM_WINDOW_BYTES: u32 = 256 << 10;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;

type Connector = TimeoutConnector<HttpsConnector<HttpConnector>>;

/// When a connection counts as stalled.
#[derive(Clone, Copy, Debug)]
struct Pings {
    /// Silence of the connection after which a ping is sent.
    every: Duration,
    /// How long its answer may take.
    timeout: Duration,
}

/// Sends requests over HTTP/2 where the API server speaks it.
#[derive(Clone)]
pub(crate) struct Multiplex {
    inner: Arc<Inner>,
}

struct Inner {
    /// Speaks what the API server speaks, and finds out what that is.
    any: Connection,
    connections: Vec<Connection>,
    /// What the API server speaks, once it has answered. Locked while the first request finds out, so
    /// that not all of them open connections at once.
    version: Mutex<Option<Version>>,
}

/// One connection, which is opened again when it was closed.
struct Connection {
    client: HttpClient<Connector, Body>,
    streams: Arc<Streams>,
}

impl Multiplex {
    /// No connection is opened yet.
    ///
    /// # Errors
    /// When the configuration does not yield a TLS client.
    pub(crate) fn new(config: &Config) -> kube::Result<Self> {
        Self::with_pings(config, PINGS)
    }

    fn with_pings(config: &Config, pings: Pings) -> kube::Result<Self> {
        let tls = config.rustls_client_config()?;
        let name = match &config.tls_server_name {
            None => None,
            Some(name) => {
                let name = ServerName::try_from(name.clone());
                Some(name.map_err(|error| kube::Error::Service(Box::new(error)))?)
            }
        };
        let connection = |http2| Connection {
            client: client(config, tls.clone(), name.clone(), pings, http2),
            streams: Arc::new(Streams::new()),
        };
        Ok(Self {
            inner: Arc::new(Inner {
                any: connection(false),
                connections: (0..CONNECTIONS_MAX).map(|_| connection(true)).collect(),
                version: Mutex::new(None),
            }),
        })
    }
}

fn client(
    config: &Config,
    tls: ClientConfig,
    name: Option<ServerName<'static>>,
    pings: Pings,
    http2: bool,
) -> HttpClient<Connector, Body> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let mut tls = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http();
    if let Some(name) = name {
        tls = tls.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let tls = match http2 {
        true => tls.enable_http2().wrap_connector(tcp),
        false => tls.enable_all_versions().wrap_connector(tcp),
    };
    let mut connector = TimeoutConnector::new(tls);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        // A connection that is dropped from the pool would live on as long as its streams.
        .pool_idle_timeout(None)
        .http2_only(http2)
        .http2_keep_alive_interval(pings.every)
        .http2_keep_alive_timeout(pings.timeout)
        .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
        .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    builder.build(connector)
}

impl Inner {
    async fn send(&self, request: Request<Body>) -> Result<Response<Counted>, Error> {
        let mut version = self.version.lock().await;
        if version.is_none()
            && let Some(stream) = self.any.streams.take()
        {
            let answer = self.any.send(request, stream).await?;
            *version = Some(answer.version());
            return Ok(answer);
        }
        let is_http1 = version.is_some_and(|version| version != Version::HTTP_2);
        drop(version);
        let (connection, stream) = match is_http1 {
            true => (&self.any, self.any.streams.add()),
            false => self.free_connection(),
        };
        let answer = connection.send(request, stream).await;
        if answer.is_err() {
            // It may be another API server that answers next.
            *self.version.lock().await = None;
        }
        answer
    }

    /// The first connection with room for one more stream, or the one with the fewest.
    fn free_connection(&self) -> (&Connection, Stream) {
        let mut fewest = &self.any;
        for connection in &self.connections {
            if let Some(stream) = connection.streams.take() {
                return (connection, stream);
            }
            if connection.streams.open() < fewest.streams.open() {
                fewest = connection;
            }
        }
        (fewest, fewest.streams.add())
    }
}

impl Connection {
    async fn send(
        &self,
        request: Request<Body>,
        mut stream: Stream,
    ) -> Result<Response<Counted>, Error> {
        let answer = self.client.request(request).await;
        stream.answered(answer.is_ok());
        answer.map(|answer| answer.map(|body| Counted { body, stream }))
    }
}

impl Service<Request<Body>> for Multiplex {
    type Response = Response<Counted>;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Self::Response, Error>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let inner = Arc::clone(&self.inner);
        Box::pin(async move { inner.send(request).await })
    }
}

/// The streams of one connection.
#[derive(Debug)]
struct Streams {
    /// Those that were asked for and have not ended.
    open: AtomicUsize,
    /// Those among them that were answered.
    answered: AtomicUsize,
    /// How many the API server accepts at once, as far as known.
    accepted: AtomicUsize,
}

impl Streams {
    const fn new() -> Self {
        Self {
            open: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
            accepted: AtomicUsize::new(STREAMS_MAX),
        }
    }

    fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// One more stream.
    fn add(self: &Arc<Self>) -> Stream {
        self.open.fetch_add(1, Ordering::AcqRel);
        Stream::new(Arc::clone(self))
    }

    /// One more stream, if it is accepted.
    fn take(self: &Arc<Self>) -> Option<Stream> {
        let accepted = self.accepted.load(Ordering::Acquire);
        let more = |open| (open < accepted).then_some(open + 1);
        let taken = self
            .open
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        taken.ok().map(|_| Stream::new(Arc::clone(self)))
    }
}

/// A stream that is counted on its connection until this is dropped.
#[derive(Debug)]
struct Stream {
    streams: Arc<Streams>,
    progress: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Waiting,
    Answered,
    Failed,
}

impl Stream {
    const fn new(streams: Arc<Streams>) -> Self {
        let progress = Progress::Waiting;
        Self { streams, progress }
    }

    fn answered(&mut self, ok: bool) {
        self.progress = match ok {
            true => Progress::Answered,
            false => Progress::Failed,
        };
        if ok {
            self.streams.answered.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let streams = &self.streams;
        match self.progress {
            // The caller has lost its patience: the API server may accept no more than it answered.
            Progress::Waiting => {
                let answered = streams.answered.load(Ordering::Acquire).max(1);
                streams.accepted.fetch_min(answered, Ordering::AcqRel);
            }
            Progress::Answered => {
                streams.answered.fetch_sub(1, Ordering::AcqRel);
            }
            Progress::Failed => {}
        }
        if streams.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            streams.accepted.store(STREAMS_MAX, Ordering::Release);
        }
    }
}

/// The body of an answer, whose stream is open until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    body: Incoming,
    #[expect(dead_code, reason = "counts the stream until it is dropped")]
    stream: Stream,
}

impl HttpBody for Counted {
    type Data = hyper::body::Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[path = "multiplex_tests.rs"]
mod tests;
