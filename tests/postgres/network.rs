//! Other servers in the network: a DNS server, and an impostor of the primary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How many DNS servers this process has started.
static STARTED: AtomicU32 = AtomicU32::new(0);

/// A DNS server that resolves the given names and records the queries.
pub(crate) struct Resolver {
    address: Ipv4Addr,
    names: Arc<Mutex<Names>>,
}

#[derive(Default)]
struct Names {
    known: BTreeMap<String, Ipv4Addr>,
    asked: Vec<String>,
}

impl Resolver {
    /// On an address of its own, so that port 53 is free. Needs root.
    pub(crate) fn start() -> Self {
        let id = std::process::id();
        let part = |number: u32| u8::try_from(number % 250).unwrap();
        let own = 78 + part(STARTED.fetch_add(1, Ordering::Relaxed)) % 100;
        let address = Ipv4Addr::new(127, own, part(id / 250), part(id) + 1);
        let socket = UdpSocket::bind((address, 53)).expect("port 53 of an address of loopback");
        let names = Arc::new(Mutex::new(Names::default()));
        let of_server = Arc::clone(&names);
        std::thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((length, asker)) = socket.recv_from(&mut question) {
                let reply = reply(&question[..length], &of_server);
                let _gone = socket.send_to(&reply, asker);
            }
        });
        Self { address, names }
    }

    /// As the kubelet writes it for a Pod of the namespace `shop`.
    pub(crate) fn resolv_conf(&self, domain: &str) -> String {
        let search = format!("shop.svc.{domain} svc.{domain} {domain} example.com");
        let address = self.address;
        format!("nameserver {address}\nsearch {search}\noptions ndots:5\n")
    }

    pub(crate) fn add(&self, name: &str, address: Ipv4Addr) {
        let mut names = self.names.lock().unwrap();
        names.known.insert(name.to_owned(), address);
    }

    /// Every requested name, in order.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.names.lock().unwrap().asked.clone()
    }
}

fn reply(question: &[u8], names: &Mutex<Names>) -> Vec<u8> {
    let mut name = String::new();
    let mut at = 12;
    while question[at] != 0 {
        let end = at + 1 + usize::from(question[at]);
        name.push_str(std::str::from_utf8(&question[at + 1..end]).unwrap());
        name.push('.');
        at = end;
    }
    let is_ipv4 = question[at + 1..at + 3] == [0, 1];
    let mut names = names.lock().unwrap();
    let found = names.known.get(&name).copied();
    names.asked.push(name);
    let answer = found.filter(|_| is_ipv4);
    let missing = if found.is_none() { 3 } else { 0 };
    let mut reply = question[..at + 5].to_vec();
    reply[2..4].copy_from_slice(&[0x81, 0x80 + missing]);
    reply[6..12].copy_from_slice(&[0, u8::from(answer.is_some()), 0, 0, 0, 0]);
    if let Some(address) = answer {
        reply.extend([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        reply.extend(address.octets());
    }
    reply
}

/// What an impostor of the primary requests from a client.
#[derive(Clone, Copy)]
pub(crate) enum Demand {
    /// Nothing.
    Trust = 0,
    /// The password as it is.
    Password = 3,
}

/// An impostor of the primary.
pub(crate) struct Rogue {
    received: Arc<Mutex<Vec<String>>>,
}

impl Rogue {
    pub(crate) fn listen(address: Ipv4Addr, port: u16, demand: Demand) -> Self {
        let listener = TcpListener::bind((address, port)).unwrap();
        let received = Arc::new(Mutex::new(Vec::new()));
        let of_server = Arc::clone(&received);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if let Some(text) = talk(stream, demand) {
                    of_server.lock().unwrap().push(text);
                }
            }
        });
        Self { received }
    }

    /// What clients sent after they had introduced themselves; an empty text for one that sent nothing more.
    pub(crate) fn received(&self) -> Vec<String> {
        self.received.lock().unwrap().clone()
    }
}

fn talk(mut stream: TcpStream, demand: Demand) -> Option<String> {
    const ENCRYPTION: [u32; 2] = [80_877_103, 80_877_104];
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    while ENCRYPTION.contains(&startup(&mut stream)?) {
        stream.write_all(b"N").ok()?;
    }
    let mut message = vec![b'R', 0, 0, 0, 8, 0, 0, 0, demand as u8];
    if matches!(demand, Demand::Trust) {
        message.extend([b'Z', 0, 0, 0, 5, b'I']);
    }
    stream.write_all(&message).ok()?;
    let mut more = [0; 1024];
    let length = stream.read(&mut more).unwrap_or(0);
    // A client that disconnects sends a message.
    let text = &more[..length];
    let text = if text.first() == Some(&b'X') {
        &[]
    } else {
        text
    };
    Some(String::from_utf8_lossy(text).into_owned())
}

/// The code at the beginning of a message without a type.
fn startup(stream: &mut TcpStream) -> Option<u32> {
    let mut number = [0; 4];
    stream.read_exact(&mut number).ok()?;
    let length = usize::try_from(u32::from_be_bytes(number)).ok()?;
    let mut rest = vec![0; length.checked_sub(4).filter(|length| *length < 4096)?];
    stream.read_exact(&mut rest).ok()?;
    rest.first_chunk().map(|code| u32::from_be_bytes(*code))
}
