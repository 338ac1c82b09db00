//! The Secret that `spec.tls` names: checked before Pods restart for it, as far as the operator may.
//!
//! The operator has no right to read Secrets. Users grant it for a single one, by its name; without that, all that is
//! known is whether the Secret exists, and the Pods find out the rest.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, de};

use super::run::Run;
use crate::api::Tls;
use crate::core::certificate::{self, TlsSecret};
use crate::core::child::{ChildId, ChildKind};
use crate::core::lifecycle::{ConditionReason, Problem, reason};
use crate::core::observed::StatefulSetRecord;
use crate::postgres;
use sharded_controller::refusal::Refusal;

/// For so long a result is used again, so that the many runs of a rollout read the Secret once.
const FRESH_MS: u64 = 10_000;
/// For so long a Secret of a new cluster may be missing before that is reported as wrong: cert-manager writes it some
/// seconds after the objects were created.
const CREATION_MS: u64 = 30_000;

/// What is read of the Secret.
#[derive(Deserialize)]
struct PublicPart {
    data: Option<Keys>,
}

#[derive(Deserialize)]
struct Keys {
    #[serde(rename = "tls.crt")]
    certificate: Option<ByteString>,
    #[serde(rename = "ca.crt")]
    authority: Option<ByteString>,
    #[serde(rename = "tls.key")]
    key: Option<Presence>,
}

/// Whether a text is not empty. Its content is not kept.
struct Presence(bool);

impl<'de> Deserialize<'de> for Presence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NotEmpty;
        impl Visitor<'_> for NotEmpty {
            type Value = Presence;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a text")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Presence, E> {
                Ok(Presence(!text.is_empty()))
            }
        }
        deserializer.deserialize_str(NotEmpty)
    }
}

/// What is wrong with the Secret, and whether the StatefulSet waits until it is corrected.
pub(super) struct BadSecret {
    pub(super) problem: Problem,
    pub(super) holds_set: bool,
}

impl Run<'_> {
    /// What is wrong with the Secret that `spec.tls` names.
    pub(super) async fn check_tls(&self, owned: Option<&StatefulSetRecord>) -> Option<BadSecret> {
        let tls = self.cluster.spec.customization.as_ref()?.tls.as_ref()?;
        // Pods with this Secret keep what is good of it: whatever else changes is applied. A set that was deleted is
        // created again.
        let user = owned.filter(|set| set.tls_secret.as_deref() == Some(&*tls.secret_name));
        let uses_it = user.is_some();
        let why = self.known_or_read(tls, user).await?;
        let holds_set = !uses_it && (owned.is_some() || !self.initialized);
        let is_new = why.reason == reason::TLS_MISSING
            && owned.is_none()
            && !self.initialized
            && self.reconciler.with_memory(self.cluster, |memory| {
                memory.awaits(self.reconciler.clock.now_ms()) < CREATION_MS
            });
        let problem = match is_new {
            true => Problem::Transient(why),
            false => Problem::Permanent(why),
        };
        Some(BadSecret { problem, holds_set })
    }

    async fn known_or_read(
        &self,
        tls: &Tls,
        user: Option<&StatefulSetRecord>,
    ) -> Option<ConditionReason> {
        let (reconciler, generation) = (self.reconciler, self.cluster.generation);
        let now_ms = reconciler.clock.now_ms();
        let known = reconciler.with_memory(self.cluster, |memory| {
            memory.tls_checked(generation, FRESH_MS, now_ms)
        });
        if let Some(known) = known {
            return known;
        }
        let mut found = self.read(tls).await;
        if let (None, Some(set)) = (&found, user) {
            found = self.reported_by_pods(set).await;
        }
        reconciler.with_memory(self.cluster, |memory| {
            memory.tls_check(generation, found.clone(), now_ms);
        });
        found
    }

    /// The key, and what the operator must not read, is tried by the Pods alone.
    async fn reported_by_pods(&self, set: &StatefulSetRecord) -> Option<ConditionReason> {
        let now = self.reconciler.clock.now();
        let report = self.reconciler.lookups.tls_report(set, now).await;
        report.unwrap_or_else(|error| {
            tracing::debug!(object = %self.cluster.key, %error, "its Events could not be listed");
            None
        })
    }

    async fn read(&self, tls: &Tls) -> Option<ConditionReason> {
        let (name, namespace) = (&tls.secret_name, &self.cluster.key.namespace);
        let client = self.reconciler.writer.client();
        let secret = match client.get::<Secret, PublicPart>(namespace, name).await {
            Ok(Some(secret)) => secret,
            Ok(None) => return Some(missing(name)),
            Err(error) => {
                let is_forbidden = matches!(&error, kube::Error::Api(status) if status.code == 403);
                // What the API server answers to a read of a Secret is in no log.
                return match is_forbidden && !self.exists(name).await {
                    true => Some(missing(name)),
                    false => None,
                };
            }
        };
        let keys = secret.data;
        let bytes = |key: fn(&Keys) -> &Option<ByteString>| {
            let found = keys.as_ref().and_then(|keys| key(keys).as_ref());
            found.map(|bytes| bytes.0.clone()).unwrap_or_default()
        };
        let has_key = keys.as_ref().and_then(|keys| keys.key.as_ref());
        let secret = TlsSecret {
            certificate: bytes(|keys| &keys.certificate),
            authority: bytes(|keys| &keys.authority),
            has_key: has_key.is_some_and(|key| key.0),
        };
        let host_names = postgres::host_names(self.cluster);
        let now = self.reconciler.clock.now();
        let problem = certificate::problem(name, &secret, &host_names, now)?;
        Some(ConditionReason::new(reason::TLS_INVALID, problem))
    }

    /// Whether there is a Secret of this name, by a dry run that would create it. If that is not known, it is taken to
    /// exist: the Pods report it otherwise.
    async fn exists(&self, name: &str) -> bool {
        let id = ChildId {
            kind: ChildKind::Secret,
            name: name.into(),
        };
        let manifest = postgres::trial_secret(self.cluster, name, self.permit.token());
        let (namespace, writer) = (&self.cluster.key.namespace, &self.reconciler.writer);
        let answer = writer
            .create(self.permit, namespace, &id, manifest, true)
            .await;
        match answer {
            Ok(()) => false,
            Err(Refusal::Conflict(_)) => true,
            Err(refusal) => {
                tracing::debug!(object = %self.cluster.key, ?refusal, "its TLS Secret could not be checked");
                true
            }
        }
    }
}

fn missing(name: &str) -> ConditionReason {
    let message = format!(
        "the Secret {name}, which spec.tls.secretName names, is missing: create it with the keys tls.crt, tls.key and ca.crt"
    );
    ConditionReason::new(reason::TLS_MISSING, message)
}
