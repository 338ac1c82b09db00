//! What this operator adds to the HTTP server: the fleet, and the log level.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{self, Bytes};
use axum::extract::{Extension, Request, State};
use axum::http::header::{ACCEPT, CONTENT_SECURITY_POLICY, REFERRER_POLICY};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use parking_lot::Mutex;
use sharded_controller::server::{PLAIN, Peer, answer};

use super::fleet_table;
use super::fleet_view::FleetView;
use super::log_level::{self, LogLevel};
use super::loopback::is_from_loopback;
use super::page::{self, Form};

const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";
/// However many clients ask for the fleet, the view is made this often at most.
const FLEET_KEPT: Duration = Duration::from_millis(250);
const LOG_LEVEL_BYTES_MAX: usize = 100;
const LOG_LEVEL_PATIENCE: Duration = Duration::from_secs(2);

/// The paths of [`routes`].
pub const PATHS: [&str; 2] = ["/fleet", "/log-level"];

/// What this replica knows of the fleet; `None` while it has not seen the Leases.
pub(crate) type FleetSource = Box<dyn Fn() -> Option<FleetView> + Send + Sync>;

struct Routes {
    fleet: Fleet,
    log_level: Arc<LogLevel>,
}

struct Fleet {
    source: FleetSource,
    /// The last view. Locked while a new one is built: requests that arrive meanwhile get
    /// the same.
    cached: Mutex<Option<CachedView>>,
}

#[derive(Clone)]
struct CachedView {
    at: Instant,
    view: Arc<FleetView>,
    json: Bytes,
}

/// The routes. `fleet` must not block.
pub fn routes(fleet: FleetSource, log_level: Arc<LogLevel>) -> Router {
    let state = Routes {
        fleet: Fleet {
            source: fleet,
            cached: Mutex::default(),
        },
        log_level,
    };
    Router::new()
        .route("/fleet", get(self::fleet))
        .route("/log-level", get(self::log_level).put(change_log_level))
        .with_state(Arc::new(state))
}

async fn fleet(State(state): State<Arc<Routes>>, headers: HeaderMap) -> Response {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok());
    let form = page::form(accept);
    if form == Form::Page {
        return fleet_page();
    }
    match state.fleet.view() {
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

/// The page itself is always there: it says by itself what it waits for.
fn fleet_page() -> Response {
    let Some(nonce) = page::nonce() else {
        let text = "the kernel returned no random numbers; try again\n";
        return answer(StatusCode::SERVICE_UNAVAILABLE, PLAIN, text);
    };
    let policy = [
        (CONTENT_SECURITY_POLICY, page::policy(&nonce)),
        (REFERRER_POLICY, "no-referrer".to_owned()),
    ];
    (policy, answer(StatusCode::OK, HTML, page::page(&nonce))).into_response()
}

impl Fleet {
    fn view(&self) -> serde_json::Result<Option<CachedView>> {
        let mut cached = self.cached.lock();
        if let Some(last) = cached
            .as_ref()
            .filter(|last| last.at.elapsed() < FLEET_KEPT)
        {
            return Ok(Some(last.clone()));
        }
        let Some(view) = (self.source)() else {
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
    State(state): State<Arc<Routes>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
) -> Response {
    if let Err(why) = is_from_loopback(peer, &headers) {
        return answer(StatusCode::FORBIDDEN, PLAIN, format!("{why}\n"));
    }
    let level = state.log_level.changed_to().unwrap_or("default");
    answer(StatusCode::OK, PLAIN, format!("{level}\n"))
}

async fn change_log_level(
    State(state): State<Arc<Routes>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Response {
    // Before the body is read: a client without the right must not keep this task waiting.
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
    match request.map(|request| state.log_level.execute(request)) {
        Ok(Ok(())) => {
            let level = state.log_level.changed_to().unwrap_or("default");
            answer(StatusCode::OK, PLAIN, format!("{level}\n"))
        }
        Ok(Err(why)) => answer(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("{why}\n")),
        Err(why) => answer(StatusCode::BAD_REQUEST, PLAIN, format!("{why}\n")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::body::Body;
    use axum::http::Method;
    use tower::ServiceExt as _;

    use super::*;

    async fn send(router: &Router, request: Request) -> (StatusCode, HeaderMap, String) {
        let response = router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = body::to_bytes(response.into_body(), usize::MAX)
            .await
            .unwrap();
        (status, headers, String::from_utf8(bytes.into()).unwrap())
    }

    fn request(method: Method, path: &str, headers: &[(&str, &str)], body: &str) -> Request {
        let loopback = Peer(Some(([127, 0, 0, 1], 4000).into()));
        let request = Request::builder().method(method).uri(path);
        let request = headers.iter().fold(request, |request, (name, value)| {
            request.header(*name, *value)
        });
        let request = request.extension(loopback);
        request.body(Body::from(body.to_owned())).unwrap()
    }

    async fn fleet(router: &Router, accept: Option<&str>) -> (StatusCode, HeaderMap, String) {
        let accept = accept.map(|accept| ("accept", accept));
        let headers: Vec<_> = accept.into_iter().collect();
        send(router, request(Method::GET, "/fleet", &headers, "")).await
    }

    fn with_fleet(source: FleetSource) -> Router {
        routes(source, LogLevel::fixed())
    }

    #[tokio::test]
    async fn fleet_is_json_for_programs_and_a_table_for_terminals() {
        let unknown = with_fleet(Box::new(|| None));
        assert_eq!(fleet(&unknown, None).await.0, 503);
        let known = with_fleet(Box::new(|| {
            Some(FleetView {
                notes: vec!["a note".into()],
                ..FleetView::default()
            })
        }));
        for accept in [None, Some("application/json")] {
            let (status, _, body) = fleet(&known, accept).await;
            assert_eq!(status, 200);
            let view: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!(view["notes"][0], "a note");
        }
        let (_, _, table) = fleet(&known, Some("text/plain")).await;
        assert!(table.contains("note: a note\n"), "{table}");
    }

    #[tokio::test]
    async fn browsers_get_a_page_that_may_load_nothing_else() {
        let router = with_fleet(Box::new(|| None));
        let browser = Some("text/html,application/xhtml+xml,*/*;q=0.8");
        let (status, headers, page) = fleet(&router, browser).await;
        assert_eq!(status, 200, "the page itself says what it waits for");
        let policy = headers[CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(
            policy.contains("default-src 'none'") && !policy.contains("unsafe"),
            "{policy}"
        );
        let nonce = policy.split("script-src 'nonce-").nth(1).unwrap();
        let nonce = nonce.split('\'').next().unwrap();
        assert!(
            page.contains(&format!("<script nonce=\"{nonce}\">")),
            "{nonce}"
        );
        let (_, _, again) = fleet(&router, browser).await;
        assert!(!again.contains(nonce), "each answer has a nonce of its own");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(headers[name], value);
        }
    }

    #[tokio::test]
    async fn view_of_the_fleet_is_made_now_and_then_however_many_ask() {
        let views = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&views);
        let router = with_fleet(Box::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            Some(FleetView::default())
        }));
        let begun = Instant::now();
        for _ in 0..100 {
            assert_eq!(fleet(&router, None).await.0, 200);
        }
        let most = 2 + begun.elapsed().as_millis() / FLEET_KEPT.as_millis();
        assert!(
            views.load(Ordering::SeqCst) as u128 <= most,
            "{views:?} views"
        );
    }

    #[tokio::test]
    async fn log_level_is_changed_from_this_machine_only() {
        let applied = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&applied);
        let level = LogLevel::new(Box::new(move |directives| {
            record.lock().push(directives.to_owned());
            Ok(())
        }));
        let router = routes(Box::new(|| None), level);
        let put = |headers: &[(&str, &str)], body: &str| {
            send(&router, request(Method::PUT, "/log-level", headers, body))
        };
        let here = [("host", "localhost")];
        let (status, _, text) = put(&here, "debug 5m").await;
        assert!(status == 200 && text == "debug\n", "{text}");
        let (status, _, text) = put(&here, "h2=trace").await;
        assert!(
            status == 400 && text.contains("allowed: one of off"),
            "{text}"
        );
        let long = "x".repeat(LOG_LEVEL_BYTES_MAX + 1);
        assert_eq!(put(&here, &long).await.0, 400);
        for headers in [
            vec![("host", "rebound.example")],
            vec![("host", "localhost"), ("x-forwarded-for", "10.0.0.1")],
            vec![("host", "localhost"), ("origin", "http://localhost")],
        ] {
            assert_eq!(put(&headers, "trace").await.0, 403, "{headers:?}");
            let get = request(Method::GET, "/log-level", &headers, "");
            assert_eq!(send(&router, get).await.0, 403, "{headers:?}");
        }
        let ours = "databasecluster_operator=debug,sharded_controller=debug,shard_ownership=debug";
        assert_eq!(*applied.lock(), [ours]);
    }
}
