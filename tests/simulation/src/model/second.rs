//! A second API server on the same etcd that gets no updates: watches on it show the past.
//!
//! Lease writes by it are compared with what etcd has, as are reads without a version; what is old
//! there are lists and watches. Its fence is as old, so that only the token on an object counts, as
//! everywhere in this model.

use std::collections::BTreeMap;

use super::fleet::Fleet;
use shard_ownership::hash::ShardId;
use shard_ownership::lease::{MemberLease, ShardLease};
use shard_ownership::ownership::Event;
use shard_ownership::table::ShardTable;

/// What it shows, and what it has not heard yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Second {
    members: BTreeMap<String, MemberLease>,
    shards: BTreeMap<ShardId, ShardLease>,
    table: Option<ShardTable>,
    since: Vec<Event>,
}

impl Second {
    pub(super) fn misses(&mut self, event: &Event) {
        self.since.push(event.clone());
    }
}

impl Fleet {
    /// From now on it gets no updates.
    pub(super) fn fork(&mut self) {
        self.second = Some(Second {
            members: self.server.members.clone(),
            shards: self.server.shards.clone(),
            table: self.server.table.clone(),
            since: Vec::new(),
        });
    }

    /// A replica lists there, and gets the rest when it catches up.
    pub(super) fn move_to_second(&mut self, n: usize) {
        let Some(second) = self.second.clone() else {
            return;
        };
        self.queue.push_back((n, Event::TableListed(second.table)));
        let event = Event::Listed {
            members: second.members.into_values().collect(),
            shards: second.shards.into_values().collect(),
        };
        self.queue.push_back((n, event));
        self.replicas[n].held_back = Some(second.since);
    }
}
