//! The fence, on a real API server: each rule is broken on purpose with a replica's own token.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod children;
mod clusters;
mod fleet;
mod lag;
mod leases;
mod support;
