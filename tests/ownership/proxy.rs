//! A proxy between one replica and the API server that holds back requests or responses, and records them.
//!
//! The replica talks plain HTTP to it; it adds the replica's own token. It forwards accepted requests
//! even when the replica no longer waits, as a network would.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use futures::StreamExt;
use http::header;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use testbed::ControlPlane;
use testbed::fencing::Token;
use tokio::sync::{OnceCell, watch};
use tokio::task::JoinHandle;

const BODY_BYTES_MAX: usize = 8 << 20;

/// One request that arrived.
#[derive(Clone, Debug)]
pub(crate) struct Passed {
    pub(crate) method: http::Method,
    /// Path and query.
    pub(crate) path: String,
    /// The fencing token in the body, if there is one.
    pub(crate) token: Option<Token>,
    /// When it arrived.
    pub(crate) at: Instant,
    /// The status of the API server's response, once received.
    pub(crate) status: Option<u16>,
    /// The text of an unsuccessful response.
    pub(crate) refusal: String,
}

impl Passed {
    /// Whether it may change an object that is neither Lease, shard table nor Event, and is no dry run.
    pub(crate) fn is_object_write(&self) -> bool {
        self.method != http::Method::GET
            && !self.path.contains("/leases")
            && !self.path.contains("/shardtables")
            && !self.path.contains("/events")
            && !self.path.contains("dryRun=")
    }

    /// The epoch of its token.
    pub(crate) fn epoch(&self) -> Option<i32> {
        i32::try_from(self.token.as_ref()?.epoch).ok()
    }
}

pub(crate) fn assert_refused(stale: &[Passed]) {
    for write in stale {
        assert!(
            write.status == Some(403) && write.refusal.contains("databasecluster-fence"),
            "the fence did not refuse a stale write: {write:#?}"
        );
    }
}

type Matches = Box<dyn Fn(&Passed) -> bool + Send + Sync>;

/// Where something is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Before it reaches the API server.
    Request,
    /// On its way back, piece by piece.
    Answer,
}

struct Rule {
    side: Side,
    matches: Matches,
    open: watch::Receiver<bool>,
    held: watch::Sender<usize>,
}

/// Holds matching requests, until it is released or dropped.
pub(crate) struct Hold {
    open: watch::Sender<bool>,
    held: watch::Receiver<usize>,
}

impl Hold {
    pub(crate) fn release(&self) {
        self.open.send_replace(true);
    }

    /// Waits until at least `count` are held.
    pub(crate) async fn has_caught(&mut self, count: usize, patience: Duration) {
        let caught = self.held.wait_for(|held| *held >= count);
        let caught = tokio::time::timeout(patience, caught).await;
        assert!(
            caught.is_ok(),
            "waited {patience:?} for {count} to be held back"
        );
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.release();
    }
}

struct Shared {
    replica: PathBuf,
    client: OnceCell<Client>,
    rules: Mutex<Vec<Arc<Rule>>>,
    passed: Mutex<Vec<Passed>>,
}

pub(crate) struct Proxy {
    shared: Arc<Shared>,
    /// For the replica's `KUBECONFIG`.
    pub(crate) kubeconfig: PathBuf,
    serving: JoinHandle<()>,
}

impl Proxy {
    /// A proxy for the replica that will have this name.
    pub(crate) async fn start(control_plane: &ControlPlane, replica: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let folder = control_plane.folder();
        let kubeconfig = folder.join(format!("{replica}.proxied"));
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "p",
            "clusters": [{"name": "p", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "p", "user": {}}],
            "contexts": [{"name": "p", "context": {"cluster": "p", "user": "p"}}],
        });
        std::fs::write(&kubeconfig, text.to_string()).unwrap();
        let shared = Arc::new(Shared {
            replica: folder.join(format!("{replica}.kubeconfig")),
            client: OnceCell::new(),
            rules: Mutex::default(),
            passed: Mutex::default(),
        });
        let router = Router::new().fallback(pass).with_state(Arc::clone(&shared));
        let serving = tokio::spawn(async move {
            let _ended = axum::serve(listener, router).await;
        });
        Self {
            shared,
            kubeconfig,
            serving,
        }
    }

    /// Holds back matching requests from now on.
    pub(crate) fn hold(
        &self,
        side: Side,
        matches: impl Fn(&Passed) -> bool + Send + Sync + 'static,
    ) -> Hold {
        let (open, is_open) = watch::channel(false);
        let (held, caught) = watch::channel(0);
        let rule = Rule {
            side,
            matches: Box::new(matches),
            open: is_open,
            held,
        };
        self.shared.rules.lock().unwrap().push(Arc::new(rule));
        Hold { open, held: caught }
    }

    /// All requests so far.
    pub(crate) fn passed(&self) -> Vec<Passed> {
        self.shared.passed.lock().unwrap().clone()
    }

    /// Writes of objects that arrived since then.
    pub(crate) fn writes_since(&self, since: Instant) -> Vec<Passed> {
        let passed = self.passed().into_iter();
        passed
            .filter(|p| p.at >= since && p.is_object_write())
            .collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Shared {
    /// Waits as long as a rule holds this back.
    async fn wait(&self, side: Side, what: &Passed) {
        let mut counted = Vec::new();
        loop {
            let closed = |rule: &&Arc<Rule>| {
                rule.side == side && !*rule.open.borrow() && (rule.matches)(what)
            };
            let rule = self.rules.lock().unwrap().iter().find(closed).cloned();
            let Some(rule) = rule else { return };
            let id = Arc::as_ptr(&rule);
            if !counted.contains(&(id as usize)) {
                counted.push(id as usize);
                rule.held.send_modify(|held| *held += 1);
            }
            let mut open = rule.open.clone();
            // An error means that the hold was dropped, which releases too.
            let _released = open.wait_for(|open| *open).await;
        }
    }

    async fn client(&self) -> &Client {
        let connect = || async {
            let text = Kubeconfig::read_from(&self.replica).unwrap();
            let options = KubeConfigOptions::default();
            let mut config = kube::Config::from_custom_kubeconfig(text, &options)
                .await
                .unwrap();
            config.read_timeout = None;
            config.default_retry = false;
            Client::try_from(config).unwrap()
        };
        self.client.get_or_init(connect).await
    }

    async fn forward(self: Arc<Self>, request: Request) -> Response {
        let (mut parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, BODY_BYTES_MAX)
            .await
            .unwrap_or_default();
        let parsed: Value = serde_json::from_slice(&body).unwrap_or_default();
        let what = Passed {
            method: parts.method.clone(),
            path: parts.uri.to_string(),
            token: Token::of_annotation(&parsed).or_else(|| Token::of_status(&parsed)),
            at: Instant::now(),
            status: None,
            refusal: String::new(),
        };
        let number = {
            let mut passed = self.passed.lock().unwrap();
            passed.push(what.clone());
            passed.len() - 1
        };
        self.wait(Side::Request, &what).await;
        for name in [
            header::HOST,
            header::CONNECTION,
            header::CONTENT_LENGTH,
            header::TRANSFER_ENCODING,
        ] {
            parts.headers.remove(name);
        }
        let request = http::Request::from_parts(parts, kube::client::Body::from(body.to_vec()));
        let Ok(answer) = self.client().await.send(request).await else {
            return answer_of(502, Body::empty());
        };
        let status = answer.status();
        let (mut parts, body) = answer.into_parts();
        parts.headers.remove(header::TRANSFER_ENCODING);
        parts.headers.remove(header::CONNECTION);
        self.passed.lock().unwrap()[number].status = Some(status.as_u16());
        let body = Body::new(body);
        let body = if status.is_success() {
            body
        } else {
            let bytes = axum::body::to_bytes(body, BODY_BYTES_MAX)
                .await
                .unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            self.passed.lock().unwrap()[number].refusal = text;
            Body::from(bytes)
        };
        self.wait(Side::Answer, &what).await;
        let shared = Arc::clone(&self);
        let pieces = body.into_data_stream().then(move |piece| {
            let (shared, what) = (Arc::clone(&shared), what.clone());
            async move {
                shared.wait(Side::Answer, &what).await;
                piece
            }
        });
        Response::from_parts(parts, Body::from_stream(pieces))
    }
}

async fn pass(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    // A task of its own: accepted requests continue though the replica gave up.
    let forwarded = tokio::spawn(shared.forward(request)).await;
    forwarded.unwrap_or_else(|_| answer_of(502, Body::empty()))
}

fn answer_of(status: u16, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
    response
}
