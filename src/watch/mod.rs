//! What this replica sees: records of the objects in its shards.

pub mod feed;
pub mod metadata;
pub mod observe;
pub mod selector;
pub mod source;
pub mod stamps;
pub mod store;
#[cfg(test)]
mod tests;
pub mod trouble;
