//! Requests for Leases and the shard table by the state machine; each outcome comes back as an event.

use tokio::time::timeout;

use super::{Agent, ShardHost};
use crate::fleet::leases::CALL_TIMEOUT;
use shard_ownership::hash::ShardId;
use shard_ownership::lease::{MemberWrite, ShardWrite};
use shard_ownership::ownership::{Event, WriteId};
use shard_ownership::table::TableWrite;

impl<H: ShardHost> Agent<H> {
    pub(super) fn write_member(&mut self, id: WriteId, write: MemberWrite) {
        let (store, report) = (self.parts.store.clone(), self.parts.host.report());
        self.requests.spawn(async move {
            Event::MemberWritten(id, store.write_member(&write, report).await)
        });
    }

    pub(super) fn write_shard(&mut self, id: WriteId, write: ShardWrite) {
        let store = self.parts.store.clone();
        self.requests
            .spawn(async move { Event::ShardWritten(id, store.write_shard(&write).await) });
    }

    pub(super) fn write_table(&mut self, id: WriteId, write: TableWrite) {
        let table = self.parts.table.clone();
        self.requests
            .spawn(async move { Event::TableWritten(id, table.write(&write).await) });
    }

    pub(super) fn read_member(&mut self, identity: String) {
        let store = self.parts.store.clone();
        let name = self.parts.names.member_lease(&identity);
        self.requests.spawn(async move {
            let read = store.read(&name).await;
            Event::MemberRead(identity, read.map(|found| found?.into_member()))
        });
    }

    pub(super) fn read_shard(&mut self, shard: ShardId) {
        let store = self.parts.store.clone();
        let name = self.parts.names.shard_lease(shard);
        self.requests.spawn(async move {
            let read = store.read(&name).await;
            Event::ShardRead(shard, read.map(|found| found?.into_shard()))
        });
    }

    pub(super) fn read_table(&mut self) {
        let table = self.parts.table.clone();
        self.requests
            .spawn(async move { Event::TableRead(table.read().await) });
    }

    /// Finds out by a dry run whether the table may be written.
    pub(super) fn probe_table(&mut self) {
        let table = self.parts.table.clone();
        self.requests.spawn(async move {
            let answer = timeout(CALL_TIMEOUT, table.probe()).await;
            Event::TableProbed(matches!(answer, Ok(Ok(()))))
        });
    }
}
