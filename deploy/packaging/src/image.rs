//! Writes an image archive: an OCI layout that also has Docker's manifest, so that containerd, podman, buildah, skopeo
//! and `docker load` read it. Nothing in it depends on the machine, the user or the clock.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::GzBuilder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::elf;

/// The name of the program, and of the image.
pub const NAME: &str = "databasecluster-operator";
/// The user that runs it: any user but root.
const USER: &str = "65532:65532";
const PORT: &str = "8080/tcp";

/// What goes into an image.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The static program.
    pub program: PathBuf,
    /// Files beside it, as they lie from the image's root.
    pub rootfs: PathBuf,
    /// The image's version, its tag.
    pub version: String,
    /// The commit it was built from; empty: not known.
    pub revision: String,
    /// Seconds since 1970 that stand for "when" everywhere in it.
    pub epoch_seconds: i64,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// `sha256:…` of the image's manifest, by which registries know it.
    pub digest: String,
    /// For which machine.
    pub architecture: String,
    /// Size of the program and the files, unpacked.
    pub unpacked_bytes: u64,
    /// Size of what is pulled.
    pub pulled_bytes: u64,
}

/// Writes the archive to `out`.
///
/// # Errors
/// When the program is not static, or a file cannot be read or written.
pub fn write(recipe: &Recipe, out: &Path) -> Result<Written> {
    let program = fs::read(&recipe.program).context(recipe.program.display().to_string())?;
    let architecture = elf::architecture_of_static(&program)
        .with_context(|| format!("{}", recipe.program.display()))?;
    let layer = layer(recipe, &program)?;
    let packed = gzip(&layer)?;
    let created = jiff::Timestamp::from_second(recipe.epoch_seconds)?.to_string();
    let labels = labels(recipe, &created);
    let config = config(architecture, &created, &labels, &sha256(&layer));
    let config = serde_json::to_vec(&config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &packed)],
        "annotations": labels,
    });
    let manifest = serde_json::to_vec(&manifest)?;
    let archive = archive(recipe, architecture, [&manifest, &config, &packed])?;
    fs::write(out, archive).with_context(|| format!("write {}", out.display()))?;
    Ok(Written {
        digest: format!("sha256:{}", sha256(&manifest)),
        architecture: architecture.to_owned(),
        unpacked_bytes: layer.len() as u64,
        pulled_bytes: (manifest.len() + config.len() + packed.len()) as u64,
    })
}

/// The one layer: the files of the rootfs, the program, and its second name.
fn layer(recipe: &Recipe, program: &[u8]) -> Result<Vec<u8>> {
    let mut tar = Tar::new(recipe.epoch_seconds)?;
    for (name, path) in sorted(&recipe.rootfs)? {
        if path.is_dir() {
            tar.folder(&name)?;
        } else {
            tar.file(&name, 0o644, &fs::read(&path)?)?;
        }
    }
    tar.file(NAME, 0o755, program)?;
    tar.end()
}

/// Everything below a folder, by name, folders before what is in them.
fn sorted(root: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
            if path.is_symlink() {
                bail!("{} is a link, which is not foreseen", path.display());
            }
            if path.is_dir() {
                folders.push(path.clone());
            }
            found.push((name, path));
        }
    }
    found.sort();
    Ok(found)
}

fn labels(recipe: &Recipe, created: &str) -> Value {
    let mut labels = json!({
        "org.opencontainers.image.title": NAME,
        "org.opencontainers.image.description": "A sharded, highly available operator for DatabaseClusters",
        "org.opencontainers.image.version": recipe.version,
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.created": created,
    });
    if !recipe.revision.is_empty() {
        labels["org.opencontainers.image.revision"] = json!(recipe.revision);
    }
    labels
}

fn config(architecture: &str, created: &str, labels: &Value, layer: &str) -> Value {
    json!({
        "created": created,
        "architecture": architecture,
        "os": "linux",
        "config": {
            "User": USER,
            "ExposedPorts": {PORT: {}},
            "Env": ["PATH=/"],
            "Entrypoint": [format!("/{NAME}")],
            "Cmd": ["run"],
            "WorkingDir": "/",
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
        "history": [{"created": created, "created_by": "deploy/image", "comment": "from scratch"}],
    })
}

fn archive(recipe: &Recipe, architecture: &str, blobs: [&[u8]; 3]) -> Result<Vec<u8>> {
    let [manifest, config, layer] = blobs;
    let tagged = format!("{NAME}:{}", recipe.version);
    let mut image = descriptor("application/vnd.oci.image.manifest.v1+json", manifest);
    image["platform"] = json!({"architecture": architecture, "os": "linux"});
    image["annotations"] = json!({
        "io.containerd.image.name": format!("docker.io/library/{tagged}"),
        "org.opencontainers.image.ref.name": recipe.version,
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [image],
    });
    let docker = json!([{
        "Config": blob_path(config),
        "RepoTags": [tagged],
        "Layers": [blob_path(layer)],
    }]);
    let mut files = vec![
        ("index.json".to_owned(), serde_json::to_vec(&index)?),
        ("manifest.json".to_owned(), serde_json::to_vec(&docker)?),
        (
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ),
    ];
    files.extend(blobs.map(|blob| (blob_path(blob), blob.to_vec())));
    files.sort();
    let mut tar = Tar::new(recipe.epoch_seconds)?;
    for folder in ["blobs", "blobs/sha256"] {
        tar.folder(folder)?;
    }
    for (name, content) in files {
        tar.file(&name, 0o644, &content)?;
    }
    tar.end()
}

fn descriptor(kind: &str, blob: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": format!("sha256:{}", sha256(blob)), "size": blob.len()})
}

fn blob_path(blob: &[u8]) -> String {
    format!("blobs/sha256/{}", sha256(blob))
}

/// In lower-case hex.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    // Neither a time nor a system in the header.
    let mut writer = GzBuilder::new()
        .operating_system(255)
        .write(Vec::new(), Compression::best());
    writer.write_all(bytes)?;
    Ok(writer.finish()?)
}

/// A tar archive in which everything is root's and of one time.
struct Tar {
    builder: tar::Builder<Vec<u8>>,
    epoch_seconds: u64,
}

impl Tar {
    fn new(epoch_seconds: i64) -> Result<Self> {
        Ok(Self {
            builder: tar::Builder::new(Vec::new()),
            epoch_seconds: u64::try_from(epoch_seconds).context("SOURCE_DATE_EPOCH before 1970")?,
        })
    }

    fn header(&self, kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(self.epoch_seconds);
        header.set_uid(0);
        header.set_gid(0);
        header
    }

    fn folder(&mut self, name: &str) -> Result<()> {
        let mut header = self.header(tar::EntryType::Directory, 0o755, 0);
        Ok(self
            .builder
            .append_data(&mut header, format!("{name}/"), std::io::empty())?)
    }

    fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        let mut header = self.header(tar::EntryType::Regular, mode, content.len() as u64);
        Ok(self.builder.append_data(&mut header, name, content)?)
    }

    fn end(self) -> Result<Vec<u8>> {
        Ok(self.builder.into_inner()?)
    }
}
