//! Tests of the clients against a small HTTP server on loopback.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::VecDeque;

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use prometheus::Registry;

use super::*;
use crate::names::testing::NAMES;

/// Answers each request with the next status, or never if there is none; keeps the request heads.
async fn server(statuses: &[u16]) -> (Uri, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let heads = Arc::new(Mutex::new(Vec::new()));
    let (seen, mut statuses) = (Arc::clone(&heads), VecDeque::from(statuses.to_vec()));
    tokio::spawn(async move {
        let mut kept = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            seen.lock()
                .push(String::from_utf8(head).unwrap().to_lowercase());
            if let Some(status) = statuses.pop_front() {
                let reason = if status == 404 { "NotFound" } else { "Other" };
                let body = format!(
                    r#"{{"kind":"Status","apiVersion":"v1","reason":"{reason}","code":{status}}}"#
                );
                let text = format!(
                    "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(text.as_bytes()).await.unwrap();
            }
            kept.push(stream);
        }
    });
    (url.parse().unwrap(), heads)
}

fn client(url: &Uri, kind: ClientKind) -> (Api<Lease>, Arc<Metrics>) {
    // Several libraries here bring a provider each, so none is the default by itself.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let metrics = Arc::new(Metrics::register(Registry::new(), NAMES).unwrap());
    let config = Config::new(url.clone());
    let client = build_client(&config, kind, "op-0 (x)\r\n", Arc::clone(&metrics)).unwrap();
    (Api::namespaced(client, "ns"), metrics)
}

fn requests(metrics: &Metrics, code: &str, verb: &str, url: &Uri) -> u64 {
    let host = url.authority().unwrap().as_str();
    let labels = [code, verb, host];
    metrics
        .client
        .families
        .rest_client_requests_total
        .with_label_values(&labels)
        .get()
}

#[tokio::test]
async fn requests_are_counted_by_answer_and_carry_the_replicas_name() {
    let (url, heads) = server(&[404, 409]).await;
    let (leases, metrics) = client(&url, ClientKind::Write);
    assert!(leases.get_opt("a").await.unwrap().is_none());
    assert!(leases.delete("a", &Default::default()).await.is_err());
    assert_eq!(requests(&metrics, "404", "GET", &url), 1);
    assert_eq!(requests(&metrics, "409", "DELETE", &url), 1);
    let host = url.authority().unwrap().as_str();
    let duration = metrics
        .client
        .families
        .rest_client_request_duration_seconds
        .with_label_values(&["GET", host]);
    assert_eq!(duration.get_sample_count(), 1);
    let version = env!("CARGO_PKG_VERSION");
    let agent = format!("\r\nuser-agent: example-operator/{version} (op-0x)\r\n");
    let heads = heads.lock();
    assert!(heads.iter().all(|head| head.contains(&agent)), "{heads:?}");
}

#[tokio::test]
async fn clients_do_not_retry_on_their_own() {
    for kind in [ClientKind::Lease, ClientKind::Write, ClientKind::Watch] {
        let (url, heads) = server(&[503, 404]).await;
        let (leases, metrics) = client(&url, kind);
        let answer = tokio::time::timeout(Duration::from_secs(30), leases.get_opt("a")).await;
        let answer = answer.unwrap_or_else(|_| panic!("waited 30 s for the answer to {kind:?}"));
        assert!(answer.is_err(), "{kind:?}");
        assert_eq!(heads.lock().len(), 1, "{kind:?}");
        assert_eq!(requests(&metrics, "503", "GET", &url), 1, "{kind:?}");
    }
}

#[tokio::test]
async fn unknown_status_code_creates_no_new_label() {
    let (url, _heads) = server(&[418, 599]).await;
    let (leases, metrics) = client(&url, ClientKind::Write);
    for _ in 0..2 {
        assert!(leases.get("a").await.is_err());
    }
    assert_eq!(requests(&metrics, "other", "GET", &url), 2);
}

#[tokio::test]
async fn a_list_is_a_get_by_its_method_and_a_list_by_its_verb() {
    let (url, _heads) = server(&[404]).await;
    let (leases, metrics) = client(&url, ClientKind::Write);
    assert!(leases.list(&Default::default()).await.is_err());
    assert_eq!(requests(&metrics, "404", "GET", &url), 1);
    let labels = ["LIST", url.authority().unwrap().as_str()];
    let took = metrics
        .client
        .families
        .rest_client_request_duration_seconds
        .with_label_values(&labels);
    assert_eq!(took.get_sample_count(), 1);
}

#[tokio::test]
async fn aborted_and_refused_calls_are_counted() {
    let (url, _heads) = server(&[]).await;
    let (leases, metrics) = client(&url, ClientKind::Lease);
    let given_up = tokio::time::timeout(Duration::from_millis(200), leases.get("a")).await;
    assert!(given_up.is_err());
    assert_eq!(requests(&metrics, "<cancelled>", "GET", &url), 1);

    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let url: Uri = format!("http://{address}").parse().unwrap();
    let (leases, metrics) = client(&url, ClientKind::Lease);
    assert!(leases.get("a").await.is_err());
    assert_eq!(requests(&metrics, "<error>", "GET", &url), 1);
}

#[test]
fn verbs_are_those_of_kubernetes() {
    for (method, uri, expected) in [
        ("GET", "/api/v1/namespaces/a", "GET"),
        ("GET", "/api/v1/namespaces/a/status", "GET"),
        ("GET", "/api/v1/namespaces", "LIST"),
        ("GET", "/api/v1/namespaces/a/pods?limit=5", "LIST"),
        ("GET", "/api/v1/namespaces/a/pods/b", "GET"),
        ("GET", "/api/v1/namespaces/a/pods/b/log", "GET"),
        ("GET", "/apis/example.io/v1/examples", "LIST"),
        (
            "GET",
            "/apis/example.io/v1/examples?x=1&watch=true",
            "WATCH",
        ),
        ("GET", "/apis/example.io/v1/examples?watch=1", "WATCH"),
        ("GET", "/apis/example.io/v1/examples?watch=false", "LIST"),
        ("GET", "/version", "GET"),
        ("GET", "/", "GET"),
        ("PATCH", "/api/v1/namespaces/a/services/b", "PATCH"),
        ("BREW", "/pot", "OTHER"),
    ] {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        assert_eq!(verb(&method, &uri.parse().unwrap()), expected, "{uri}");
    }
}

#[test]
fn password_in_the_url_is_not_exported() {
    let metrics = Arc::new(Metrics::register(Registry::new(), NAMES).unwrap());
    let url: Uri = "https://user:secret@api.test:6443".parse().unwrap();
    assert_eq!(CountLayer::new(&url, metrics).counts.host, "api.test:6443");
}

#[test]
fn every_kind_of_client_has_bounds_and_watches_outlast_the_pause_between_bookmarks() {
    for kind in [
        ClientKind::Lease,
        ClientKind::Fleet,
        ClientKind::Watch,
        ClientKind::Write,
    ] {
        let bounds = kind.bounds();
        let config = bounded(Config::new(Uri::from_static("http://127.0.0.1:1")), bounds);
        assert_eq!(config.connect_timeout, Some(bounds.connect));
        assert_eq!(config.read_timeout, Some(bounds.read));
        assert_eq!(config.write_timeout, Some(bounds.write));
        assert!(!config.default_retry, "{kind:?}");
    }
    // The watcher notices first, and reports the problem.
    let watch = ClientKind::Watch.bounds();
    assert!(watch.read > crate::watch::request::SILENCE_MAX);
}

#[tokio::test]
async fn unresponsive_api_server_causes_a_timeout() {
    // It answers the first request, and falls silent.
    let (url, _) = server(&[404]).await;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let short = Duration::from_millis(100);
    let bounds = Bounds {
        read: short,
        ..ClientKind::Watch.bounds()
    };
    let metrics = Arc::new(Metrics::register(Registry::new(), NAMES).unwrap());
    let config = Config::new(url);
    let client = build_with(&config, ClientKind::Watch, bounds, "op-0", metrics).unwrap();
    let api: Api<Lease> = Api::namespaced(client, "ns");
    let params = kube::api::ListParams::default();
    let list = || api.list(&params);
    assert!(matches!(list().await, Err(kube::Error::Api(_))));
    let waited = tokio::time::timeout(Duration::from_secs(20), list()).await;
    let ended = waited.unwrap_or_else(|_| panic!("it waits indefinitely"));
    assert!(!matches!(ended, Err(kube::Error::Api(_)) | Ok(_)));
}
