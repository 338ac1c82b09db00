//! Requests for Leases and the shard table by the state machine; each outcome comes back as an event.

use tokio::time::timeout;

use super::{Agent, ShardHost};
use crate::fleet::leases::{CALL_TIMEOUT, ObservedLease};
use shard_ownership::ownership::{Action, Event};

impl<H: ShardHost> Agent<H> {
    /// Sends a request; its outcome comes back as an event.
    pub(super) fn request(&mut self, action: Action) {
        match action {
            Action::WriteMember(id, write) => {
                let (store, stats) = (self.parts.store.clone(), self.parts.host.stats());
                self.requests.spawn(async move {
                    Event::MemberWritten(id, store.write_member(&write, stats).await)
                });
            }
            Action::WriteShard(id, write) => {
                let store = self.parts.store.clone();
                self.requests
                    .spawn(async move { Event::ShardWritten(id, store.write_shard(&write).await) });
            }
            Action::ReadMember(identity) => {
                let store = self.parts.store.clone();
                let name = self.parts.names.member_lease(&identity);
                self.requests.spawn(async move {
                    let read = store.read(&name).await;
                    let member = read.map(|found| match found {
                        Some(ObservedLease::Member(member)) => Some(member),
                        _ => None,
                    });
                    Event::MemberRead(identity, member)
                });
            }
            Action::ReadShard(shard) => {
                let store = self.parts.store.clone();
                let name = self.parts.names.shard_lease(shard);
                self.requests.spawn(async move {
                    let read = store.read(&name).await;
                    let lease = read.map(|found| match found {
                        Some(ObservedLease::Shard(lease)) => Some(lease),
                        _ => None,
                    });
                    Event::ShardRead(shard, lease)
                });
            }
            Action::WriteTable(id, write) => {
                let table = self.parts.table.clone();
                self.requests
                    .spawn(async move { Event::TableWritten(id, table.write(&write).await) });
            }
            Action::ReadTable => {
                let table = self.parts.table.clone();
                self.requests
                    .spawn(async move { Event::TableRead(table.read().await) });
            }
            Action::ProbeTable => {
                let table = self.parts.table.clone();
                self.requests.spawn(async move {
                    let answer = timeout(CALL_TIMEOUT, table.probe()).await;
                    Event::TableProbed(matches!(answer, Ok(Ok(()))))
                });
            }
            _ => {}
        }
    }
}
