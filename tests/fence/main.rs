//! The fence, on a real API server: each rule is broken on purpose with a replica's own credentials.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod children;
mod claims;
mod clusters;
mod fleet;
mod lag;
mod leases;
mod limits;
mod support;
mod table;
