//! The program in the test image: resolves a name through the C library.

use std::net::ToSocketAddrs;

fn main() {
    let name = std::env::args().nth(1).unwrap_or_default();
    match (name.as_str(), 443).to_socket_addrs() {
        Ok(found) => println!("{:?}", found.collect::<Vec<_>>()),
        Err(error) => println!("no answer: {error}"),
    }
}
