//! How a command of the plugin fails: its exit code, and the one line that reports why.

use std::fmt::Display;

use sharded_controller::text::safe;

const DETAIL_CHARS_MAX: usize = 400;

/// The exit codes of the plugin beside 0. Scripts rely on them: docs/reference/kubectl-plugin.md lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Anything that has no code of its own.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// What was named does not exist, or a list has no entries.
    NotFound = 3,
    /// The API server refuses it to this user.
    Refused = 4,
    /// A DatabaseCluster is not Ready.
    NotReady = 5,
    /// It did not finish within the time given.
    TimedOut = 6,
}

/// Why a command ends without what it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
        }
    }

    /// The code with which the program ends.
    pub(crate) const fn code(&self) -> u8 {
        self.exit as u8
    }

    /// A request that failed; `what` reads on after "cannot".
    pub(crate) fn request(what: impl Display, error: &kube::Error) -> Self {
        let (exit, advice) = match error {
            kube::Error::Api(status) if status.code == 401 => (
                Exit::Refused,
                "the API server does not accept the credentials of this kubeconfig",
            ),
            kube::Error::Api(status) if status.code == 403 => (
                Exit::Refused,
                "ask an administrator for this right, or check it with kubectl auth can-i",
            ),
            kube::Error::Api(status) if status.code == 404 => (
                Exit::NotFound,
                "check the name, the namespace and the context",
            ),
            kube::Error::Api(_) => (Exit::Failed, "see the message of the API server"),
            _ => (Exit::Failed, "check the kubeconfig and the network"),
        };
        let why = match error {
            kube::Error::Api(status) => status.message.clone(),
            other => chain(other),
        };
        let why = safe(&why, DETAIL_CHARS_MAX);
        Self::new(exit, format!("cannot {what}: {why}; {advice}"))
    }
}

/// An error with all its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(
            Exit::Failed,
            format!("cannot write to standard output: {error}"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    #[test]
    fn refusals_and_missing_objects_have_codes_of_their_own() {
        for (code, exit) in [
            (401, Exit::Refused),
            (403, Exit::Refused),
            (404, Exit::NotFound),
            (500, Exit::Failed),
        ] {
            let status = Status {
                code,
                message: "as the API server says".to_owned(),
                ..Status::default()
            };
            let error = kube::Error::Api(Box::new(status));
            let failure = Failure::request("read the Leases", &error);
            assert_eq!(failure.code(), exit as u8, "{code}");
            let text = failure.to_string();
            assert!(
                text.starts_with("cannot read the Leases: as the API server says; "),
                "{text}"
            );
        }
    }
}
