//! The kubectl plugin on a real API server: every command, and every way in which it may not succeed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod changes;
mod fleet;
mod krew;
mod nothing_there;
mod reading;
mod report;
mod support;
