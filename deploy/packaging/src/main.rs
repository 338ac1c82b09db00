//! `packaging`: writes the generated manifests, the image, and its bill of materials.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use packaging::metadata::Metadata;
use packaging::{deny, image, manifests, sbom};

/// Most that may be pulled: above, the image is refused.
const PULLED_BYTES_MAX: u64 = 25_000_000;

#[derive(Parser)]
#[command(about, version)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Write deploy/install.yaml and the generated part of the chart.
    Manifests {
        /// The folder `deploy`.
        #[arg(long, default_value = "deploy")]
        deploy: PathBuf,
    },
    /// Write the image as an archive.
    Image {
        /// The static program.
        #[arg(long)]
        program: PathBuf,
        /// Files beside it.
        #[arg(long, default_value = "deploy/image/rootfs")]
        rootfs: PathBuf,
        /// The image's tag.
        #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
        version: String,
        /// The commit it was built from.
        #[arg(long, default_value = "")]
        revision: String,
        /// Seconds since 1970 that stand for "when".
        #[arg(long, env = "SOURCE_DATE_EPOCH")]
        epoch_seconds: i64,
        /// Where the archive goes.
        #[arg(long)]
        out: PathBuf,
    },
    /// Check licences, unwanted crates and sources of all dependencies by deny.toml.
    Deny,
    /// Write the bill of materials of the program.
    Sbom {
        /// The target for which it is built.
        #[arg(long)]
        target: String,
        /// Seconds since 1970 that stand for "when".
        #[arg(long, env = "SOURCE_DATE_EPOCH")]
        epoch_seconds: i64,
        /// Where it goes.
        #[arg(long)]
        out: PathBuf,
    },
}

fn main() -> ExitCode {
    match execute(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("packaging: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(task: Task) -> Result<()> {
    match task {
        Task::Manifests { deploy } => manifests::write(&deploy),
        Task::Image {
            program,
            rootfs,
            version,
            revision,
            epoch_seconds,
            out,
        } => {
            let recipe = image::Recipe {
                program,
                rootfs,
                version,
                revision,
                epoch_seconds,
            };
            let written = image::write(&recipe, &out)?;
            println!("{}", out.display());
            println!("  {} for linux/{}", written.digest, written.architecture);
            println!(
                "  {} MB to pull, {} MB unpacked",
                megabytes(written.pulled_bytes),
                megabytes(written.unpacked_bytes)
            );
            if written.pulled_bytes > PULLED_BYTES_MAX {
                bail!("more than {} MB to pull", megabytes(PULLED_BYTES_MAX));
            }
            Ok(())
        }
        Task::Deny => deny(),
        Task::Sbom {
            target,
            epoch_seconds,
            out,
        } => {
            let bill = sbom::bill(
                &Metadata::of_workspace(&target, &[])?,
                &fs::read_to_string("Cargo.lock")?,
                image::NAME,
                epoch_seconds,
            )?;
            let text = serde_json::to_string_pretty(&bill)?;
            fs::write(&out, text + "\n").with_context(|| format!("write {}", out.display()))?;
            let components = bill["components"].as_array().map_or(0, Vec::len);
            println!("{}\n  {components} components", out.display());
            Ok(())
        }
    }
}

fn deny() -> Result<()> {
    let rules = deny::Rules::parse(&fs::read_to_string("deny.toml").context("read deny.toml")?)?;
    let mut found = std::collections::BTreeSet::new();
    for target in rules.targets() {
        found.extend(rules.violations(&Metadata::of_workspace(target, &["--all-features"])?));
    }
    if found.is_empty() {
        println!("licences, crates and sources are as deny.toml wants them");
        return Ok(());
    }
    for violation in &found {
        eprintln!("{violation}");
    }
    bail!("{} crates are not as deny.toml wants them", found.len())
}

/// With one decimal.
fn megabytes(bytes: u64) -> String {
    format!("{}.{}", bytes / 1_000_000, bytes % 1_000_000 / 100_000)
}
