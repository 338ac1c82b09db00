//! A seeded simulation of whole fleets, with a virtual clock, driving the operator's own ownership machine.
//!
//! [`simulate`] runs one seed: replicas, Leases with compare-and-swap, a network that delays and
//! loses, faults drawn from the seed, work on objects behind a fence. It ends with the violation,
//! if anything did, or with a [`Summary`]. The same seed always gives the same run.

mod checks;
mod delivery;
mod faults;
pub mod fence;
pub mod model;
pub mod objects;
mod process;
mod random;
mod server;
mod update;
mod work;
mod world;

pub use random::Random;
pub use server::{MemberMeta, Sabotage, Server};
pub use world::{Ending, Plan, Summary, simulate};
