//! The error of the testbed: what was attempted, and why it did not work.

/// An error, with the attempted operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation failed for a reason from another library.
    #[error("{what}: {cause}")]
    Caused {
        /// What was attempted.
        what: String,
        /// Why it failed.
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A condition was not met in time.
    #[error("timed out after {waited_seconds:.1} s waiting for {what}: {last}")]
    Deadline {
        /// The condition.
        what: String,
        /// How long it was waited for.
        waited_seconds: f64,
        /// What was missing at the last check.
        last: String,
    },
    /// Anything else, with its full message.
    #[error("{0}")]
    Failed(String),
}

/// Short for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Says what was attempted when something fails.
pub trait Context<T> {
    /// Names the attempt.
    ///
    /// # Errors
    /// The same failure, with the attempt named.
    fn context(self, what: impl Into<String>) -> Result<T>;
}

impl<T, E: std::error::Error + Send + Sync + 'static> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl Into<String>) -> Result<T> {
        self.map_err(|cause| Error::Caused {
            what: what.into(),
            cause: Box::new(cause),
        })
    }
}

/// A failure with its full message.
pub fn failed<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::Failed(message.into()))
}
