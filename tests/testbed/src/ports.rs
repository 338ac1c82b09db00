//! Free TCP ports on loopback, outside the range from which the kernel takes ports by itself.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::{Ipv4Addr, TcpListener};

use crate::error::{Result, failed};

const FIRST: u64 = 12_000;
const LAST: u64 = 31_000;
const ATTEMPTS: usize = 1_000;

/// `N` different ports that were free on loopback a moment ago.
///
/// Another process may take one before it is used, so a caller that starts servers on them checks that they listen.
///
/// # Errors
/// When no free ports could be found.
pub fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut held = Vec::with_capacity(N);
    let random = RandomState::new();
    for attempt in 0..ATTEMPTS {
        if held.len() == N {
            break;
        }
        let offset = random.hash_one(attempt) % (LAST - FIRST);
        let Ok(port) = u16::try_from(FIRST + offset) else {
            continue;
        };
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            held.push((port, listener));
        }
    }
    let ports: Vec<u16> = held.iter().map(|(port, _)| *port).collect();
    match ports.try_into() {
        Ok(ports) => Ok(ports),
        Err(_) => failed(format!(
            "no {N} free ports between {FIRST} and {LAST} on 127.0.0.1: end some servers"
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn ports_are_distinct_and_can_be_bound() {
        let ports = free_ports::<8>().unwrap();
        assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), 8);
        for port in ports {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        }
    }
}
