//! What the proxy does to each request.

use std::time::Duration;

use hyper::{Method, Uri};

use crate::scenario::{Answer, By, Direction, Watch};

/// What a proxy does. By default it passes everything on.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The network is cut.
    pub partition: Option<Direction>,
    /// Cut off from Leases and shard table, and writes of all else arrive when it ends.
    pub hold_writes: bool,
    /// How much later requests that are no watches arrive.
    pub late: Duration,
    /// Percentage of requests that hang until the rules change.
    pub hang_percent: u8,
    /// Percentage of requests that are cut before they arrive.
    pub cut_percent: u8,
    /// A response instead of the API server's, and the percentage of requests that get it.
    pub error: Option<(Answer, u8)>,
    /// What happens to watches, and how long they are delayed or how long they live.
    pub watches: Option<(Watch, Duration)>,
    /// At which write the replica is to crash.
    pub crash: Option<Crash>,
    /// Distinguishes the random draws of different proxies.
    pub seed: u64,
}

/// When a replica is to crash.
#[derive(Clone, Copy, Debug)]
pub struct Crash {
    /// At which write, from 1 on; Leases and the shard table do not count.
    pub at_write: u64,
    /// Before or after its reply.
    pub by: By,
}

/// Parts of the paths of Leases and of the shard table.
const OWNERSHIP: [&str; 2] = ["/leases", "/shardtables"];

/// What a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Class {
    pub(super) watch: bool,
    pub(super) write: bool,
    /// Its object is a Lease or the shard table.
    pub(super) ownership: bool,
}

impl Class {
    pub(super) fn of(method: &Method, uri: &Uri) -> Self {
        let query = uri.query().unwrap_or_default();
        let has = |word: &str| query.split('&').any(|part| part == word);
        Self {
            watch: method == Method::GET && (has("watch=true") || has("watch=1")),
            write: method != Method::GET && !has("dryRun=All"),
            ownership: OWNERSHIP.iter().any(|part| uri.path().contains(part)),
        }
    }

    /// A write of anything but a Lease and the shard table.
    pub(super) fn counts(self) -> bool {
        self.write && !self.ownership
    }
}

/// What is to be done to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// It passes.
    Pass,
    /// It passes later.
    Late(Duration),
    /// It hangs until the rules change, and is cut then.
    Hang,
    /// It is executed, but the response hangs until the rules change, and is cut then.
    Swallow,
    /// It passes when the rules change, even when its client is gone.
    Hold,
    /// It is cut.
    Cut,
    /// It is answered by the proxy.
    Answer(Answer),
}

impl Rules {
    /// What is to be done; `draw` is a random number below 100.
    pub(super) fn action(&self, class: Class, draw: u8) -> Action {
        if self.hold_writes && (class.ownership || class.write) {
            return match class.ownership {
                true => Action::Hang,
                false => Action::Hold,
            };
        }
        match self.partition {
            Some(Direction::Both) => return Action::Hang,
            Some(Direction::AnswersOnly) => return Action::Swallow,
            Some(Direction::LeasesOnly) if class.ownership => return Action::Hang,
            Some(Direction::LeasesOnly) | None => {}
        }
        if let Some((answer, percent)) = self.error
            && draw < percent
            && meets(answer, class)
        {
            return Action::Answer(answer);
        }
        if class.watch {
            return Action::Pass;
        }
        if draw < self.hang_percent {
            return Action::Hang;
        }
        if draw < self.hang_percent.saturating_add(self.cut_percent) {
            return Action::Cut;
        }
        match self.late.is_zero() {
            true => Action::Pass,
            false => Action::Late(self.late),
        }
    }

    /// Whether response bodies in flight are held back now.
    pub(super) fn holds_bodies(&self, class: Class) -> bool {
        let frozen = matches!(self.watches, Some((Watch::Frozen, _)));
        let cut_off = match self.partition {
            Some(Direction::LeasesOnly) => class.ownership,
            cut => cut.is_some(),
        };
        (self.hold_writes && class.ownership) || cut_off || (class.watch && frozen)
    }
}

/// Whether the API server answers such a request in this way at all.
fn meets(answer: Answer, class: Class) -> bool {
    match answer {
        Answer::TooManyRequests | Answer::InternalError => true,
        Answer::Conflict => class.write,
        Answer::Gone => !class.write,
    }
}
