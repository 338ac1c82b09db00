//! What a replica keeps of what it watches: the kinds and their records.

pub mod kinds;
pub mod observe;
mod packed;
pub mod store;
#[cfg(test)]
mod tests;
