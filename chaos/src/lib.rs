//! Fault experiments on a fleet of operator processes: what they share.
//!
//! Each experiment is a program of its own below `src/bin`, runs against a real control plane, judges by the API
//! server's audit log, and ends with a status other than 0 when a promise was not kept.

pub mod takeover;
