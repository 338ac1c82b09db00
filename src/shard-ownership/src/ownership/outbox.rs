//! The actions that one event causes, and the numbers of the writes among them.

use super::{Action, WriteId};

/// Collects the actions of the event in progress, in the order in which they are to be executed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Outbox {
    last_id: WriteId,
    actions: Vec<Action>,
}

impl Outbox {
    /// A number that no other write of this machine has or had.
    pub(super) fn next_id(&mut self) -> WriteId {
        self.last_id += 1;
        self.last_id
    }

    pub(super) fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// Everything since the last call.
    pub(super) fn take(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }
}
