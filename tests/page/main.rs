//! The fleet page in a real browser: its content, its behavior without its replica, and escaping of text.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod lease_fleet;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use databasecluster_operator::api::names::NAMES;
use databasecluster_operator::telemetry::log_level::LogLevel;
use databasecluster_operator::telemetry::routes::{PATHS, routes};
use lease_fleet::Fleet;
use prometheus::Registry;
use sharded_controller::health::Health;
use sharded_controller::metrics::Metrics;
use sharded_controller::server::{ExtraRoutes, Server};
use testbed::browser::{Browser, Viewport};
use testbed::{Progress, wait_for};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

/// A server that shows a synthetic fleet, which a test may change.
struct Served {
    url: String,
    fleet: Arc<Mutex<Fleet>>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn serve(fleet: Fleet) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let fleet = Arc::new(Mutex::new(fleet));
    let shown = Arc::clone(&fleet);
    let metrics = Arc::new(Metrics::register(Registry::new(), NAMES).unwrap());
    let view = Box::new(move || Some(shown.lock().unwrap().view()));
    let routes = ExtraRoutes {
        router: routes(view, LogLevel::fixed()),
        paths: PATHS.to_vec(),
    };
    let health = Arc::new(Health::new(&[]));
    let server = Server::new(metrics, health, Box::new(|| {}), routes);
    let stop = CancellationToken::new();
    let task = tokio::spawn(server.serve(listener, stop.clone()));
    Served {
        url,
        fleet,
        stop,
        task,
    }
}

/// The text that `selector` shows.
async fn text(browser: &Browser, selector: &str) -> String {
    let code = format!(
        "const e = document.querySelector({selector:?}); return e ? e.innerText ?? e.textContent : '(absent)'"
    );
    let text = browser.script(&code).await.unwrap();
    text.as_str().unwrap_or_default().to_owned()
}

async fn until(browser: &Browser, selector: &str, wanted: &str) {
    let what = format!("{selector} to show {wanted:?}");
    wait_for(what, PATIENCE, || async {
        let shown = text(browser, selector).await;
        Ok(Progress::when(shown.contains(wanted), (), || shown))
    })
    .await
    .unwrap();
}

async fn number(browser: &Browser, code: &str) -> i64 {
    let found = browser.script(&format!("return {code}")).await.unwrap();
    found.as_i64().unwrap_or(-1)
}

/// One browser for all: starting one takes longer than all checks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fleet_page_renders_in_a_browser() {
    let browser = Browser::start().await.unwrap();
    shows_holders_by_mouse_and_by_keys(&browser).await;
    shows_trouble_loudly_and_without_reloading(&browser).await;
    counts_as_unknown_what_nobody_has_counted(&browser).await;
    links_unhealthy_clusters_to_their_reasons(&browser).await;
    is_red_without_the_kind(&browser).await;
    fits_a_phone_and_likes_the_dark(&browser).await;
    keeps_hostile_text_as_text(&browser).await;
    says_that_it_is_old_when_the_replica_is_gone(&browser).await;
}

async fn shows_holders_by_mouse_and_by_keys(browser: &Browser) {
    let served = serve(Fleet::sound()).await;
    let page = format!("{}/fleet", served.url);
    browser.open(&page, Viewport::desk()).await.unwrap();
    until(browser, "#verdict-text", "All is well").await;
    until(browser, "#link-text", "Live").await;
    assert_eq!(text(browser, ".middle").await, "32 / 32");
    assert_eq!(
        number(browser, "document.querySelectorAll('.arc').length").await,
        32
    );
    assert_eq!(
        number(
            browser,
            "document.querySelectorAll('#replica-rows tr').length"
        )
        .await,
        3
    );
    for (replica, colour) in browser_colours(browser).await {
        assert_ne!(colour, "none", "{replica}");
    }
    let row = text(browser, "#replica-rows tr").await;
    for part in [
        "databasecluster-operator-0",
        "fleet leader",
        "12 %",
        "MiB",
        "7c9d8f6b5",
    ] {
        assert!(row.contains(part), "{part} is missing in {row}");
    }
    browser
        .script("document.querySelector('.arc').focus()")
        .await
        .unwrap();
    browser.press("ArrowRight").await.unwrap();
    until(
        browser,
        "#detail",
        "Shard 1 · held by databasecluster-operator-1",
    )
    .await;
    browser.press("End").await.unwrap();
    until(browser, "#detail", "Shard 31 ").await;
    let labelled = "[...document.querySelectorAll('.arc')].filter(a => a.getAttribute('aria-label')?.startsWith('Shard ')).length";
    assert_eq!(
        number(browser, labelled).await,
        32,
        "arcs have labels for screen readers"
    );
    browser
        .script("document.querySelector('#legend button').click()")
        .await
        .unwrap();
    assert_eq!(
        number(browser, "document.querySelectorAll('.arc.dim').length").await,
        21
    );
    // Nothing was loaded from elsewhere, and the policy blocked nothing.
    let foreign = "performance.getEntriesByType('resource').filter(r => !r.name.startsWith(location.origin)).length";
    assert_eq!(number(browser, foreign).await, 0);
    assert_eq!(browser.console().await.unwrap(), Vec::<String>::new());
}

/// The colour of each replica's arcs; no two may be alike.
async fn browser_colours(browser: &Browser) -> Vec<(String, String)> {
    let code = "return [...document.querySelectorAll('#legend button')].map(b => \
                [b.title, getComputedStyle(b.querySelector('rect')).fill, b.querySelector('path').getAttribute('d')])";
    let found = browser.script(code).await.unwrap();
    let found: Vec<(String, String, String)> = serde_json::from_value(found).unwrap();
    for (i, one) in found.iter().enumerate() {
        for other in &found[i + 1..] {
            assert_ne!(one.1, other.1, "one colour for {} and {}", one.0, other.0);
            assert_ne!(one.2, other.2, "one shape for {} and {}", one.0, other.0);
        }
    }
    found
        .into_iter()
        .map(|(name, colour, _)| (name, colour))
        .collect()
}

async fn shows_trouble_loudly_and_without_reloading(browser: &Browser) {
    let served = serve(Fleet::sound()).await;
    browser
        .open(&format!("{}/fleet", served.url), Viewport::desk())
        .await
        .unwrap();
    until(browser, "#verdict-text", "All is well").await;
    served.fleet.lock().unwrap().kill(1);
    until(browser, "#problems", "No live replica holds shards 1, 4, 7").await;
    assert!(
        browser
            .script("return document.title")
            .await
            .unwrap()
            .as_str()
            .unwrap()
            .contains("✖")
    );
    assert_eq!(
        number(browser, "document.querySelectorAll('.arc.unowned').length").await,
        11
    );
    served.fleet.lock().unwrap().take_over(1, 2);
    until(browser, "#move-rows", "takeover: its holder died").await;
    // One line for all of them, with the time on the clock beside the age.
    until(browser, "#move-rows", "shards 1, 4, 7, 10,").await;
    until(browser, "#move-rows time", "00:00:00 UTC").await;
    assert_eq!(
        number(browser, "document.querySelectorAll('#move-rows li').length").await,
        1
    );
    until(browser, "#verdict-text", "All is well").await;
    until(browser, ".middle", "32 / 32").await;
    assert_eq!(browser.console().await.unwrap(), Vec::<String>::new());
}

async fn counts_as_unknown_what_nobody_has_counted(browser: &Browser) {
    let served = serve(Fleet::sound()).await;
    browser
        .open(&format!("{}/fleet", served.url), Viewport::desk())
        .await
        .unwrap();
    until(browser, "#totals", "60 of 60").await;
    served.fleet.lock().unwrap().kill(1);
    until(browser, "#totals", "40 of 60").await;
    until(browser, "#phases", "Unknown\n20").await;
    // What the dead replica reported last is not shown.
    let row = text(browser, "#replica-rows tr.gone").await;
    assert!(row.contains("databasecluster-operator-1"), "{row}");
    assert!(row.contains("since 23:59:"), "{row}");
    assert_eq!(row.matches('–').count(), 4, "{row}");
    for stale in ["12 %", "MiB"] {
        assert!(!row.contains(stale), "{stale}: {row}");
    }
    // Its successor has taken the shards, and not counted yet what lies in them.
    served.fleet.lock().unwrap().take_over(1, 2);
    until(browser, ".middle", "32 / 32").await;
    until(browser, "#phases", "Unknown\n20").await;
}

async fn links_unhealthy_clusters_to_their_reasons(browser: &Browser) {
    let served = serve(Fleet::sound()).await;
    served.fleet.lock().unwrap().degrade(2);
    browser
        .open(&format!("{}/fleet", served.url), Viewport::desk())
        .await
        .unwrap();
    until(
        browser,
        "#problems",
        "2 of 60 DatabaseClusters are Degraded",
    )
    .await;
    assert_eq!(
        text(browser, "#problems code").await,
        "kubectl dbc explain -A",
        "backticks mark code"
    );
    let links = "return [...document.querySelectorAll('#problems a')].map(a => \
                 [a.textContent, document.getElementById(decodeURIComponent(a.hash.slice(1)))?.innerText ?? '(nothing)'])";
    let links = browser.script(links).await.unwrap();
    let links: Vec<(String, String)> = serde_json::from_value(links).unwrap();
    let found: Vec<&str> = links.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(found, ["billing/b", "shop/orders"]);
    for ((_, target), expected) in links.iter().zip([
        ["SecretInvalid", "kubectl dbc explain -n billing b"],
        ["ImagePullFailed", "kubectl dbc explain -n shop orders"],
    ]) {
        assert!(
            expected.iter().all(|part| target.contains(part)),
            "{target}"
        );
    }
}

async fn is_red_without_the_kind(browser: &Browser) {
    let served = serve(Fleet::sound()).await;
    served.fleet.lock().unwrap().lose_kind();
    browser
        .open(&format!("{}/fleet", served.url), Viewport::phone())
        .await
        .unwrap();
    until(browser, "#verdict-text", "1 problem").await;
    until(
        browser,
        "#problems",
        "databaseclusters.database.io is missing",
    )
    .await;
    let level = "return document.querySelector('#verdict').dataset.level";
    assert_eq!(browser.script(level).await.unwrap(), "critical");
    // Words stay whole: a check is as wide as its name.
    let broken = "[...document.querySelectorAll('#checks strong')].filter(e => e.getClientRects().length > 1).length";
    assert_eq!(number(browser, broken).await, 0);
}

async fn fits_a_phone_and_likes_the_dark(browser: &Browser) {
    let served = serve(Fleet::sound()).await;
    let page = format!("{}/fleet", served.url);
    for (viewport, light) in [
        (Viewport::phone(), true),
        (
            Viewport {
                dark: true,
                ..Viewport::desk()
            },
            false,
        ),
    ] {
        browser.open(&page, viewport).await.unwrap();
        until(browser, "#verdict-text", "All is well").await;
        let wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
        assert_eq!(
            number(browser, wide).await,
            0,
            "the page is wider than {viewport:?}"
        );
        let ground = "Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])";
        assert_eq!(number(browser, ground).await > 128, light, "{viewport:?}");
        let small = "[...document.querySelectorAll('button')].filter(b => b.getBoundingClientRect().height < 24).length";
        assert_eq!(
            number(browser, small).await,
            0,
            "buttons too small for a finger"
        );
    }
}

async fn keeps_hostile_text_as_text(browser: &Browser) {
    let hostile = "<img src=x onerror=document.title='owned'>";
    let served = serve(Fleet::named(hostile)).await;
    browser
        .open(&format!("{}/fleet", served.url), Viewport::desk())
        .await
        .unwrap();
    until(browser, "#replica-rows", hostile).await;
    browser
        .script("document.querySelector('#all-shards').open = true")
        .await
        .unwrap();
    until(browser, "#shard-rows", "javascript:alert(1)").await;
    until(browser, "#checks", "</script><script>").await;
    let elements = "document.querySelectorAll('img, iframe, object, a[href^=javascript], script:not([nonce])').length";
    assert_eq!(number(browser, elements).await, 0);
    assert_eq!(number(browser, "document.scripts.length").await, 1);
    let title = browser.script("return document.title").await.unwrap();
    assert!(!title.as_str().unwrap().contains("owned"), "{title}");
    // The policy protects even against markup from a later mistake.
    let smuggled =
        "try { document.body.innerHTML = '<b>x</b>'; return 'made' } catch (e) { return e.name }";
    assert_eq!(browser.script(smuggled).await.unwrap(), "TypeError");
    browser.console().await.unwrap();
}

async fn says_that_it_is_old_when_the_replica_is_gone(browser: &Browser) {
    let served = serve(Fleet::sound()).await;
    browser
        .open(&format!("{}/fleet", served.url), Viewport::desk())
        .await
        .unwrap();
    until(browser, "#link-text", "Live").await;
    served.stop.cancel();
    served.task.await.unwrap();
    until(browser, "#link-text", "Not live").await;
    until(browser, "#stale", "the replica does not answer").await;
    assert_eq!(
        text(browser, ".middle").await,
        "32 / 32",
        "the last picture stays"
    );
    let title = browser.script("return document.title").await.unwrap();
    assert!(title.as_str().unwrap().starts_with("(old)"), "{title}");
}
