//! What this replica sees: records of the objects in its shards.

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
