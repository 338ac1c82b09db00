//! A Prometheus on loopback that scrapes a fleet and evaluates the alerts, and its answers.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use testbed::error::{Context, Error, Result};
use testbed::guardian::Guardian;
use testbed::process::ProcessId;
use testbed::{Progress, http_get, ports, wait_for};

/// The `job` of everything that it scrapes.
pub const JOB: &str = "databasecluster-operator";
/// The `job` of what exports metrics of databases.
pub const DATABASES_JOB: &str = "databases";
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A Prometheus. Dropping it kills it.
#[derive(Debug)]
pub struct Prometheus {
    url: String,
    folder: PathBuf,
    child: Child,
}

impl Prometheus {
    /// Starts one that keeps its files in a folder of the guardian's. It scrapes nothing yet.
    ///
    /// # Errors
    /// When it is missing or does not start.
    pub async fn start(guardian: &Guardian) -> Result<Self> {
        let folder = guardian.folder().join("prometheus");
        std::fs::create_dir_all(&folder).context("create Prometheus's folder")?;
        let config = folder.join("prometheus.json");
        // JSON is YAML.
        let text = json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [crate::file("dashboards/alerts.yaml")],
            "scrape_configs": [{
                "job_name": JOB,
                "file_sd_configs": [{"files": [folder.join("targets.json")], "refresh_interval": "1s"}],
            }, {
                "job_name": DATABASES_JOB,
                "file_sd_configs": [{"files": [folder.join("databases.json")], "refresh_interval": "1s"}],
            }],
        });
        std::fs::write(&config, text.to_string()).context("write Prometheus's configuration")?;
        scrape(&folder, "targets", &[])?;
        scrape(&folder, "databases", &[])?;
        let [port] = ports::free_ports()?;
        let log = File::create(folder.join("log")).context("create Prometheus's log")?;
        let (mark, value) = guardian.mark();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .env(mark, value)
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("start prometheus (see tests/set-up.sh)")?;
        guardian.register(ProcessId::of(child.id())?)?;
        let started = Self {
            url: format!("http://127.0.0.1:{port}"),
            folder,
            child,
        };
        wait_for("Prometheus to be ready", START_TIMEOUT, || async {
            Ok(match http_get::get(&started.url, "/-/ready", "*/*").await {
                Ok(answer) if answer.status == 200 => Progress::Done(()),
                Ok(answer) => Progress::pending(answer.body),
                Err(error) => Progress::pending(error),
            })
        })
        .await?;
        Ok(started)
    }

    /// Scrapes these from now on, whatever it scraped before.
    ///
    /// # Errors
    /// When their list cannot be written.
    pub fn scrape(&self, urls: &[&str]) -> Result<()> {
        scrape(&self.folder, "targets", urls)
    }

    /// Scrapes the metrics of databases there from now on.
    ///
    /// # Errors
    /// When the list of targets cannot be written.
    pub fn scrape_databases(&self, url: &str) -> Result<()> {
        scrape(&self.folder, "databases", &[url])
    }

    /// The present result of a query, one value for each series.
    ///
    /// # Errors
    /// When it is refused or not answered.
    pub async fn ask(&self, query: &str) -> Result<Vec<Value>> {
        let path = format!("/api/v1/query?query={}", encoded(query));
        let data = self.get(&path).await?;
        let result = data["result"].as_array().cloned();
        result.ok_or_else(|| Error::Failed(format!("{query}: no result in {data}")))
    }

    /// The names of all metrics that it has under the name of a job.
    ///
    /// # Errors
    /// When it is not answered.
    pub async fn names(&self, job: &str) -> Result<BTreeSet<String>> {
        let selector = encoded(&format!("{{job=\"{job}\"}}"));
        let path = format!("/api/v1/label/__name__/values?match[]={selector}");
        let data = self.get(&path).await?;
        let names = data.as_array().into_iter().flatten();
        Ok(names.filter_map(Value::as_str).map(str::to_owned).collect())
    }

    /// What a query gave in each second between two times, which are in seconds since 1970.
    ///
    /// # Errors
    /// When it is refused or not answered.
    pub async fn ask_over_time(&self, query: &str, from: f64, to: f64) -> Result<Vec<Value>> {
        let query = encoded(query);
        let path = format!("/api/v1/query_range?query={query}&start={from}&end={to}&step=1");
        let data = self.get(&path).await?;
        let result = data["result"].as_array().cloned();
        result.ok_or_else(|| Error::Failed(format!("{path}: no result in {data}")))
    }

    /// The data of an answer of its API.
    ///
    /// # Errors
    /// When it is none, or an error.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let answer = http_get::get(&self.url, path, "application/json").await?;
        let body: Value = serde_json::from_str(&answer.body).context(path.to_owned())?;
        if body["status"] == "success" {
            return Ok(body["data"].clone());
        }
        Err(Error::Failed(format!("{path}: {}", body["error"])))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        if self.child.kill().is_ok() {
            let _ended = self.child.wait();
        }
    }
}

/// Put in place at once: a half of it would be read as no targets.
fn scrape(folder: &Path, list: &str, urls: &[&str]) -> Result<()> {
    let hosts: Vec<&str> = urls
        .iter()
        .map(|u| u.trim_start_matches("http://"))
        .collect();
    let file = |end: &str| folder.join(format!("{list}.{end}"));
    let (part, whole) = (file("part"), file("json"));
    std::fs::write(&part, json!([{"targets": hosts}]).to_string()).context("write targets")?;
    std::fs::rename(part, whole).context("put the targets in place")
}

/// For a query string.
fn encoded(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}
