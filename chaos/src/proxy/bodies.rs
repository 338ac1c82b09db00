//! Response bodies on their way through the proxy: passed on, delayed, held back, or cut off.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;

use super::rules::{Class, Rules};
use super::serve::Shared;
use crate::scenario::Watch;

pub(super) use hyper::body::Bytes;

/// The body of a response.
pub(super) type Body = BoxBody<Bytes, io::Error>;
type Piece = io::Result<Frame<Bytes>>;

/// Pieces on their way; more make the server wait.
const PIECES_MAX: usize = 4_096;

/// A complete body.
pub(super) fn full(text: String) -> Body {
    Full::new(Bytes::from(text))
        .map_err(|never: Infallible| match never {})
        .boxed()
}

/// Passes on data according to the current rules.
pub(super) fn passed_on(upstream: Incoming, class: Class, shared: Arc<Shared>) -> Body {
    let (arrived, arrivals) = mpsc::channel::<(Instant, Piece)>(PIECES_MAX);
    let (sender, receiver) = mpsc::channel::<Piece>(1);
    tokio::spawn(read(upstream, arrived));
    tokio::spawn(write(arrivals, sender, class, shared));
    BodyExt::boxed(StreamBody::new(ReceiverStream::new(receiver)))
}

async fn read(mut upstream: Incoming, arrived: mpsc::Sender<(Instant, Piece)>) {
    loop {
        let piece = tokio::select! {
            () = arrived.closed() => return,
            piece = upstream.frame() => piece,
        };
        let Some(piece) = piece else { return };
        if arrived
            .send((Instant::now(), piece.map_err(io::Error::other)))
            .await
            .is_err()
        {
            return;
        }
    }
}

async fn write(
    mut arrivals: mpsc::Receiver<(Instant, Piece)>,
    to: mpsc::Sender<Piece>,
    class: Class,
    shared: Arc<Shared>,
) {
    let mut rules = shared.rules.clone();
    let bite = || shared.bites.fetch_add(1, Ordering::SeqCst);
    let mut cut_at = None;
    loop {
        // Rules are read again here, so that a change applies even while no data arrives.
        let (held, frozen) = {
            let now = rules.borrow_and_update();
            cut_at = match now.watches {
                // Data that arrives meanwhile does not prolong its life.
                Some((Watch::Cut, life)) if class.watch => cut_at.or(Some(Instant::now() + life)),
                _ => None,
            };
            let frozen = matches!(now.watches, Some((Watch::Frozen, _)));
            (now.holds_bodies(class), frozen && class.watch)
        };
        if held {
            if frozen {
                bite();
            }
            tokio::select! {
                () = to.closed() => return,
                changed = rules.changed() => if changed.is_err() { return },
            }
            continue;
        }
        let (arrived, piece) = tokio::select! {
            () = to.closed() => return,
            changed = rules.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            () = life_ends(cut_at) => {
                bite();
                let _nobody_waits = to.send(Err(io::ErrorKind::ConnectionReset.into())).await;
                return;
            }
            arrival = arrivals.recv() => match arrival {
                Some(arrival) => arrival,
                None => return,
            },
        };
        let late = match rules.borrow().watches {
            Some((Watch::Late, late)) if class.watch => late,
            _ => Duration::ZERO,
        };
        if !late.is_zero() {
            bite();
            sleep_until(arrived + late).await;
        }
        if !thaws(&to, class, &mut rules).await || to.send(piece).await.is_err() {
            return;
        }
    }
}

/// Frozen data stays here until the watch resumes; false: the client is gone.
async fn thaws(to: &mpsc::Sender<Piece>, class: Class, rules: &mut watch::Receiver<Rules>) -> bool {
    while rules.borrow().holds_bodies(class) {
        tokio::select! {
            () = to.closed() => return false,
            changed = rules.changed() => if changed.is_err() { return false },
        }
    }
    true
}

async fn life_ends(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
