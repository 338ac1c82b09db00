//! Takes the pictures of the fleet page in docs/pictures: a real fleet, healthy and with replicas killed.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;
use testbed::browser::{Browser, Viewport};
use testbed::{
    ControlPlane, ControlPlaneOptions, Fleet, FleetOptions, Progress, load, shards, wait_for,
};

const REPLICAS: usize = 4;
const CLUSTERS: usize = 60;
const NAMESPACES: [&str; 3] = ["shop", "billing", "analytics"];
const PATIENCE: Duration = Duration::from_secs(120);
/// Long enough for a first line of each replica's small graphs.
const SETTLE: Duration = Duration::from_secs(20);
/// The takeover is over soon: this is how long to poll for the moment in which shards have no holder.
const FAULT_SHOWS: Duration = Duration::from_secs(20);
const HEIGHT_MAX: u32 = 1_100;

#[tokio::main]
async fn main() -> Result<()> {
    let work = async {
        let control_plane = ControlPlane::start(ControlPlaneOptions::default()).await?;
        let mut fleet = Fleet::start(&control_plane, REPLICAS, FleetOptions::default()).await?;
        shards::wait_balanced(&fleet, PATIENCE).await?;
        let browser = Browser::start().await?;
        let page = format!("{}/fleet", fleet.replica(0)?.url());
        load::create(&control_plane, load::samples(CLUSTERS, &NAMESPACES)).await?;
        load::wait_all_ready(&control_plane.client(), CLUSTERS, PATIENCE).await?;
        healthy(&browser, &page).await?;
        load::create(&control_plane, without_image()).await?;
        wounded(&browser, &page, &mut fleet).await
    };
    tokio::select! {
        result = work => result,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
    }
}

async fn healthy(browser: &Browser, page: &str) -> Result<()> {
    browser.open(page, Viewport::desk()).await?;
    // The page draws what it has seen since it was opened.
    tokio::time::sleep(SETTLE).await;
    shows(browser, "All is well").await?;
    take(browser, Viewport::desk(), "fleet-healthy").await?;
    browser.open(page, Viewport::phone()).await?;
    shows(browser, "All is well").await?;
    take(browser, Viewport::phone(), "fleet-phone").await
}

/// Two whose image cannot be pulled.
fn without_image() -> Vec<load::NewCluster> {
    [("shop", "reports"), ("billing", "archive")]
        .map(|(namespace, name)| {
            let mut spec = load::spec(1);
            spec["image"] = json!("postgres:17-missing");
            load::NewCluster {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                spec,
            }
        })
        .into()
}

/// Two of four replicas are killed. The picture shows the moment in which their shards have no holder, or right after it,
/// in which nobody has counted yet what lies in them.
async fn wounded(browser: &Browser, page: &str, fleet: &mut Fleet<'_>) -> Result<()> {
    let dark = Viewport {
        dark: true,
        ..Viewport::desk()
    };
    browser.open(page, dark).await?;
    wait_for("the page to name what is Degraded", PATIENCE, || async {
        let code = "return document.querySelectorAll('#unhealthy li').length";
        let found = browser.script(code).await?;
        Ok(Progress::when(found == 2, (), || found.to_string()))
    })
    .await?;
    for victim in [2, 3] {
        fleet.replica_mut(victim)?.kill().await?;
    }
    let until = Instant::now() + FAULT_SHOWS;
    while Instant::now() < until {
        // A newly opened page fetches at once; an open one only every other second.
        browser.open(page, dark).await?;
        let shown = shown(browser).await?;
        if shown.contains("No live replica holds") || shown.contains("Clusters unknown") {
            return take(browser, dark, "fleet-fault").await;
        }
    }
    bail!(
        "no picture of shards without a holder in {FAULT_SHOWS:?}: they were taken over too quickly; try again"
    )
}

/// The first status on the page.
async fn shown(browser: &Browser) -> Result<String> {
    let code = "return document.querySelector('#verdict').innerText";
    let text = wait_for(
        "the page to show the status of the fleet",
        PATIENCE,
        || async {
            let text = browser.script(code).await?;
            let text = text.as_str().unwrap_or_default().to_owned();
            let met = !text.contains("Waiting for the first answer");
            Ok(Progress::when(met, text.clone(), || text))
        },
    )
    .await?;
    Ok(text)
}

async fn shows(browser: &Browser, wanted: &str) -> Result<()> {
    wait_for(format!("the page to show {wanted:?}"), PATIENCE, || async {
        let code = "return document.querySelector('#verdict').innerText";
        let text = browser.script(code).await?.to_string();
        Ok(Progress::when(text.contains(wanted), (), || text))
    })
    .await?;
    Ok(())
}

async fn take(browser: &Browser, viewport: Viewport, name: &str) -> Result<()> {
    let picture = browser.picture(viewport, HEIGHT_MAX).await?;
    let folder: PathBuf = testbed::fleet::repository().join("docs/pictures");
    std::fs::create_dir_all(&folder).context("make docs/pictures")?;
    let path = folder.join(format!("{name}.png"));
    std::fs::write(&path, &picture).with_context(|| path.display().to_string())?;
    println!("docs/pictures/{name}.png: {} kB", picture.len() / 1000);
    Ok(())
}
