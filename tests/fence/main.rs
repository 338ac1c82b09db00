//! The fence, on a real API server: each test violates a rule with a replica's own credentials.
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
