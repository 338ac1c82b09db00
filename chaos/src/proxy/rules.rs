//! What the proxy does to which request.

use std::time::Duration;

use hyper::{Method, Uri};

use crate::scenario::{Answer, By, Direction, Watch};

/// What a proxy does. The default is nothing.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The network is cut.
    pub partition: Option<Direction>,
    /// Cut off from Leases and shard table, and writes of all else arrive when it ends.
    pub hold_writes: bool,
    /// How much later requests that are no watches arrive.
    pub late: Duration,
    /// How many in a hundred requests hang until the rules change.
    pub hang_percent: u8,
    /// How many in a hundred requests break off before they arrive.
    pub cut_percent: u8,
    /// An answer in the API server's place, and to how many in a hundred requests.
    pub error: Option<(Answer, u8)>,
    /// What becomes of watches, and how late they are or how long they live.
    pub watches: Option<(Watch, Duration)>,
    /// At which write the replica is to crash.
    pub crash: Option<Crash>,
    /// Tells draws of different proxies apart.
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
    /// It is about a Lease or the shard table.
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
    /// It hangs until the rules change, and breaks off then.
    Hang,
    /// It is carried out, but the answer hangs until the rules change, and breaks off then.
    Swallow,
    /// It passes when the rules change, whether or not anybody still waits for its answer.
    Hold,
    /// It breaks off.
    Cut,
    /// It is answered by the proxy.
    Answer(Answer),
}

impl Rules {
    /// What is to be done; `draw` is a number below 100, drawn by lot.
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

    /// Whether bodies of answers that are under way are held back now.
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
