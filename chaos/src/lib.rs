//! Fault experiments on a fleet of operator processes, and a judge who trusts none of them.
//!
//! | module | does |
//! | --- | --- |
//! | [`scenario`], [`catalogue`] | scenario files: fleet, load, faults with times, expectations |
//! | [`evidence`] | what a run leaves |
//! | [`judge`] | decides, from the audit log, the fate of the processes and the final state |
//! | [`takeover`] | finds the first write by another replica, for the program `sigkill` |

pub mod catalogue;
pub mod evidence;
pub mod judge;
pub mod scenario;
pub mod takeover;
