//! Interpretation of the API server's answers in a reconcile.

use std::time::Duration;

use kube::core::Status;

use crate::fleet::fence::is_refusal;
use crate::names::Names;
use crate::outcome::{Cause, Failure};

/// Pause after a 429 without `Retry-After`.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);
/// Longest pause that is accepted.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);
/// Longest message that is kept, in bytes.
const MESSAGE_LENGTH_MAX: usize = 512;
/// Part of the fence's message when the epoch on the object is above the writer's.
const TOKEN_AHEAD: &str = " is older than the one on the object, ";
/// What follows the prefix in the names of the policies that compare a token with the shard table.
const HOLDER_POLICIES: [&str; 2] = ["fence-holder", "fence-clusters"];

/// The meaning of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 404: the object, or its namespace, is gone.
    Gone,
    /// 409: the object is not as the request requires.
    Conflict(String),
    /// The namespace is being deleted: nothing can be created in it any more.
    NamespaceTerminating(String),
    /// The request is not acceptable, now and if sent again.
    Refused(Cause, String),
    /// The fence refuses this write.
    Fenced {
        /// The part of the fence that refused.
        rule: Rule,
        /// The API server's message.
        message: String,
    },
    /// Anything else.
    Failure(Failure),
}

/// The part of the fence that refused a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The object carries a token ahead of ours.
    TokenAhead,
    /// We are not the holder according to the shard table: users cannot cause that.
    Holder,
    /// Anything else about the object or the write.
    Object,
}

impl Rule {
    fn of(names: &Names, message: &str) -> Self {
        if message.contains(TOKEN_AHEAD) {
            Self::TokenAhead
        } else if HOLDER_POLICIES
            .iter()
            .any(|policy| message.contains(&format!("{}-{policy}", names.prefix)))
        {
            Self::Holder
        } else {
            Self::Object
        }
    }
}

impl Refusal {
    /// The failure of the reconcile, when nothing better is known about the answer.
    pub fn into_failure(self, what: &str) -> Failure {
        match self {
            Self::Gone => Failure::Retry {
                fenced: false,
                message: format!("{what}: it does not exist any more"),
            },
            Self::Conflict(message) => Failure::Retry {
                fenced: false,
                message: format!("{what}: {message}"),
            },
            Self::Fenced { message, .. } => Failure::Retry {
                fenced: true,
                message: format!("{what}: {message}"),
            },
            Self::NamespaceTerminating(message) => Failure::Failed {
                cause: Cause::Forbidden,
                message: format!("{what}: {message}"),
            },
            Self::Refused(cause, message) => Failure::Failed {
                cause,
                message: format!("{what}: {message}"),
            },
            Self::Failure(Failure::Failed { cause, message }) => Failure::Failed {
                cause,
                message: format!("{what}: {message}"),
            },
            Self::Failure(failure) => failure,
        }
    }
}

/// The meaning of an error of a request.
pub(crate) fn classify(names: &Names, error: &kube::Error) -> Refusal {
    match error {
        kube::Error::Api(status) => classify_status(names, status),
        kube::Error::SerdeError(_)
        | kube::Error::BuildRequest(_)
        | kube::Error::HttpError(_)
        | kube::Error::FromUtf8(_) => failed(
            Cause::Other,
            format!("{error}; this is a bug in the operator, or of the API server"),
        ),
        _ => failed(
            Cause::Unavailable,
            format!("the API server could not be reached ({error}); retrying"),
        ),
    }
}

fn classify_status(names: &Names, status: &Status) -> Refusal {
    let message = shorten(&status.message);
    // Not a verdict on the write: an API server that just started may not know the kind of the parameter.
    if status.message.contains("failed to configure policy") {
        return failed(Cause::Unavailable, message);
    }
    if is_refusal(names, &status.message) {
        return Refusal::Fenced {
            rule: Rule::of(names, &status.message),
            message,
        };
    }
    match status.code {
        404 => Refusal::Gone,
        409 => Refusal::Conflict(message),
        // The uid in a request protects a successor of the same name.
        422 if has_cause(status, |field, _| field == "metadata.uid") => Refusal::Conflict(message),
        422 | 400 => Refusal::Refused(Cause::Invalid, message),
        403 if is_namespace_terminating(status) => Refusal::NamespaceTerminating(message),
        // Not caused by the object, and it passes: an API server that just started knows no roles.
        403 if is_rbac(&message) => failed(Cause::Forbidden, message),
        403 => Refusal::Refused(Cause::Forbidden, message),
        429 => Refusal::Failure(Failure::Throttled {
            retry_after: retry_after(status),
        }),
        401 | 500..=599 => failed(
            Cause::Unavailable,
            format!("the API server answered {}: {message}", status.code),
        ),
        code => failed(Cause::Other, format!("HTTP {code}: {message}")),
    }
}

fn failed(cause: Cause, message: String) -> Refusal {
    Refusal::Failure(Failure::Failed {
        cause,
        message: shorten(&message),
    })
}

fn is_namespace_terminating(status: &Status) -> bool {
    has_cause(status, |_, reason| reason == "NamespaceTerminating")
        || status.message.contains("because it is being terminated")
}

fn is_rbac(message: &str) -> bool {
    message.contains(" is forbidden: User ") && message.contains(" cannot ")
}

fn has_cause(status: &Status, is: impl Fn(&str, &str) -> bool) -> bool {
    status
        .details
        .iter()
        .flat_map(|details| &details.causes)
        .any(|cause| is(&cause.field, &cause.reason))
}

fn retry_after(status: &Status) -> Duration {
    let seconds = status
        .details
        .as_ref()
        .map_or(0, |details| details.retry_after_seconds);
    match seconds {
        0 => RETRY_AFTER_DEFAULT,
        seconds => Duration::from_secs(u64::from(seconds)).min(RETRY_AFTER_MAX),
    }
}

/// A message of bounded length.
pub fn shorten(message: &str) -> String {
    let end = message.floor_char_boundary(MESSAGE_LENGTH_MAX);
    message.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::names::testing::NAMES;

    fn status(code: u16, message: &str, details: &str) -> Status {
        serde_json::from_str(&format!(
            r#"{{"code":{code},"message":"{message}","details":{details}}}"#
        ))
        .unwrap()
    }

    #[test]
    fn a_uid_that_does_not_match_is_a_conflict_and_other_invalid_fields_are_not() {
        let uid = r#"{"causes":[{"field":"metadata.uid","reason":"FieldValueInvalid"}]}"#;
        let other = r#"{"causes":[{"field":"spec.replicas","reason":"FieldValueInvalid"}]}"#;
        assert_eq!(
            classify_status(&NAMES, &status(422, "m", uid)),
            Refusal::Conflict("m".into())
        );
        assert_eq!(
            classify_status(&NAMES, &status(422, "m", other)),
            Refusal::Refused(Cause::Invalid, "m".into())
        );
    }

    #[test]
    fn refusal_by_the_fence_is_retried() {
        let message = "ValidatingAdmissionPolicy 'example-fence-children' denied request";
        for code in [403, 422] {
            let refusal = classify_status(&NAMES, &status(code, message, "{}"));
            assert!(
                matches!(
                    refusal,
                    Refusal::Fenced {
                        rule: Rule::Object,
                        ..
                    }
                ),
                "{code}: {refusal:?}"
            );
            let failure = refusal.into_failure("applying it");
            assert!(failure.is_by_fence(), "{failure:?}");
        }
    }

    #[test]
    fn policy_not_yet_usable_does_not_count_as_refusal() {
        let message = "examples.example.io 'orders' is forbidden: ValidatingAdmissionPolicy \
                       'example-fence-clusters' denied request: failed to configure policy: failed to find \
                       resource referenced by paramKind: 'example.io/v1, Kind=ShardTable'";
        assert!(matches!(
            classify_status(&NAMES, &status(422, message, "{}")),
            Refusal::Failure(Failure::Failed {
                cause: Cause::Unavailable,
                ..
            })
        ));
    }

    #[test]
    fn token_ahead_is_distinguished_from_other_refusals_at_any_message_length() {
        for policy in [
            "example-fence-order".to_owned(),
            format!("example-fence-order-{}", "x".repeat(600)),
        ] {
            let message = format!(
                "ValidatingAdmissionPolicy '{policy}' denied request: \
                 epoch 3 is older than the one on the object, 999"
            );
            let refusal = classify_status(&NAMES, &status(403, &message, "{}"));
            assert!(
                matches!(
                    refusal,
                    Refusal::Fenced {
                        rule: Rule::TokenAhead,
                        ..
                    }
                ),
                "{refusal:?}"
            );
        }
    }

    #[test]
    fn a_pause_is_as_long_as_the_server_says_within_bounds() {
        for (asked, expected) in [(0, 1), (7, 7), (1_000_000, 300)] {
            let details = format!(r#"{{"retryAfterSeconds":{asked}}}"#);
            assert_eq!(
                classify_status(&NAMES, &status(429, "", &details)),
                Refusal::Failure(Failure::Throttled {
                    retry_after: Duration::from_secs(expected)
                })
            );
        }
    }

    #[test]
    fn terminating_namespace_is_distinguished_from_missing_permissions() {
        let text = "unable to create new content in namespace a because it is being terminated";
        assert!(matches!(
            classify_status(&NAMES, &status(403, text, "{}")),
            Refusal::NamespaceTerminating(_)
        ));
        assert!(matches!(
            classify_status(&NAMES, &status(403, "exceeded quota", "{}")),
            Refusal::Refused(Cause::Forbidden, _)
        ));
        let text = "services is forbidden: User x cannot patch resource y";
        assert!(matches!(
            classify_status(&NAMES, &status(403, text, "{}")),
            Refusal::Failure(Failure::Failed {
                cause: Cause::Forbidden,
                ..
            })
        ));
    }

    #[test]
    fn a_server_that_fails_is_unavailable() {
        for code in [401, 500, 503, 504] {
            let Refusal::Failure(Failure::Failed { cause, .. }) =
                classify_status(&NAMES, &status(code, "m", "{}"))
            else {
                panic!("{code}");
            };
            assert_eq!(cause, Cause::Unavailable, "{code}");
        }
    }
}
