//! The shell blocks of the documentation that are marked `<!-- run: … -->`, run by bash as they stand on the page, from
//! the repository's top folder, against a real API server. tests/docs.rs checks that every block has a mark.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use testbed::fleet::wait_in_force;
use testbed::{ControlPlane, ControlPlaneOptions, Fleet, FleetOptions, load};

use crate::support::*;

/// Longer than any block needs; one that waits for more than this has failed.
const BLOCK_SECONDS: &str = "300";

struct Block {
    /// Page and line.
    place: String,
    text: String,
}

/// The blocks with this mark, in the order of the pages' names, those in the top folder last.
fn blocks(mark: &str) -> Vec<Block> {
    let mut pages = vec![root().join("README.md")];
    let mut folders = vec![root().join("docs"), root().join("dashboards")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort_by_key(|path| (path.parent() == Some(root()), path.clone()));
    pages
        .iter()
        .flat_map(|page| blocks_of(page, mark))
        .collect()
}

fn blocks_of(page: &Path, mark: &str) -> Vec<Block> {
    let text = std::fs::read_to_string(page).unwrap();
    let begin = format!("<!-- run: {mark} -->\n```sh\n");
    let name = page.strip_prefix(root()).unwrap().display();
    let found = text.match_indices(&begin).map(|(at, _)| {
        let rest = &text[at + begin.len()..];
        let (block, _) = rest.split_once("```").unwrap();
        Block {
            place: format!("{name}:{}", text[..at].lines().count() + 2),
            text: block.to_owned(),
        }
    });
    found.collect()
}

/// A folder with the programs that readers have.
fn programs(control_plane: &ControlPlane) -> PathBuf {
    let folder = control_plane.folder().join("programs");
    std::fs::create_dir(&folder).unwrap();
    let operator = testbed::fleet::operator_binary().unwrap();
    let plugin = testbed::fleet::plugin_binary().unwrap();
    let helm = PathBuf::from(helm().get_program());
    for (name, program) in [
        ("kubectl", control_plane.kubectl()),
        ("databasecluster-operator", operator),
        ("kubectl-dbc", plugin),
        ("helm", helm),
    ] {
        symlink(program, folder.join(name)).unwrap();
    }
    folder
}

/// Runs the blocks one after the other, all of them, and reports those that fail.
fn run_blocks(control_plane: &ControlPlane, mark: &str, least: usize) {
    let folder = programs(control_plane);
    let kubeconfig = control_plane.folder().join("reader.kubeconfig");
    std::fs::copy(control_plane.kubeconfig(), &kubeconfig).unwrap();
    run(Command::new(control_plane.kubectl())
        .arg("--kubeconfig")
        .arg(&kubeconfig)
        .args(["config", "set-context", "--current", "--namespace=shop"]));
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let blocks = blocks(mark);
    assert!(blocks.len() >= least, "only {} blocks", blocks.len());
    let mut failed = Vec::new();
    for Block { place, text } in blocks {
        let output = Command::new("timeout")
            .args([BLOCK_SECONDS, "bash", "-eu", "-c", &text])
            .current_dir(root())
            .env("PATH", &path)
            .env("KUBECONFIG", &kubeconfig)
            .env("HOME", control_plane.folder())
            .output()
            .unwrap();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            failed.push(format!("{place}: {}\n{text}{said}", output.status));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[tokio::test]
async fn blocks_about_a_running_fleet_run_as_they_stand() {
    let control_plane = control_plane(ControlPlaneOptions::default()).await;
    run(kubectl_of(&control_plane).args(["apply", "-f", "deploy/install.yaml"]));
    wait_in_force(&control_plane).await.unwrap();
    let options = FleetOptions {
        extra_args: vec!["--require-fence".to_owned()],
        name_prefix: Some("process".to_owned()),
        ..FleetOptions::default()
    };
    let fleet = Fleet::start(&control_plane, 2, options).await.unwrap();
    let cluster = load::NewCluster {
        namespace: "shop".to_owned(),
        name: "orders".to_owned(),
        spec: load::spec(2),
    };
    load::create(&control_plane, vec![cluster]).await.unwrap();
    load::wait_all_ready(&control_plane.client(), 1, PATIENCE)
        .await
        .unwrap();
    run_blocks(&control_plane, "fleet", 10);
    drop(fleet);
}

#[tokio::test]
async fn blocks_about_installing_run_as_they_stand() {
    let control_plane = control_plane(ControlPlaneOptions::default()).await;
    run_blocks(&control_plane, "install", 3);
}
