//! Events about clusters. They are best effort: one that cannot be published does not fail the
//! reconcile.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use crate::api::names;
use crate::core::observed::ClusterRecord;
use crate::core::status::Notice;
use sharded_controller::permit::ShardPermit;
use sharded_controller::refusal::Refusal;
use sharded_controller::write::GuardedClient;

/// Longest note that the API server accepts, in bytes.
const NOTE_LENGTH_MAX: usize = 1000;

/// Publishes events, one reporter for all.
#[derive(Clone)]
pub(super) struct Events {
    client: GuardedClient,
    reporter: Reporter,
}

impl Events {
    pub(super) fn new(client: GuardedClient, identity: &str) -> Self {
        let reporter = Reporter {
            controller: names::REPORTER.to_owned(),
            instance: Some(identity.to_owned()),
        };
        Self { client, reporter }
    }

    /// Publishes an event; returns whether it was published.
    pub(super) async fn publish(
        &self,
        permit: &ShardPermit,
        cluster: &ClusterRecord,
        notice: &Notice,
    ) -> bool {
        let (type_, reason, note) = match notice {
            Notice::Ready(note) => (EventType::Normal, "DatabaseReady", note),
            Notice::Error(note) => (EventType::Warning, "DatabaseError", note),
        };
        let end = note.floor_char_boundary(NOTE_LENGTH_MAX);
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: note.get(..end).map(str::to_owned),
            action: "Reconciling".to_owned(),
            secondary: None,
        };
        let regarding = ObjectReference {
            api_version: Some(names::API_VERSION.to_owned()),
            kind: Some(names::KIND.to_owned()),
            namespace: Some(cluster.key.namespace.to_string()),
            name: Some(cluster.key.name.to_string()),
            uid: Some(cluster.uid.to_string()),
            ..ObjectReference::default()
        };
        match self.send(permit, event, &regarding).await {
            Ok(()) => true,
            Err(refusal) => {
                tracing::debug!(object = %cluster.key, ?refusal, "an event was not published");
                false
            }
        }
    }

    /// Sends an event about any object.
    pub(super) async fn send(
        &self,
        permit: &ShardPermit,
        event: Event,
        regarding: &ObjectReference,
    ) -> Result<(), Refusal> {
        // A recorder that is used again counts an event with the same reason, whatever its note says, and
        // the new note is lost (kube-runtime 4, `EventKey`).
        let (reporter, regarding) = (self.reporter.clone(), regarding.clone());
        let write = self.client.write_unfenced(|client| async move {
            let recorder = Recorder::new(client, reporter);
            recorder.publish(&event, &regarding).await
        });
        permit.guard(write).await
    }
}
