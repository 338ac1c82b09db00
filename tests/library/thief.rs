//! A thief with a replica's own token: the generated fence refuses what that replica must not write.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use testbed::fencing::Token;
use testbed::{Fleet, control_plane};

use crate::DERIVE;
use crate::sources::{NAMESPACES, Sources};

const NAMESPACE: &str = NAMESPACES[2];

struct Thief {
    client: Client,
}

pub(crate) async fn is_refused(fleet: &Fleet<'_>, sources: &Sources) {
    let replica = &fleet.replicas()[0];
    let client = control_plane::client_from(replica.kubeconfig())
        .await
        .unwrap();
    let thief = Thief { client };
    // Now everything carries the token that is in force.
    sources.change(1).await;
    sources.wait_derived().await;
    let (own, other) = pick(sources, replica.name()).await;

    let plain = json!({"data": {"greeting": "stolen"}});
    let source = own.name.strip_suffix("-derived").unwrap();
    let answer = thief.merge(source, plain.clone()).await;
    refused("a source", answer, "derive-fence-order");
    let unmarked = json!({"metadata": {"name": "unmarked"}, "data": {"greeting": "stolen"}});
    let answer = thief.create(unmarked).await;
    refused(
        "an object without owner and token",
        answer,
        "derive-fence-order",
    );

    let mut forged = own.token.clone();
    forged.epoch += 1;
    let answer = thief.create(own.with("forged", &forged)).await;
    refused("a forged epoch", answer, "derive-fence-holder");
    let answer = thief.merge(&own.name, own.with(&own.name, &forged)).await;
    refused(
        "a forged epoch on what exists",
        answer,
        "derive-fence-holder",
    );
    let mut stale = own.token.clone();
    stale.epoch -= 1;
    let answer = thief.merge(&own.name, own.with(&own.name, &stale)).await;
    refused("an old epoch", answer, "derive-fence-");
    let answer = thief
        .merge(&other.name, other.with(&other.name, &other.token))
        .await;
    refused(
        "the token of another replica",
        answer,
        "derive-fence-holder",
    );
    let stolen = own.with("elsewhere", &own.token);
    let answer = thief.create_in("kube-system", stolen).await;
    refused(
        "an object in kube-system",
        answer,
        "derive-limits-namespaces",
    );
}

/// Something derived, with its token.
struct Target {
    name: String,
    bucket: String,
    owners: Value,
    token: Token,
}

impl Target {
    /// The same object under another name and token.
    fn with(&self, name: &str, token: &Token) -> Value {
        json!({
            "metadata": {
                "name": name,
                "labels": {DERIVE.label("bucket"): self.bucket},
                "annotations": {DERIVE.label("fencing-token"): token.to_string()},
                "ownerReferences": self.owners,
            },
            "data": {"greeting": "stolen"},
        })
    }
}

/// What the replica of this name may write, and what another one may.
async fn pick(sources: &Sources, replica: &str) -> (Target, Target) {
    let all = sources
        .api(NAMESPACE)
        .list(&ListParams::default())
        .await
        .unwrap();
    let (own, others): (Vec<Target>, Vec<Target>) = all
        .items
        .iter()
        .filter_map(target)
        .partition(|target| target.token.holder == replica);
    // Only where the shard has changed hands is there an older epoch.
    let own = own.into_iter().find(|target| target.token.epoch > 1);
    (own.unwrap(), others.into_iter().next().unwrap())
}

fn target(object: &ConfigMap) -> Option<Target> {
    let bucket = object.labels().get(&DERIVE.label("bucket"))?.clone();
    let body = serde_json::to_value(object).unwrap();
    Some(Target {
        name: object.name_any(),
        bucket,
        owners: body.pointer("/metadata/ownerReferences")?.clone(),
        token: DERIVE.token_of_annotation(&body)?,
    })
}

impl Thief {
    async fn merge(&self, name: &str, change: Value) -> kube::Result<ConfigMap> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
        let (manager, change) = (PatchParams::default(), Patch::Merge(&change));
        api.patch(name, &manager, &change).await
    }

    async fn create(&self, object: Value) -> kube::Result<ConfigMap> {
        self.create_in(NAMESPACE, object).await
    }

    async fn create_in(&self, namespace: &str, object: Value) -> kube::Result<ConfigMap> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let object = serde_json::from_value(object).unwrap();
        api.create(&PostParams::default(), &object).await
    }
}

/// The API server reports the first policy that refuses.
fn refused(what: &str, answer: kube::Result<ConfigMap>, policy: &str) {
    let error = answer.expect_err(what).to_string();
    assert!(error.contains(policy), "{what}: {error}");
}
