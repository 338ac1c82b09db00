//! What a replica sees: lists and watches by shard, into a cache of records.
//!
//! An operator describes its kinds and its cache by the traits in [`kinds`], or takes the ready-made
//! [`object_cache`]. [`reflector`] keeps a list and watch for each shard that is held or warmed; each of
//! them is a `source`, which inserts only while its ticket ([`tickets`]) is in force. [`mode`] finds out
//! whether the API server filters by shard.
//!
//! Nothing that is read here decides ownership, and the filter by shard runs in the replica in all cases.

pub mod api_errors;
pub(crate) mod first_reconcile;
pub mod kinds;
pub mod lists;
pub mod mode;
pub mod object_cache;
pub mod reflector;
pub(crate) mod request;
pub(crate) mod selector;
pub(crate) mod source;
pub mod tickets;
pub mod watch_mode;
pub mod wire;
