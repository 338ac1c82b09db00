//! What a replica sees, against real API servers with and without filtering by shard.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod changes_of_mind;
mod history;
mod outage;
mod successors;
mod support;
