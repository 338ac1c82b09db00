//! Server-side sharding (KEP-5866): adds `shardSelector` to list and watch requests, and probes for it.

use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Method, Request, Response, Uri};
use kube::Client;
use kube::client::Body;
use tower::Service;

use shard_ownership::hash::{ShardCount, ShardId};

/// The selector of one shard: a half-open range of the hash of `metadata.uid`, with exactly 16 hex
/// digits, or `0x10000000000000000` for the end of the circle.
#[must_use]
pub(crate) fn shard_selector(count: ShardCount, shard: ShardId) -> String {
    let (start, end) = count.arc(shard);
    let end = end.map_or_else(
        || "0x10000000000000000".to_owned(),
        |end| format!("0x{end:016x}"),
    );
    format!("shardRange(object.metadata.uid, '0x{start:016x}', '{end}')")
}

/// A client whose list and watch requests for `plural` carry the selector.
///
/// It shares the connections of `client`.
#[must_use]
pub(crate) fn with_selector(client: &Client, plural: &'static str, selector: &str) -> Client {
    let service = Selecting {
        client: client.clone(),
        plural,
        query: format!("shardSelector={}", encode(selector)),
    };
    Client::new(service, client.default_namespace())
}

/// Percent-encoding of everything that is not unreserved (RFC 3986, section 2.3).
fn encode(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _infallible = write!(out, "%{byte:02X}");
        }
        out
    })
}

/// See [`with_selector`].
#[derive(Clone)]
struct Selecting {
    client: Client,
    plural: &'static str,
    query: String,
}

impl Service<Request<Body>> for Selecting {
    type Response = Response<Body>;
    type Error = kube::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, kube::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), kube::Error>> {
        // The client queues by itself.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if request.method() == Method::GET
            && is_collection(request.uri(), self.plural)
            && let Some(uri) = add_query(request.uri(), &self.query)
        {
            *request.uri_mut() = uri;
        }
        let client = self.client.clone();
        async move { client.send(request).await }.boxed()
    }
}

fn is_collection(uri: &Uri, plural: &str) -> bool {
    uri.path().rsplit('/').next() == Some(plural)
}

fn add_query(uri: &Uri, addition: &str) -> Option<Uri> {
    let query = match uri.query() {
        Some(query) if !query.is_empty() => format!("{query}&{addition}"),
        _ => addition.to_owned(),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(format!("{}?{query}", uri.path()).parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// Whether the API server filters by shard, determined by an unambiguous request: an invalid
/// selector is an error where selectors are supported, and is ignored where they are not.
///
/// # Errors
/// When the answer shows neither: the API server cannot be reached, or listing is forbidden.
pub(crate) async fn probe(client: &Client, path: &str) -> Result<bool, kube::Error> {
    let uri = format!("{path}?limit=1&shardSelector={}", encode("not a selector"));
    let request = Request::get(uri)
        .body(Vec::new())
        .map_err(kube::Error::HttpError)?;
    match client.request::<serde_json::Value>(request).await {
        Ok(_) => Ok(false),
        Err(kube::Error::Api(status)) if status.message.contains("shard selector") => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_selectors_cover_the_circle_without_gap_or_overlap() {
        let count = ShardCount::new(2).unwrap();
        assert_eq!(
            shard_selector(count, ShardId(0)),
            "shardRange(object.metadata.uid, '0x0000000000000000', '0x8000000000000000')"
        );
        assert_eq!(
            shard_selector(count, ShardId(1)),
            "shardRange(object.metadata.uid, '0x8000000000000000', '0x10000000000000000')"
        );
    }

    #[test]
    fn only_lists_of_the_one_resource_carry_the_selector() {
        let all: Uri = "https://h/apis/example.io/v1/examples?watch=1"
            .parse()
            .unwrap();
        let one: Uri = "https://h/apis/example.io/v1/namespaces/n/examples/x"
            .parse()
            .unwrap();
        assert!(is_collection(&all, "examples"));
        assert!(!is_collection(&one, "examples"));
        let added = add_query(&all, "shardSelector=a").unwrap();
        assert_eq!(added.query(), Some("watch=1&shardSelector=a"));
    }
}
