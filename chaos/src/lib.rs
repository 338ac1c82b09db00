//! Fault experiments on a fleet of operator processes, and a judge who trusts none of them.
//!
//! | module | does |
//! | --- | --- |
//! | [`scenario`], [`catalogue`] | scenario files: fleet, load, faults with times, expectations |
//! | [`runner`] | runs one: control plane, fleet, users, faults, quiet |
//! | [`faults`], [`proxy`] | what is broken, and the proxy that breaks what signals can not |
//! | [`users`], [`recorder`], [`state`] | what is asked for, what replicas use and say, what is there in the end |
//! | [`evidence`] | what a run leaves |
//! | [`judge`] | decides, from the audit log, the fate of the processes and the final state |
//! | [`report`] | tells people: a page, JSON, one line each |
//! | [`takeover`] | finds the first write by another replica, for the program `sigkill` |

pub mod arena;
pub mod catalogue;
pub mod evidence;
pub mod faults;
pub mod judge;
pub mod progress;
pub mod proxy;
pub mod recorder;
pub mod report;
pub mod runner;
pub mod scenario;
pub mod state;
pub mod takeover;
pub mod users;
