//! One cluster's life, with a crash at its first write, at its second, and so on.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use testbed::load::{self, NewCluster};
use testbed::{Progress, wait_for};

use super::Active;
use crate::environment::{Environment, READY_TIMEOUT};
use crate::evidence::{Wanted, now_micros};
use crate::proxy::{Crash, Rules};
use crate::scenario::By;

const NAMESPACE: &str = "lives";
const LIFE_TIMEOUT: Duration = Duration::from_secs(90);
/// A cluster's life has about 20 writes; many more would mean that it never ends.
const POINTS_MAX: u64 = 60;

/// Lives of one cluster after the other, until one passes without a crash.
pub(super) async fn run(
    environment: &mut Environment<'_>,
    active: &mut Active,
    by: By,
) -> Result<()> {
    let when = match by {
        By::BeforeReply => "before",
        By::AfterReply => "after",
    };
    active.injected.bites = 0;
    for point in 1..=POINTS_MAX {
        let crashed = one_life(environment, point, by)
            .await
            .with_context(|| format!("a crash {when} the reply to write {point}"))?;
        if !crashed {
            active.injected.what = format!(
                "a crash {when} the reply to each of the {} writes of a life",
                point - 1
            );
            active.injected.recover_from = Some(now_micros());
            return Ok(());
        }
        active.injected.bites += 1;
        environment.progress.report(format!(
            "crashed {when} the reply to write {point}, and the cluster's life continued"
        ));
    }
    bail!("a cluster's life has more than {POINTS_MAX} writes: it does not converge")
}

/// A cluster is created, changed and deleted; returns whether the replica crashed.
async fn one_life(environment: &mut Environment<'_>, point: u64, by: By) -> Result<bool> {
    let [index] = environment.alive()[..] else {
        bail!("crash points need a fleet of one replica");
    };
    environment
        .fleet
        .replica(index)?
        .wait_ready(READY_TIMEOUT)
        .await?;
    let proxy = environment
        .proxies
        .get_mut(index)
        .and_then(Option::as_mut)
        .context("the replica has no proxy")?;
    proxy.forget_crash();
    proxy.set(Rules {
        crash: Some(Crash {
            at_write: point,
            by,
        }),
        ..Rules::default()
    });
    let name = format!("life-{point:02}");
    let client = environment.control_plane.client();
    let life = tokio::spawn(live(
        environment.control_plane.client(),
        NAMESPACE,
        name.clone(),
    ));
    let cluster = NewCluster {
        namespace: NAMESPACE.into(),
        name,
        spec: load::spec(1),
    };
    load::create(environment.control_plane, vec![cluster]).await?;
    let mut crashed = false;
    let mut life = life;
    loop {
        let proxy = environment
            .proxies
            .get_mut(index)
            .and_then(Option::as_mut)
            .context("the replica has no proxy")?;
        let ended = tokio::select! {
            () = proxy.crash_is_due() => false,
            ended = &mut life => { ended??; true }
        };
        if ended {
            break;
        }
        environment.kill(index).await?;
        crashed = true;
        let proxy = environment
            .proxies
            .get_mut(index)
            .and_then(Option::as_mut)
            .context("the replica has no proxy")?;
        proxy.set(Rules::default());
        environment.restart(index).await?;
    }
    drop(client);
    Ok(crashed)
}

/// What the user does with the cluster.
async fn live(client: kube::Client, namespace: &'static str, name: String) -> Result<()> {
    let api = load::clusters_in(client.clone(), namespace);
    ready(&api, &name, "the first time").await?;
    let wanted = Wanted {
        cpu: "333m".into(),
        replicas: 2,
    };
    let change = json!({"spec": {"replicas": wanted.replicas, "resources": {"cpu": wanted.cpu}}});
    api.patch(&name, &PatchParams::default(), &Patch::Merge(&change))
        .await?;
    ready(&api, &name, "after a change").await?;
    api.delete(&name, &DeleteParams::default()).await?;
    wait_for(format!("{name} to be gone"), LIFE_TIMEOUT, || async {
        let found = api
            .get_opt(&name)
            .await
            .map_err(|error| testbed::Error::Failed(error.to_string()))?;
        Ok(Progress::when(found.is_none(), (), || {
            "it still exists".into()
        }))
    })
    .await?;
    Ok(())
}

async fn ready(api: &kube::Api<kube::api::DynamicObject>, name: &str, when: &str) -> Result<()> {
    wait_for(
        format!("{name} to be Ready {when}"),
        LIFE_TIMEOUT,
        || async {
            let found = api
                .get_opt(name)
                .await
                .map_err(|error| testbed::Error::Failed(error.to_string()))?;
            Ok(match found.map(|object| load::why_not_ready(&object)) {
                Some(None) => Progress::Done(()),
                Some(Some(why)) => Progress::pending(why),
                None => Progress::pending("it does not exist"),
            })
        },
    )
    .await?;
    Ok(())
}
