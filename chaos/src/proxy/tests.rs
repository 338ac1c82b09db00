//! The proxy between a client and a small server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::bodies::{Body, Bytes, full};
use super::rules::{Crash, Rules};
use super::{Proxy, tls};
use crate::scenario::{Answer, By, Direction, Watch};

/// A server that counts, answers `ok`, and sends a piece every 20 ms to each watcher.
struct Server {
    url: String,
    authority: String,
    served: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn server() -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let (acceptor, authority) = tls::acceptor().unwrap();
    let served = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&served);
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, counter) = (acceptor.clone(), Arc::clone(&counter));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = hyper::service::service_fn(|request: Request<Incoming>| {
                    counter.fetch_add(1, Ordering::SeqCst);
                    async move { Ok::<_, std::io::Error>(Response::new(answer(&request))) }
                });
                let _ended = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    Server {
        url,
        authority,
        served,
        task,
    }
}

fn answer(request: &Request<Incoming>) -> Body {
    if !request
        .uri()
        .query()
        .unwrap_or_default()
        .contains("watch=true")
    {
        return full("ok".into());
    }
    let ticks = tokio::time::interval(Duration::from_millis(20));
    let pieces = futures::stream::unfold(ticks, |mut ticks| async {
        ticks.tick().await;
        Some((
            Ok(hyper::body::Frame::data(Bytes::from_static(b"tick\n"))),
            ticks,
        ))
    });
    BodyExt::boxed(http_body_util::StreamBody::new(SyncStream(Box::pin(
        pieces,
    ))))
}

/// Only polled by one owner at a time.
struct SyncStream<S>(std::pin::Pin<Box<S>>);

impl<S: futures::Stream> futures::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        self.0.as_mut().poll_next(context)
    }
}

struct Pair {
    server: Server,
    proxy: Proxy,
    client: tls::Upstream,
    _folder: tempfile::TempDir,
}

async fn pair() -> Pair {
    let (server, folder) = (server().await, tempfile::tempdir().unwrap());
    let proxy = Proxy::to(
        &server.url,
        server.authority.as_bytes(),
        folder.path().to_owned(),
    )
    .await
    .unwrap();
    let client = tls::client(&std::fs::read(proxy.authority()).unwrap()).unwrap();
    Pair {
        server,
        proxy,
        client,
        _folder: folder,
    }
}

impl Pair {
    fn request(&self, method: &str, path: &str) -> Request<Full<Bytes>> {
        let uri = format!("{}{path}", self.proxy.url());
        Request::builder()
            .method(method)
            .uri(uri)
            .body(Full::new(Bytes::new()))
            .unwrap()
    }

    async fn ask(&self, method: &str, path: &str) -> Result<u16, String> {
        let asked = self.client.request(self.request(method, path));
        match tokio::time::timeout(Duration::from_millis(300), asked).await {
            Ok(Ok(answer)) => Ok(answer.status().as_u16()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer".into()),
        }
    }

    fn served(&self) -> u64 {
        self.server.served.load(Ordering::SeqCst)
    }

    async fn until_served(&self, count: u64) {
        let started = Instant::now();
        while self.served() < count {
            assert!(
                started.elapsed() < Duration::from_secs(5),
                "{} of {count} arrived",
                self.served()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn all_requests_pass_without_rules() {
    let pair = pair().await;
    assert_eq!(pair.ask("GET", "/a").await, Ok(200));
    assert_eq!(pair.ask("POST", "/a").await, Ok(200));
    assert_eq!(
        (pair.served(), pair.proxy.bites(), pair.proxy.writes()),
        (2, 0, 1)
    );
}

#[tokio::test]
async fn partition_drops_everything_or_responses_or_lease_requests() {
    let pair = pair().await;
    for (direction, arrived) in [(Direction::Both, 0), (Direction::AnswersOnly, 1)] {
        pair.proxy.set(Rules {
            partition: Some(direction),
            ..Rules::default()
        });
        assert_eq!(pair.ask("GET", "/a").await, Err("no answer".into()));
        assert_eq!(pair.served(), arrived);
    }
    assert_eq!(pair.proxy.bites(), 2);
    pair.proxy.set(Rules {
        partition: Some(Direction::LeasesOnly),
        ..Rules::default()
    });
    assert_eq!(pair.ask("GET", "/a").await, Ok(200));
    assert_eq!(pair.ask("PUT", "/leases/x").await, Err("no answer".into()));
    pair.proxy.set(Rules::default());
    assert_eq!(pair.ask("GET", "/a").await, Ok(200));
}

#[tokio::test]
async fn held_write_arrives_after_its_client_is_gone() {
    let pair = pair().await;
    pair.proxy.set(Rules {
        hold_writes: true,
        ..Rules::default()
    });
    assert!(pair.ask("PATCH", "/a").await.is_err());
    assert!(pair.ask("PUT", "/leases/x").await.is_err());
    assert!(pair.ask("PATCH", "/shardtables/x").await.is_err());
    assert_eq!(pair.served(), 0);
    pair.proxy.set(Rules::default());
    pair.until_served(1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(pair.served(), 1, "a Lease is cut off, not held");
}

#[tokio::test]
async fn error_responses_apply_only_to_matching_requests() {
    let pair = pair().await;
    for (answer, method, code) in [
        (Answer::TooManyRequests, "GET", 429),
        (Answer::InternalError, "PATCH", 500),
        (Answer::Conflict, "PATCH", 409),
        (Answer::Gone, "GET", 410),
    ] {
        pair.proxy.set(Rules {
            error: Some((answer, 100)),
            ..Rules::default()
        });
        assert_eq!(pair.ask(method, "/a").await, Ok(code));
    }
    assert_eq!(pair.served(), 0);
    assert_eq!(
        pair.ask("PATCH", "/a").await,
        Ok(200),
        "no write is answered with 410"
    );
    let late = Rules {
        late: Duration::from_millis(80),
        ..Rules::default()
    };
    pair.proxy.set(late);
    let started = Instant::now();
    assert_eq!(pair.ask("GET", "/a").await, Ok(200));
    assert!(started.elapsed() >= Duration::from_millis(80));
    pair.proxy.set(Rules {
        cut_percent: 100,
        ..Rules::default()
    });
    assert!(
        pair.ask("GET", "/a")
            .await
            .is_err_and(|why| why != "no answer")
    );
}

#[tokio::test]
async fn watch_can_be_frozen_resumed_delayed_and_cut() {
    let pair = pair().await;
    let mut body = pair
        .client
        .request(pair.request("GET", "/a?watch=true"))
        .await
        .unwrap()
        .into_body();
    assert!(body.frame().await.unwrap().is_ok());
    pair.proxy.set(Rules {
        watches: Some((Watch::Frozen, Duration::ZERO)),
        ..Rules::default()
    });
    // Data in flight may still arrive.
    while tokio::time::timeout(Duration::from_millis(200), body.frame())
        .await
        .is_ok()
    {}
    pair.proxy.set(Rules {
        watches: Some((Watch::Late, Duration::from_millis(100))),
        ..Rules::default()
    });
    assert!(body.frame().await.unwrap().is_ok(), "it resumes");
    pair.proxy.set(Rules {
        watches: Some((Watch::Cut, Duration::from_millis(50))),
        ..Rules::default()
    });
    let cut = async { while body.frame().await.is_some_and(|piece| piece.is_ok()) {} };
    tokio::time::timeout(Duration::from_secs(2), cut)
        .await
        .expect("the watch was not cut");
    assert!(
        pair.proxy.bites() >= 3,
        "frozen, delayed and cut: took effect {} times",
        pair.proxy.bites()
    );
}

#[tokio::test]
async fn crash_happens_at_the_named_write_and_blocks_later_requests() {
    let mut pair = pair().await;
    let crash = |by| Rules {
        crash: Some(Crash { at_write: 2, by }),
        ..Rules::default()
    };
    pair.proxy.set(crash(By::BeforeReply));
    assert_eq!(pair.ask("POST", "/a").await, Ok(200));
    assert_eq!(pair.ask("PUT", "/leases/x").await, Ok(200));
    assert_eq!(pair.ask("POST", "/b").await, Err("no answer".into()));
    pair.proxy.crash_is_due().await;
    assert_eq!(pair.served(), 3, "it was executed");
    assert_eq!(pair.ask("POST", "/c").await, Err("no answer".into()));
    assert_eq!(pair.served(), 3);
    pair.proxy.set(crash(By::AfterReply));
    assert_eq!(pair.ask("POST", "/a").await, Ok(200));
    assert_eq!(pair.ask("POST", "/b").await, Ok(200));
    pair.proxy.crash_is_due().await;
}
