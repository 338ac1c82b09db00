//! What a replica sees: lists and watches by shard.

pub mod api_errors;
pub mod first_reconcile;
pub mod kinds;
pub mod lists;
pub mod mode;
pub mod object_cache;
pub mod reflector;
pub mod request;
pub mod selector;
pub mod source;
pub mod tickets;
pub mod watch_mode;
pub mod wire;
