//! The image: the same bytes from the same program, owned by root, run by any unprivileged user; and names are
//! resolved in it, though it has no other file of the C library.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::Command;

use packaging::image::{Recipe, sha256, write};
use serde_json::{Value, json};

use crate::support::*;

const EPOCH_SECONDS: i64 = 1_700_000_000;

/// A small static program, built as deploy/image/program.sh builds the operator.
fn probe(folder: &Path) -> PathBuf {
    let program = folder.join("probe");
    run(Command::new("rustc")
        .args(["--edition=2024", "-C", "target-feature=+crt-static", "-o"])
        .arg(&program)
        .arg(root().join("tests/deploy/probe.rs")));
    program
}

fn recipe(program: PathBuf, rootfs: PathBuf) -> Recipe {
    let version = "1.2.3".to_owned();
    let revision = "abc".to_owned();
    Recipe {
        program,
        rootfs,
        version,
        revision,
        epoch_seconds: EPOCH_SECONDS,
    }
}

fn rootfs() -> PathBuf {
    root().join("deploy/image/rootfs")
}

fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    status.lines().any(|line| line.starts_with("Uid:\t0\t"))
}

/// The files of an archive by name.
fn files(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in tar::Archive::new(fs::File::open(archive).unwrap())
        .entries()
        .unwrap()
    {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        found.insert(entry.path().unwrap().display().to_string(), content);
    }
    found
}

fn json_of(files: &BTreeMap<String, Vec<u8>>, name: &str) -> Value {
    serde_json::from_slice(&files[name]).unwrap()
}

fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
    let digest = descriptor["digest"]
        .as_str()
        .unwrap()
        .strip_prefix("sha256:")
        .unwrap();
    let blob = &files[&format!("blobs/sha256/{digest}")];
    assert_eq!(sha256(blob), digest);
    assert_eq!(descriptor["size"], blob.len());
    blob
}

fn unpacked(layer: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(layer)
        .read_to_end(&mut bytes)
        .unwrap();
    bytes
}

#[test]
fn image_is_reproducible() {
    let folder = tempfile::tempdir().unwrap();
    let program = probe(folder.path());
    let (first, second) = (
        folder.path().join("first.tar"),
        folder.path().join("second.tar"),
    );
    let written = write(&recipe(program.clone(), rootfs()), &first).unwrap();

    // Other folders, other times, another umask.
    let elsewhere = folder.path().join("elsewhere");
    run(Command::new("sh").args(["-c", "umask 077; mkdir -p $1/etc; cat $2/etc/passwd > $1/etc/passwd; cat $2/etc/group > $1/etc/group; cat $2/etc/nsswitch.conf > $1/etc/nsswitch.conf; cp $3 $1.program", "sh"])
        .args([&elsewhere, &rootfs(), &program]));
    let again = recipe(elsewhere.with_extension("program"), elsewhere);
    assert_eq!(write(&again, &second).unwrap(), written);
    assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap());

    let later = Recipe {
        epoch_seconds: EPOCH_SECONDS + 1,
        ..again
    };
    assert_ne!(write(&later, &second).unwrap().digest, written.digest);
}

#[test]
fn image_runs_unprivileged_in_containerd_and_docker_formats() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("image.tar");
    let written = write(&recipe(probe(folder.path()), rootfs()), &archive).unwrap();
    let files = files(&archive);
    let index = json_of(&files, "index.json");
    let image = &index["manifests"][0];
    assert_eq!(image["digest"], written.digest);
    let name = "docker.io/library/databasecluster-operator:1.2.3";
    assert_eq!(image["annotations"]["io.containerd.image.name"], name);
    let manifest: Value = serde_json::from_slice(blob(&files, image)).unwrap();
    let config: Value = serde_json::from_slice(blob(&files, &manifest["config"])).unwrap();
    let layer = unpacked(blob(&files, &manifest["layers"][0]));
    assert_eq!(
        config["rootfs"]["diff_ids"],
        json!([format!("sha256:{}", sha256(&layer))])
    );
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["created"], "2023-11-14T22:13:20Z");
    let docker = json_of(&files, "manifest.json");
    assert_eq!(
        docker[0]["RepoTags"],
        json!(["databasecluster-operator:1.2.3"])
    );
    assert!(files.contains_key(docker[0]["Config"].as_str().unwrap()));
    assert!(files.contains_key(docker[0]["Layers"][0].as_str().unwrap()));

    let mut names = Vec::new();
    for entry in tar::Archive::new(&layer[..]).entries().unwrap() {
        let entry = entry.unwrap();
        let header = entry.header();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
        assert_eq!(
            header.mtime().unwrap(),
            u64::try_from(EPOCH_SECONDS).unwrap()
        );
        let kind = header.entry_type();
        // Nothing that another user could change, or that gives rights.
        assert!(!kind.is_symlink() && header.mode().unwrap() & 0o7022 == 0);
        names.push(entry.path().unwrap().display().to_string());
    }
    let expected = [
        "etc/",
        "etc/group",
        "etc/nsswitch.conf",
        "etc/passwd",
        "databasecluster-operator",
    ];
    assert_eq!(names, expected);
}

#[test]
fn dockerfile_matches_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("image.tar");
    write(&recipe(probe(folder.path()), rootfs()), &archive).unwrap();
    let files = files(&archive);
    let manifest: Value =
        serde_json::from_slice(blob(&files, &json_of(&files, "index.json")["manifests"][0]))
            .unwrap();
    let config: Value = serde_json::from_slice(blob(&files, &manifest["config"])).unwrap();
    let config = &config["config"];

    let text = fs::read_to_string(deploy("image/Dockerfile")).unwrap();
    let (_, last) = text.split_once("\nFROM scratch\n").unwrap();
    let of = |word: &str| -> Vec<&str> {
        last.lines()
            .filter_map(|line| line.strip_prefix(word))
            .map(str::trim)
            .collect()
    };
    assert_eq!(json!(of("USER")[0]), config["User"]);
    assert_eq!(json!(of("ENV")), config["Env"]);
    assert_eq!(json!(of("WORKDIR")[0]), config["WorkingDir"]);
    assert_eq!(json!({of("EXPOSE")[0]: {}}), config["ExposedPorts"]);
    for (word, key) in [("ENTRYPOINT", "Entrypoint"), ("CMD", "Cmd")] {
        let value: Value = serde_json::from_str(of(word)[0]).unwrap();
        assert_eq!(value, config[key]);
    }
    // And the toolchain is the pinned one.
    let pinned = fs::read_to_string(root().join("rust-toolchain.toml")).unwrap();
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("ARG RUST_VERSION="))
        .unwrap();
    assert!(
        pinned.contains(&format!("\"{version}\"")),
        "{version}: {pinned}"
    );
}

#[test]
fn image_resolves_dns_names_as_an_unprivileged_user() {
    if !is_root() {
        eprintln!("needs root, for chroot and port 53: not run");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("image.tar");
    write(&recipe(probe(folder.path()), rootfs()), &archive).unwrap();
    let files = files(&archive);
    let manifest: Value =
        serde_json::from_slice(blob(&files, &json_of(&files, "index.json")["manifests"][0]))
            .unwrap();
    let root = folder.path().join("root");
    let layer = unpacked(blob(&files, &manifest["layers"][0]));
    tar::Archive::new(&layer[..]).unpack(&root).unwrap();

    // As the kubelet would: resolv.conf with a search list, and hosts. An address of its own, so that port 53 is free.
    let id = std::process::id();
    let address = format!("127.77.{}.{}", id / 250 % 250, id % 250 + 1);
    let socket = UdpSocket::bind((address.as_str(), 53)).unwrap();
    std::thread::spawn(move || answer(&socket));
    let resolver =
        format!("nameserver {address}\nsearch test.svc.cluster.local\noptions ndots:5\n");
    fs::write(root.join("etc/resolv.conf"), resolver).unwrap();
    fs::write(root.join("etc/hosts"), "127.8.8.8 in-hosts\n").unwrap();
    fs::set_permissions(
        folder.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let ask = |name: &str| {
        run(Command::new("chroot")
            .args(["--userspec=65532:65532", "--groups="])
            .arg(&root)
            .args(["/databasecluster-operator", name]))
    };
    assert_eq!(ask("in-hosts").trim(), "[127.8.8.8:443]");
    assert_eq!(ask("kubernetes.default.svc").trim(), "[127.9.9.9:443]");
    assert_eq!(
        ask("kubernetes.default.svc.cluster.local.").trim(),
        "[127.9.9.9:443]"
    );
}

/// Every IPv4 query is answered with 127.9.9.9; other queries have no answer.
fn answer(socket: &UdpSocket) {
    let mut question = [0; 512];
    while let Ok((length, asker)) = socket.recv_from(&mut question) {
        let mut reply = question[..length].to_vec();
        let name_end = 12 + reply[12..].iter().position(|byte| *byte == 0).unwrap();
        let is_ipv4 = reply[name_end + 1..name_end + 3] == [0, 1];
        reply.truncate(name_end + 5);
        reply[2..4].copy_from_slice(&[0x81, 0x80]);
        reply[6..12].copy_from_slice(&[0, u8::from(is_ipv4), 0, 0, 0, 0]);
        if is_ipv4 {
            // The name of the question, type A, class IN, 60 seconds, 4 bytes.
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 9, 9, 9]);
        }
        let _gone = socket.send_to(&reply, asker);
    }
}
