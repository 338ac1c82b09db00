//! Watches of the objects in this replica's shards, and their records.

pub mod feed;
pub mod firsts;
pub mod kinds;
pub mod lists;
pub mod mode;
pub mod observe;
pub mod request;
pub mod selector;
pub mod source;
pub mod store;
#[cfg(test)]
mod tests;
pub mod trouble;
pub mod wire;
