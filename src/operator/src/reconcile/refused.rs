//! Writes that the fence keeps refusing: the objects concerned, and the report to the user.

use std::fmt;

use super::apply::Refused;
use super::run::Run;
use crate::api::names;
use crate::core::child::ChildId;
use crate::core::lifecycle::{ConditionReason, Problem, reason};
use crate::core::status::Notice;
use sharded_controller::object::ObjectKey;
use sharded_controller::outcome::{Cause, Failure};
use sharded_controller::refusal::{Refusal, Rule};

/// The object of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target<'a> {
    /// The DatabaseCluster's metadata.
    Cluster(&'a ObjectKey),
    /// The DatabaseCluster's status, which has a token of its own.
    Status(&'a ObjectKey),
    /// A child.
    Child(&'a ObjectKey, &'a ChildId),
    /// A volume claim.
    Claim(&'a ObjectKey, &'a str),
    /// A Pod.
    Pod(&'a ObjectKey, &'a str),
}

impl Target<'_> {
    fn kind(&self) -> &'static str {
        match self {
            Self::Cluster(_) | Self::Status(_) => names::KIND,
            Self::Child(_, id) => id.kind.label(),
            Self::Claim(..) => "PersistentVolumeClaim",
            Self::Pod(..) => "Pod",
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Cluster(cluster) | Self::Status(cluster) => &cluster.name,
            Self::Child(_, id) => &id.name,
            Self::Claim(_, name) | Self::Pod(_, name) => name,
        }
    }

    /// The command that removes the token from it.
    fn remedy(&self) -> String {
        let (Self::Cluster(cluster)
        | Self::Status(cluster)
        | Self::Child(cluster, _)
        | Self::Claim(cluster, _)
        | Self::Pod(cluster, _)) = self;
        let object = format!(
            "-n {} {} {}",
            cluster.namespace,
            self.kind().to_lowercase(),
            self.name()
        );
        match self {
            Self::Status(_) => format!(
                "kubectl patch {object} --subresource=status --type=merge -p \
                 '{{\"status\":{{\"shard\":null}}}}'"
            ),
            Self::Cluster(_) | Self::Child(..) | Self::Claim(..) | Self::Pod(..) => format!(
                "kubectl annotate {object} {}-",
                names::FENCING_TOKEN_ANNOTATION
            ),
        }
    }
}

impl fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Status(_) = self {
            f.write_str("the status of ")?;
        }
        write!(f, "{} {}", self.kind(), self.name())
    }
}

/// The two epochs in the fence's message: ours and the one on the object.
fn epochs(message: &str) -> Option<(&str, &str)> {
    let (_, rest) = message.rsplit_once("epoch ")?;
    let (ours, rest) = rest.split_once(" is older than the one on the object, ")?;
    let end = rest.find(|c: char| !c.is_ascii_digit());
    Some((ours, rest.get(..end.unwrap_or(rest.len()))?))
}

fn explain(target: &Target<'_>, rule: Rule, message: &str) -> (Cause, ConditionReason) {
    if rule != Rule::TokenAhead {
        let why = ConditionReason::new(
            reason::WRITE_REFUSED,
            format!("the API server keeps refusing changes of {target}: {message}"),
        );
        return (Cause::Fenced, why);
    }
    let compared = epochs(message).map_or_else(String::new, |(ours, on_it)| {
        format!(" (epoch {on_it}; its shard is at {ours})")
    });
    let why = ConditionReason::new(
        reason::TOKEN_AHEAD,
        format!(
            "{target} carries a fencing token that is ahead of its shard's holder{compared}, so the \
             API server refuses every change of it. It was edited or restored from a backup; remove the \
             token: {}",
            target.remedy()
        ),
    );
    (Cause::TokenAhead, why)
}

impl Run<'_> {
    /// Interprets a refused write. What the fence refused is retried first, with ownership read again
    /// meanwhile; what it still refuses then is reported on the cluster.
    pub(super) fn refused(&mut self, target: &Target<'_>, refusal: Refusal) -> Refused {
        let what = target.to_string();
        let (rule, message) = match refusal {
            Refusal::Fenced { rule, message } => (rule, message),
            other => return Refused::by(other, &format!("changing {what}")),
        };
        if self.permit.check().is_err() {
            return Refused::Failure(Failure::Lost);
        }
        let is_known = self
            .reconciler
            .with_memory(self.cluster, |memory| memory.is_refused(&what));
        if !is_known && !self.backlog.outlook().attempts.are_retries_spent() {
            let refusal = Refusal::Fenced { rule, message };
            return Refused::Failure(refusal.into_failure(&format!("changing {what}")));
        }
        let (cause, why) = explain(target, rule, &message);
        self.reconciler
            .with_memory(self.cluster, |memory| memory.refused(&what));
        self.still_refused.push(what);
        let message = why.message.clone();
        Refused::Fenced(Problem::Permanent(why), Failure::Failed { cause, message })
    }

    /// Handles a refused write of the status: its content, and why it cannot be written, are
    /// published as Events, once.
    pub(super) async fn status_refused(
        &mut self,
        refusal: Refusal,
        unpublished: Option<&Notice>,
    ) -> Failure {
        let key = &self.cluster.key;
        let target = Target::Status(key);
        let was_known = self.reconciler.with_memory(self.cluster, |memory| {
            memory.is_refused(&target.to_string())
        });
        match self.refused(&target, refusal) {
            Refused::Fenced(Problem::Permanent(why), failure) => {
                if !was_known {
                    let notice = Notice::of(&why);
                    for notice in [Some(&notice), unpublished].into_iter().flatten() {
                        let events = &self.reconciler.events;
                        self.wrote |= events.publish(self.permit, self.cluster, notice).await;
                    }
                }
                failure
            }
            Refused::Fenced(_, failure)
            | Refused::Reported(_, failure)
            | Refused::Failure(failure) => failure,
            Refused::Problem(Problem::Transient(why) | Problem::Permanent(why)) => {
                Failure::Failed {
                    cause: Cause::Forbidden,
                    message: why.message,
                }
            }
            Refused::NotObserved => Failure::Retry {
                fenced: false,
                message: "writing the status".to_owned(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::child::ChildKind;

    #[test]
    fn the_message_names_the_object_both_epochs_and_the_command() {
        let cluster = ObjectKey::new("shop", "orders");
        let id = ChildId {
            kind: ChildKind::StatefulSet,
            name: "orders-db".into(),
        };
        let message = "statefulsets.apps \"orders-db\" is forbidden: ValidatingAdmissionPolicy \
                    'databasecluster-fence-order' denied request: epoch 3 is older than the one on \
                    the object, 999";
        let (cause, why) = explain(&Target::Child(&cluster, &id), Rule::TokenAhead, message);
        assert_eq!(cause, Cause::TokenAhead);
        assert_eq!(why.reason, "FencingTokenAhead");
        for part in [
            "StatefulSet orders-db",
            "epoch 999",
            "at 3",
            "kubectl annotate -n shop statefulset orders-db database.io/fencing-token-",
        ] {
            assert!(why.message.contains(part), "{part}: {}", why.message);
        }
        let (cause, why) = explain(
            &Target::Claim(&cluster, "data-orders-db-0"),
            Rule::Object,
            "no",
        );
        assert_eq!(
            (cause, why.reason.as_str()),
            (Cause::Fenced, "WriteRefused")
        );
        assert!(
            why.message
                .ends_with("PersistentVolumeClaim data-orders-db-0: no")
        );
        let (_, why) = explain(
            &Target::Status(&cluster),
            Rule::TokenAhead,
            "without numbers",
        );
        assert!(
            why.message.ends_with(
                "kubectl patch -n shop databasecluster orders --subresource=status --type=merge -p \
                 '{\"status\":{\"shard\":null}}'"
            ),
            "{}",
            why.message
        );
    }
}
