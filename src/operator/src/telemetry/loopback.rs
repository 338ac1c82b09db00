//! Distinguishes a request of a local user from one that is forwarded.

use axum::http::HeaderMap;
use axum::http::header::{FORWARDED, HOST, ORIGIN, VIA};
use sharded_controller::server::Peer;

/// Headers that proxies and service meshes add. A request that has one comes from elsewhere.
const PASSED_ON: [&str; 6] = [
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
    "x-request-id",
    "x-envoy-external-address",
];

/// Whether the request comes from this machine (or this Pod: `kubectl port-forward` does), was made
/// here, and not by a page in somebody's browser.
///
/// # Errors
/// Why not.
pub(super) fn is_from_loopback(peer: Peer, headers: &HeaderMap) -> Result<(), &'static str> {
    if !peer
        .0
        .is_some_and(|peer| peer.ip().to_canonical().is_loopback())
    {
        return Err("only from loopback: use kubectl port-forward");
    }
    let passed_on = PASSED_ON.iter().any(|name| headers.contains_key(*name));
    if passed_on || headers.contains_key(FORWARDED) || headers.contains_key(VIA) {
        return Err("not through a proxy: use kubectl port-forward");
    }
    // A page from elsewhere sends its origin, or a host name that resolves to loopback.
    if headers.contains_key(ORIGIN) || headers.contains_key("sec-fetch-site") {
        return Err("not from a browser: use curl");
    }
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    if !host.is_some_and(names_loopback) {
        return Err("use localhost or 127.0.0.1 as the host name");
    }
    Ok(())
}

fn names_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    let is_loopback = |address: std::net::IpAddr| address.is_loopback();
    name == "localhost" || address.parse().is_ok_and(is_loopback)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn asked(peer: &str, headers: &[(&'static str, &str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        is_from_loopback(Peer(Some(peer.parse().unwrap())), &map).is_ok()
    }

    #[test]
    fn loopback_requests_are_accepted() {
        for host in [
            "localhost:8080",
            "127.0.0.1:1",
            "127.0.0.1",
            "[::1]:8080",
            "[::1]",
        ] {
            assert!(asked("127.0.0.1:4711", &[("host", host)]), "{host}");
        }
        assert!(asked("[::1]:4711", &[("host", "localhost")]));
        assert!(asked("[::ffff:127.0.0.1]:4711", &[("host", "localhost")]));
    }

    #[test]
    fn requests_from_elsewhere_are_rejected() {
        let host = ("host", "localhost:8080");
        assert!(!asked("10.1.2.3:4711", &[host]));
        assert!(!asked("[::ffff:10.1.2.3]:4711", &[host]));
        assert!(is_from_loopback(Peer(None), &HeaderMap::new()).is_err());
        for name in PASSED_ON
            .into_iter()
            .chain(["forwarded", "via", "origin", "sec-fetch-site"])
        {
            assert!(!asked("127.0.0.1:1", &[host, (name, "x")]), "{name}");
        }
        for foreign in [
            "rebound.example:8080",
            "10.1.2.3",
            "localhost.example",
            "",
            "127.0.0.1.nip.example",
        ] {
            assert!(!asked("127.0.0.1:1", &[("host", foreign)]), "{foreign}");
        }
        assert!(!asked("127.0.0.1:1", &[]), "HTTP/1.0 without a host");
    }
}
