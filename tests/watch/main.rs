//! What a replica sees, against real API servers with and without filtering by shard.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod history;
mod outage;
mod recreated;
mod support;
mod watch_mode_switch;
