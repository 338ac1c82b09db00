//! Writes into etcd directly: what takes the API server an hour takes a minute.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::ControlPlane;
use crate::error::{Context, Result, failed};
use crate::http_get;

/// etcd takes 128 operations and 1.5 MiB in one request.
const OPERATIONS_MAX: usize = 120;
const BYTES_MAX: usize = 1 << 20;
const TIMEOUT: Duration = Duration::from_secs(60);
const JSON: &str = "Content-Type: application/json\r\n";

/// One object as etcd holds it: JSON will do, whatever the API server writes itself.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its key, such as `/registry/configmaps/default/name`.
    pub key: String,
    /// The object, without `resourceVersion`.
    pub text: String,
}

impl ControlPlane {
    /// Writes objects into etcd, many in one transaction. Nothing checks or completes them.
    ///
    /// # Errors
    /// When etcd refuses, or one of them is too large.
    pub async fn store(&self, objects: &[Stored]) -> Result<()> {
        let mut rest = objects;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |object: &&Stored| {
                bytes += object.key.len() + object.text.len();
                bytes <= BYTES_MAX
            };
            let count = rest.iter().take(OPERATIONS_MAX).take_while(fits).count();
            let (batch, later) = rest.split_at(count);
            if batch.is_empty() {
                return failed(format!("{} is too large for etcd", rest[0].key));
            }
            let puts: Vec<String> = batch.iter().map(put).collect();
            let body = format!(r#"{{"success":[{}]}}"#, puts.join(","));
            let answer = self.ask_etcd("/v3/kv/txn", &body).await?;
            if answer["succeeded"] != Value::Bool(true) {
                return failed(format!("etcd did not take {count} objects: {answer}"));
            }
            rest = later;
        }
        Ok(())
    }

    /// Whether etcd holds something under a key.
    ///
    /// # Errors
    /// When etcd does not answer.
    pub async fn is_stored(&self, key: &str) -> Result<bool> {
        let question = json!({"key": STANDARD.encode(key), "count_only": true}).to_string();
        let answer = self.ask_etcd("/v3/kv/range", &question);
        Ok(answer.await?["count"].as_str() == Some("1"))
    }

    async fn ask_etcd(&self, path: &str, body: &str) -> Result<Value> {
        let url = format!("http://127.0.0.1:{}", self.ports.etcd);
        let answer = http_get::send(&url, ("POST", path), JSON, body, TIMEOUT).await?;
        if answer.status != 200 {
            return failed(format!("etcd: {path}: {}: {}", answer.status, answer.body));
        }
        serde_json::from_str(&answer.body).context("understand etcd")
    }
}

fn put(object: &Stored) -> String {
    let (key, text) = (STANDARD.encode(&object.key), STANDARD.encode(&object.text));
    format!(r#"{{"requestPut":{{"key":"{key}","value":"{text}"}}}}"#)
}
