//! Whether the credentials of this process are bound to a Pod.
//!
//! The fence distinguishes replicas by the Pod that the API server finds in a token of the operator's
//! ServiceAccount. An administrator's kubeconfig bypasses it. The token is read here as the API server
//! reads it, but its signature is not checked: nothing is granted by it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kube::config::AuthInfo;
use serde::Deserialize;

#[derive(Deserialize)]
struct Claims {
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<Kubernetes>,
}

#[derive(Deserialize)]
struct Kubernetes {
    pod: Option<Pod>,
}

#[derive(Deserialize)]
struct Pod {
    name: String,
}

/// Whether it is a ServiceAccount's token that is bound to a Pod.
#[must_use]
pub(crate) fn is_bound_to_pod(credentials: &AuthInfo) -> bool {
    token(credentials).is_some_and(|token| pod_of(&token).is_some())
}

/// The token that requests carry: the one in the configuration, or the one in the file that it names.
fn token(credentials: &AuthInfo) -> Option<String> {
    let inline = serde_json::to_value(credentials).ok()?;
    if let Some(token) = inline.get("token").and_then(|token| token.as_str()) {
        return Some(token.to_owned());
    }
    let path = credentials.token_file.as_ref()?;
    std::fs::read_to_string(path).ok()
}

/// The name of the Pod that a token is bound to.
fn pod_of(token: &str) -> Option<String> {
    let payload = token.trim().split('.').nth(1)?;
    let claims: Claims = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    claims.kubernetes?.pod.map(|pod| pod.name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn token_with(claims: &Value) -> String {
        let payload = URL_SAFE_NO_PAD.encode(claims.to_string());
        format!("header.{payload}.signature")
    }

    fn bound() -> String {
        token_with(&json!({
            "sub": "system:serviceaccount:example-system:example-operator",
            "kubernetes.io": {"pod": {"name": "operator-0", "uid": "u"}, "namespace": "n"},
        }))
    }

    fn credentials(fields: Value) -> AuthInfo {
        serde_json::from_value(fields).unwrap()
    }

    #[test]
    fn only_a_token_that_names_a_pod_is_bound_to_one() {
        assert_eq!(pod_of(&bound()).as_deref(), Some("operator-0"));
        let unbound = json!({"kubernetes.io": {"serviceaccount": {"name": "operator"}}});
        for token in [
            token_with(&unbound),
            token_with(&json!({"sub": "admin"})),
            "opaque".to_owned(),
            "a.b.c".to_owned(),
            String::new(),
        ] {
            assert_eq!(pod_of(&token), None, "{token}");
        }
    }

    #[test]
    fn the_token_is_found_where_requests_take_it_from() {
        assert!(is_bound_to_pod(&credentials(json!({"token": bound()}))));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{}\n", bound())).unwrap();
        let in_file = json!({"tokenFile": file.path()});
        assert!(is_bound_to_pod(&credentials(in_file)));
        for admin in [
            json!({}),
            json!({"client-certificate": "/admin.crt", "client-key": "/admin.key"}),
            json!({"tokenFile": "/nowhere"}),
            json!({"token": "opaque", "tokenFile": file.path()}),
        ] {
            assert!(!is_bound_to_pod(&credentials(admin.clone())), "{admin}");
        }
    }
}
