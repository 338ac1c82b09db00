//! Watches over HTTP/2 against a small TLS server on loopback, through a connection that can be cut and
//! stalled.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::convert::Infallible;
use std::sync::atomic::AtomicBool;

use futures::FutureExt as _;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::*;

const BRISK: Pings = Pings {
    every: Duration::from_millis(100),
    timeout: Duration::from_millis(100),
};
const PATIENCE: Duration = Duration::from_secs(20);

/// A watch that begins with one piece and then stays open.
struct Endless(Option<Bytes>);

impl HttpBody for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.0.take() {
            Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            None => Poll::Pending,
        }
    }
}

/// What the test does to the connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Line {
    /// Those with a lower number are cut.
    cut_before: usize,
    /// Those with a lower number pass nothing on.
    stalled_before: usize,
}

struct Api {
    config: Config,
    line: watch::Sender<Line>,
    /// Connections so far.
    accepted: Arc<AtomicUsize>,
    speaks_http2: Arc<AtomicBool>,
    /// Streams that it accepts on one connection.
    streams_max: Arc<AtomicUsize>,
}

impl Api {
    async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(signing_key.serialize_der()));
        let mut tls = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let http1 = TlsAcceptor::from(Arc::new(tls.clone()));
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let http2 = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut config = Config::new(format!("https://{address}").parse().unwrap());
        config.root_cert = Some(vec![cert.der().to_vec()]);
        let (line, _) = watch::channel(Line::default());
        let api = Self {
            config,
            line,
            accepted: Arc::default(),
            speaks_http2: Arc::new(AtomicBool::new(true)),
            streams_max: Arc::new(AtomicUsize::new(100)),
        };
        let (lines, accepted) = (api.line.clone(), Arc::clone(&api.accepted));
        let speaks_http2 = Arc::clone(&api.speaks_http2);
        let streams_max = Arc::clone(&api.streams_max);
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let number = accepted.fetch_add(1, Ordering::SeqCst);
                let (near, far) = tokio::io::duplex(1 << 16);
                tokio::spawn(carry(tcp, far, number, lines.subscribe()));
                let streams = streams_max.load(Ordering::SeqCst);
                let streams = u32::try_from(streams).unwrap();
                match speaks_http2.load(Ordering::SeqCst) {
                    true => tokio::spawn(serve(http2.clone(), near, Some(streams))),
                    false => tokio::spawn(serve(http1.clone(), near, None)),
                };
            }
        });
        api
    }

    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

/// Passes bytes on in both directions, as the test wants.
async fn carry(
    tcp: TcpStream,
    far: tokio::io::DuplexStream,
    number: usize,
    line: watch::Receiver<Line>,
) {
    let ((from_client, to_client), (from_server, to_server)) =
        (tcp.into_split(), tokio::io::split(far));
    let mut cut = line.clone();
    let there = pass(from_client, to_server, number, line.clone());
    let back = pass(from_server, to_client, number, line);
    tokio::select! {
        _ = cut.wait_for(|line| number < line.cut_before) => {}
        () = async { tokio::join!(there, back); } => {}
    }
}

async fn pass(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    number: usize,
    mut line: watch::Receiver<Line>,
) {
    let mut buffer = vec![0; 1 << 14];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let flows = line.wait_for(|line| number >= line.stalled_before);
        let has_ended = flows.await.is_err();
        if has_ended || to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

async fn serve(tls: TlsAcceptor, tcp: tokio::io::DuplexStream, streams_max: Option<u32>) {
    let Ok(stream) = tls.accept(tcp).await else {
        return;
    };
    let answer = |_request| async {
        Ok::<_, Infallible>(Response::new(Endless(Some(Bytes::from_static(b"{}\n")))))
    };
    let (stream, answer) = (TokioIo::new(stream), service_fn(answer));
    // A connection that was cut ends with an error.
    let _ended = match streams_max {
        Some(streams_max) => {
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .max_concurrent_streams(streams_max)
                .serve_connection(stream, answer)
                .await
        }
        None => {
            hyper::server::conn::http1::Builder::new()
                .serve_connection(stream, answer)
                .await
        }
    };
}

async fn watch_once(client: &mut Multiplex, api: &Api) -> Result<Response<Counted>, Error> {
    let request = Request::get(api.config.cluster_url.clone());
    let answer = client.call(request.body(Body::empty()).unwrap());
    let mut answer = tokio::time::timeout(PATIENCE, answer).await.unwrap()?;
    let piece = next(&mut answer).await.unwrap().unwrap();
    assert_eq!(piece.into_data().unwrap(), "{}\n");
    Ok(answer)
}

async fn next(answer: &mut Response<Counted>) -> Option<Result<Frame<Bytes>, hyper::Error>> {
    std::future::poll_fn(|context| Pin::new(answer.body_mut()).poll_frame(context)).await
}

/// As many watches, which stay open.
async fn watches(client: &mut Multiplex, api: &Api, number: usize) -> Vec<Response<Counted>> {
    let mut open = Vec::new();
    for _ in 0..number {
        open.push(watch_once(client, api).await.unwrap());
    }
    open
}

/// Waits until all of them have failed.
async fn all_fail(open: &mut [Response<Counted>]) {
    for answer in open {
        let ended = tokio::time::timeout(PATIENCE, next(answer)).await;
        assert!(ended.unwrap().is_none_or(|frame| frame.is_err()));
    }
}

/// A watch that may fail a few times first.
async fn watch_again(client: &mut Multiplex, api: &Api) -> Response<Counted> {
    for _ in 0..5 {
        if let Ok(answer) = watch_once(client, api).await {
            return answer;
        }
    }
    panic!("no watch begins any more");
}

#[tokio::test]
async fn two_hundred_watches_share_few_connections_and_none_waits_for_another() {
    let api = Api::start().await;
    let mut client = Multiplex::with_pings(&api.config, PINGS).unwrap();
    let mut open = watches(&mut client, &api, 200).await;
    assert!(
        open.iter()
            .all(|answer| answer.version() == Version::HTTP_2)
    );
    assert_eq!(
        api.accepted(),
        4,
        "the first one, then 90, 90 and 19 watches"
    );
    for answer in &mut open {
        assert!(next(answer).now_or_never().is_none(), "a watch has ended");
    }
    open.truncate(50);
    open.extend(watches(&mut client, &api, 150).await);
    assert_eq!(api.accepted(), 4, "streams that ended make room for others");
}

#[tokio::test]
async fn stalled_connection_is_given_up_and_replaced() {
    let api = Api::start().await;
    let mut client = Multiplex::with_pings(&api.config, BRISK).unwrap();
    let mut open = watches(&mut client, &api, 20).await;
    tokio::time::sleep(4 * BRISK.every).await;
    assert!(
        next(&mut open[19]).now_or_never().is_none(),
        "pings are answered"
    );
    let accepted = api.accepted();
    api.line.send_modify(|line| line.stalled_before = accepted);
    all_fail(&mut open).await;
    let _open = watch_again(&mut client, &api).await;
    assert!(api.accepted() > accepted);
}

#[tokio::test]
async fn cut_connections_are_opened_again() {
    let api = Api::start().await;
    let mut client = Multiplex::with_pings(&api.config, PINGS).unwrap();
    let mut open = watches(&mut client, &api, 120).await;
    let accepted = api.accepted();
    api.line.send_modify(|line| line.cut_before = accepted);
    all_fail(&mut open).await;
    drop(open);
    let _first = watch_again(&mut client, &api).await;
    let _open = watches(&mut client, &api, 120).await;
    assert!(
        api.accepted() <= accepted + 4,
        "{} and {accepted}",
        api.accepted()
    );
}

#[tokio::test]
async fn api_server_that_comes_back_with_another_protocol_is_followed() {
    let api = Api::start().await;
    let mut client = Multiplex::with_pings(&api.config, PINGS).unwrap();
    for version in [Version::HTTP_2, Version::HTTP_11, Version::HTTP_2] {
        let speaks_http2 = version == Version::HTTP_2;
        api.speaks_http2.store(speaks_http2, Ordering::SeqCst);
        let accepted = api.accepted();
        api.line.send_modify(|line| line.cut_before = accepted);
        let mut open = vec![watch_again(&mut client, &api).await];
        while open.last().unwrap().version() != version {
            assert!(open.len() < 5, "still {:?}", open.last().unwrap().version());
            open.push(watch_again(&mut client, &api).await);
        }
    }
}

#[tokio::test]
async fn connection_that_accepts_fewer_streams_is_left_to_those_it_has() {
    let api = Api::start().await;
    api.streams_max.store(20, Ordering::SeqCst);
    let mut client = Multiplex::with_pings(&api.config, PINGS).unwrap();
    let _open = watches(&mut client, &api, 21).await;
    let impatient = tokio::time::timeout(Duration::from_millis(500), watch_once(&mut client, &api));
    assert!(
        impatient.await.is_err(),
        "the connection accepts another one"
    );
    let _more = watches(&mut client, &api, 20).await;
}
