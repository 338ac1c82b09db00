//! Kubernetes clients of four kinds, and a tower layer that counts their requests.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::header::{HeaderValue, USER_AGENT};
use http::{Method, Request, Response, Uri};
use kube::Config;
use kube::client::{Client, ClientBuilder, ConfigExt as _};
use prometheus::{Histogram, IntCounter};
use tower::{BoxError, Layer, Service, ServiceBuilder};

use crate::metrics::Metrics;
use crate::multiplex::Multiplex;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A Lease call is aborted after a second anyway: a connection attempt must not outlive many of them.
const LEASE_CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Bookmarks arrive about once a minute: a connection that is silent for longer is dead.
const WATCH_SILENCE_MAX: Duration = Duration::from_secs(120);
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
const IDENTITY_CHARS_MAX: usize = 100;
/// Status codes of an API server; any other counts as `other`, so that the label stays bounded.
const CODES: [&str; 24] = [
    "101", "200", "201", "202", "204", "301", "302", "307", "400", "401", "403", "404", "405",
    "406", "409", "410", "413", "415", "422", "429", "500", "502", "503", "504",
];

/// The answers whose series are kept: those that nearly all requests get.
const ANSWERS: [&str; 4] = ["200", "201", "409", "<error>"];
const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];
const VERBS: [&str; 7] = ["GET", "LIST", "WATCH", "POST", "PUT", "PATCH", "DELETE"];

/// The purpose of a client. Each kind is a client of its own, so that none waits behind another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ClientKind {
    /// Heartbeats and locks: no retries; the caller sets a timeout per call.
    Lease,
    /// Watches of Leases and shard table, on connections of their own. Bounds as below.
    Fleet,
    /// Lists and watches, over few connections ([`crate::multiplex`]): silence is allowed for longer
    /// than between two bookmarks. No retries, because the watcher pauses by itself, reports the error
    /// meanwhile, and checks whether it is still the same API server.
    Watch,
    /// Writes and lookups: a timeout for the answer, and no retries, because the right to write may
    /// have ended meanwhile.
    Write,
}

/// How long a connection of a client may be idle. Every wait for the API server is bounded by this,
/// whether or not the caller sets a shorter timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Until it is established, including TLS.
    pub connect: Duration,
    /// Without receiving a byte of an answer.
    pub read: Duration,
    /// Without sending a byte of a request.
    pub write: Duration,
}

impl ClientKind {
    /// Its bounds.
    #[must_use]
    pub(crate) const fn bounds(self) -> Bounds {
        let connect = match self {
            Self::Lease => LEASE_CONNECT_TIMEOUT,
            Self::Fleet | Self::Watch | Self::Write => CONNECT_TIMEOUT,
        };
        let read = match self {
            Self::Lease | Self::Write => ANSWER_TIMEOUT,
            Self::Fleet | Self::Watch => WATCH_SILENCE_MAX,
        };
        Bounds {
            connect,
            read,
            write: SEND_TIMEOUT,
        }
    }
}

/// A configuration with these bounds for every connection, and without retries.
fn bounded(mut config: Config, bounds: Bounds) -> Config {
    config.default_retry = false;
    config.connect_timeout = Some(bounds.connect);
    config.read_timeout = Some(bounds.read);
    config.write_timeout = Some(bounds.write);
    config
}

/// A client of one kind whose requests are counted and carry the replica's name to the audit log.
///
/// # Errors
/// When the configuration does not yield a client, such as for a broken certificate.
pub(crate) fn build_client(
    config: &Config,
    kind: ClientKind,
    identity: &str,
    metrics: Arc<Metrics>,
) -> kube::Result<Client> {
    build_with(config, kind, kind.bounds(), identity, metrics)
}

fn build_with(
    config: &Config,
    kind: ClientKind,
    bounds: Bounds,
    identity: &str,
    metrics: Arc<Metrics>,
) -> kube::Result<Client> {
    let mut config = bounded(config.clone(), bounds);
    if let Ok(agent) = HeaderValue::from_str(&user_agent(metrics.names().app, identity)) {
        config.headers.retain(|(name, _)| name != USER_AGENT);
        config.headers.push((USER_AGENT, agent));
    }
    let layer = CountLayer::new(&config.cluster_url, metrics);
    match kind {
        // Through a proxy, kube knows the way.
        ClientKind::Watch if config.proxy_url.is_none() => {
            let stack = ServiceBuilder::new()
                .layer(config.base_uri_layer())
                .option_layer(config.auth_layer()?)
                .layer(config.extra_headers_layer()?)
                .map_err(BoxError::from)
                .service(Multiplex::new(&config)?);
            let builder = ClientBuilder::new(stack, config.default_namespace);
            Ok(builder.with_layer(&layer).build())
        }
        ClientKind::Lease | ClientKind::Fleet | ClientKind::Watch | ClientKind::Write => {
            let builder = ClientBuilder::try_from(config)?;
            Ok(builder.with_layer(&layer).build())
        }
    }
}

/// The label of a status code.
#[must_use]
pub(crate) fn code_label(code: &str) -> &'static str {
    let known = CODES.into_iter().find(|known| *known == code);
    known.unwrap_or("other")
}

/// `<app>/<version> (<identity>)`
fn user_agent(app: &str, identity: &str) -> String {
    let plain = identity
        .chars()
        .filter(|c| c.is_ascii_graphic() && !matches!(c, '(' | ')' | '\\'))
        .take(IDENTITY_CHARS_MAX);
    let identity: String = plain.collect();
    let version = env!("CARGO_PKG_VERSION");
    format!("{app}/{version} ({identity})")
}

/// Counts requests and how long their answers take. Nothing is retried below.
#[derive(Clone, Debug)]
pub(crate) struct CountLayer {
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct Counts {
    metrics: Arc<Metrics>,
    host: String,
    /// The series of each method and code, and of each verb, looked up with their first request.
    requests: [[OnceLock<IntCounter>; ANSWERS.len()]; METHODS.len()],
    durations: [OnceLock<Histogram>; VERBS.len()],
}

impl Counts {
    fn count(&self, method: &'static str, verb: &'static str, code: &str, took: Duration) {
        let families = &self.metrics.client.families;
        let of_code = || {
            let requests = &families.rest_client_requests_total;
            requests.with_label_values(&[code, method, &self.host])
        };
        let of_verb = || {
            let durations = &families.rest_client_request_duration_seconds;
            durations.with_label_values(&[verb, &self.host])
        };
        let place = |all: &[&str], one: &str| all.iter().position(|known| *known == one);
        let answers = place(&METHODS, method).and_then(|place| self.requests.get(place));
        let answer = place(&ANSWERS, code).and_then(|place| answers?.get(place));
        match answer {
            Some(known) => known.get_or_init(of_code).inc(),
            None => of_code().inc(),
        }
        let duration = place(&VERBS, verb).and_then(|place| self.durations.get(place));
        match duration {
            Some(known) => known.get_or_init(of_verb).observe(took.as_secs_f64()),
            None => of_verb().observe(took.as_secs_f64()),
        }
    }
}

impl CountLayer {
    /// A layer for the API server at `url`.
    #[must_use]
    pub(crate) fn new(url: &Uri, metrics: Arc<Metrics>) -> Self {
        let host = url.authority().map_or("unknown", |a| a.as_str());
        // What precedes an @ is a secret.
        let host = host.rsplit('@').next().unwrap_or(host).to_owned();
        metrics.client.set_api_server(&host);
        Self {
            counts: Arc::new(Counts {
                metrics,
                host,
                requests: Default::default(),
                durations: Default::default(),
            }),
        }
    }
}

impl<S> Layer<S> for CountLayer {
    type Service = CountService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CountService {
            inner,
            counts: Arc::clone(&self.counts),
        }
    }
}

/// See [`CountLayer`].
#[derive(Clone, Debug)]
pub(crate) struct CountService<S> {
    inner: S,
    counts: Arc<Counts>,
}

impl<S, B, R> Service<Request<B>> for CountService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut count = Count {
            counts: Arc::clone(&self.counts),
            method: method(request.method()),
            verb: verb(request.method(), request.uri()),
            begun: Instant::now(),
            answered: false,
        };
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            match &answer {
                Ok(response) => count.done(code_label(response.status().as_str())),
                Err(_) => count.done("<error>"),
            }
            answer
        })
    }
}

/// One request in flight. If it is dropped before its answer, that counts too: calls that ran into
/// their caller's timeout are the most relevant ones.
struct Count {
    counts: Arc<Counts>,
    method: &'static str,
    verb: &'static str,
    begun: Instant,
    answered: bool,
}

impl Count {
    fn done(&mut self, code: &str) {
        self.answered = true;
        let took = self.begun.elapsed();
        self.counts.count(self.method, self.verb, code, took);
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        if !self.answered {
            self.done("<cancelled>");
        }
    }
}

/// The verb in terms of Kubernetes: HTTP's, with reads split into GET, LIST and WATCH.
fn verb(method: &Method, uri: &Uri) -> &'static str {
    match *method {
        Method::GET if watches(uri.query().unwrap_or_default()) => "WATCH",
        Method::GET if lists(uri.path()) => "LIST",
        _ => self::method(method),
    }
}

fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "OTHER",
    }
}

fn watches(query: &str) -> bool {
    query
        .split('&')
        .any(|part| matches!(part, "watch=true" | "watch=1"))
}

/// Whether a path names a collection: a resource, perhaps in a namespace, and no name after it.
fn lists(path: &str) -> bool {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let versions = match parts.next() {
        Some("api") => 1,
        Some("apis") => 2,
        _ => return false,
    };
    let rest: Vec<&str> = parts.skip(versions).collect();
    match rest.as_slice() {
        [_resource] => true,
        // A third part under a namespace that is one of its own subresources.
        ["namespaces", _, "status" | "finalize"] => false,
        ["namespaces", _namespace, _resource] => true,
        _ => false,
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
