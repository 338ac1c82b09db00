//! Writes of a reconciler: described here, and sent by [`ShardPermit::guard`] alone.
//!
//! A reconciler gets a [`GuardedClient`]. It reads whenever it likes. What it asks to write becomes a
//! [`Write`], which is no future: only a permit, which checks that this replica still holds the
//! shard, sends it.
//!
//! ```compile_fail
//! # use sharded_controller::write::GuardedClient;
//! # async fn a(client: GuardedClient, request: http::Request<Vec<u8>>) {
//! // A write without a permit does not compile: `Write` cannot be awaited.
//! let _ = client.write("configmaps", Ok(request)).await;
//! # }
//! ```
//!
//! ```
//! # use sharded_controller::write::GuardedClient;
//! # use sharded_controller::permit::ShardPermit;
//! # async fn a(client: GuardedClient, permit: ShardPermit, request: http::Request<Vec<u8>>) {
//! let _ = permit.guard(client.write("configmaps", Ok(request))).await;
//! # }
//! ```
//!
//! [`ShardPermit::guard`]: crate::permit::ShardPermit::guard

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use http::header::{ACCEPT, HeaderValue};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, ApiResource, DynamicObject, GetParams, ListParams};
use kube::core::{NamespaceResourceScope, Request};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use shard_ownership::hash::ShardId;

use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::names::Names;
use crate::refusal::{Refusal, classify};
use crate::refused_writes::RefusedWrites;
use crate::watch::wire::{All, WireMeta};

const METADATA_ONLY: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// The API server as a reconciler may use it.
#[derive(Clone)]
pub struct GuardedClient {
    client: Client,
    names: Names,
    clock: Clock,
    metrics: Arc<Metrics>,
    refused: Arc<RefusedWrites>,
}

impl Debug for GuardedClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuardedClient").finish_non_exhaustive()
    }
}

/// A write that was not sent yet.
#[must_use = "only `ShardPermit::guard` sends a write"]
pub struct Write<T> {
    pub(crate) request: Pin<Box<dyn Future<Output = kube::Result<T>> + Send>>,
    pub(crate) account: Account,
}

impl<T> Debug for Write<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Write")
            .field("kind", &self.account.kind)
            .finish_non_exhaustive()
    }
}

/// Where the end of a write is counted.
pub(crate) struct Account {
    /// Value of the label `kind`; none: the fence does not concern it.
    kind: Option<&'static str>,
    names: Names,
    clock: Clock,
    metrics: Arc<Metrics>,
    refused: Arc<RefusedWrites>,
}

impl Account {
    /// The right to act ended before the write was sent.
    pub(crate) fn lost(&self) {
        self.metrics.fleet.tenure_lost_total.inc();
    }

    /// Counts the answer, and classifies a refusal.
    pub(crate) fn settle<T>(&self, shard: ShardId, answer: kube::Result<T>) -> Result<T, Refusal> {
        let answer = answer.map_err(|error| classify(&self.names, &error));
        let Some(kind) = self.kind else {
            return answer;
        };
        match &answer {
            Ok(_) => self.refused.accepted(shard),
            Err(refusal) => {
                self.refused.refused(shard, refusal, self.clock.now_ms());
                if matches!(refusal, Refusal::Fenced { .. }) {
                    let counter = &self.metrics.fleet.fenced_writes_total;
                    counter.with_label_values(&[kind]).inc();
                }
            }
        }
        answer
    }
}

impl GuardedClient {
    /// Sends over `client`.
    #[must_use]
    pub fn new(client: Client, names: Names, metrics: Arc<Metrics>, clock: Clock) -> Self {
        Self {
            client,
            names,
            clock,
            metrics,
            refused: Arc::default(),
        }
    }

    /// Counts refusals of writes of these kinds from zero: a rate over a series that appears with its
    /// first event misses that event.
    pub fn expect_kinds(&self, kinds: impl IntoIterator<Item = &'static str>) {
        for kind in kinds {
            let counter = &self.metrics.fleet.fenced_writes_total;
            counter.with_label_values(&[kind]);
        }
    }

    /// The shards in which every write is refused.
    #[must_use]
    pub fn refused(&self) -> &RefusedWrites {
        &self.refused
    }

    /// Describes a write of a fenced kind, of whose answer only metadata is asked for. `kind` is the
    /// value of the label `kind` of metrics.
    pub fn write(
        &self,
        kind: &'static str,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Write<ObjectMeta> {
        #[derive(serde::Deserialize)]
        struct Answer {
            metadata: WireMeta<All>,
        }
        self.write_with(kind, |client| async move {
            let mut request = request.map_err(kube::Error::BuildRequest)?;
            request
                .headers_mut()
                .insert(ACCEPT, HeaderValue::from_static(METADATA_ONLY));
            let answer: Answer = client.request(request).await?;
            Ok(answer.metadata.into())
        })
    }

    /// Describes a write of a fenced kind that `send` carries out.
    pub fn write_with<T, F>(&self, kind: &'static str, send: impl FnOnce(Client) -> F) -> Write<T>
    where
        F: Future<Output = kube::Result<T>> + Send + 'static,
    {
        self.describe(Some(kind), send)
    }

    /// Describes a write that the fence does not concern, such as an Event, which `send` carries out.
    pub fn write_unfenced<T, F>(&self, send: impl FnOnce(Client) -> F) -> Write<T>
    where
        F: Future<Output = kube::Result<T>> + Send + 'static,
    {
        self.describe(None, send)
    }

    fn describe<T, F>(&self, kind: Option<&'static str>, send: impl FnOnce(Client) -> F) -> Write<T>
    where
        F: Future<Output = kube::Result<T>> + Send + 'static,
    {
        Write {
            request: Box::pin(send(self.client.clone())),
            account: Account {
                kind,
                names: self.names,
                clock: self.clock.clone(),
                metrics: Arc::clone(&self.metrics),
                refused: Arc::clone(&self.refused),
            },
        }
    }

    /// What an answer to a read means.
    #[must_use]
    pub fn classify(&self, error: &kube::Error) -> Refusal {
        classify(&self.names, error)
    }

    /// Lists objects of a kind in one namespace.
    ///
    /// # Errors
    /// When the API server does not answer with the list.
    pub async fn list<K>(&self, namespace: &str, params: &ListParams) -> kube::Result<Vec<K>>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + Debug,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        Ok(api.list(params).await?.items)
    }

    /// Reads one object of the kind `K`, as far as `T` takes it in; `None`: there is none.
    ///
    /// # Errors
    /// When the API server does not answer with the object.
    pub async fn get<K, T>(&self, namespace: &str, name: &str) -> kube::Result<Option<T>>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
        T: DeserializeOwned,
    {
        let url = K::url_path(&(), Some(namespace));
        let request = Request::new(url).get(name, &GetParams::default());
        let answer = self
            .client
            .request(request.map_err(kube::Error::BuildRequest)?)
            .await;
        match answer {
            Ok(found) => Ok(Some(found)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads the metadata of one object; `None`: there is none.
    ///
    /// # Errors
    /// What the API server's answer means.
    pub async fn get_metadata(
        &self,
        resource: &ApiResource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<ObjectMeta>, Refusal> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), namespace, resource);
        match api.get_metadata_opt(name).await {
            Ok(found) => Ok(found.map(|object| object.metadata)),
            Err(error) => Err(classify(&self.names, &error)),
        }
    }
}
