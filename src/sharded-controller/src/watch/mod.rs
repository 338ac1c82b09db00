//! What a replica sees: lists and watches by shard.

pub mod feed;
pub mod firsts;
pub mod kinds;
pub mod lists;
pub mod mode;
pub mod object_cache;
pub mod request;
pub mod selector;
pub mod source;
pub mod tickets;
pub mod trouble;
pub mod watch_mode;
pub mod wire;
