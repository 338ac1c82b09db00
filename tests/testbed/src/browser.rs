//! A headless Chromium, driven by chromedriver on loopback.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};

use crate::error::{Context, Error, Result, failed};
use crate::guardian::Guardian;
use crate::http_get;
use crate::process::ProcessId;

const TIMEOUT: Duration = Duration::from_secs(30);
const DRIVERS: [&str; 2] = ["chromedriver", "/usr/lib/chromium/chromedriver"];

/// The viewport of a page.
#[derive(Clone, Copy, Debug)]
pub struct Viewport {
    /// Width of the window, in CSS pixels.
    pub width: u32,
    /// Height of the window, in CSS pixels.
    pub height: u32,
    /// Whether the user prefers dark pages.
    pub dark: bool,
    /// Whether it is a phone.
    pub phone: bool,
}

impl Viewport {
    /// A window on a desk, light.
    #[must_use]
    pub fn desk() -> Self {
        Self {
            width: 1360,
            height: 920,
            dark: false,
            phone: false,
        }
    }

    /// A phone, upright.
    #[must_use]
    pub fn phone() -> Self {
        Self {
            width: 390,
            height: 844,
            dark: false,
            phone: true,
        }
    }
}

/// A browser with one tab. It reaches loopback and nothing else. Dropping it ends it.
pub struct Browser {
    url: String,
    session: String,
    // Last, so that it is dropped after the rest and ends everything.
    _driver: Child,
    _guardian: Guardian,
}

impl Browser {
    /// Starts driver and browser.
    ///
    /// # Errors
    /// When one of them is missing or does not start.
    pub async fn start() -> Result<Self> {
        let guardian = Guardian::start("browser")?;
        let (driver, url) = start_driver(&guardian)?;
        let mut browser = Self {
            url,
            session: String::new(),
            _driver: driver,
            _guardian: guardian,
        };
        let profile = browser._guardian.folder().join("profile");
        let arguments = [
            "--headless".to_owned(),
            // As root there is no other way; the only pages are our own.
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--disable-background-networking".to_owned(),
            "--disable-component-update".to_owned(),
            "--no-first-run".to_owned(),
            "--hide-scrollbars".to_owned(),
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1".to_owned(),
            format!("--user-data-dir={}", profile.display()),
        ];
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let session = browser.ask("POST", "/session", &capabilities).await?;
        let id = session["sessionId"].as_str().unwrap_or_default();
        browser.session = format!("/session/{id}");
        Ok(browser)
    }

    /// Opens a page in this viewport.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub async fn open(&self, url: &str, viewport: Viewport) -> Result<()> {
        self.set_viewport(viewport).await?;
        let path = format!("{}/url", self.session);
        self.ask("POST", &path, &json!({"url": url})).await?;
        Ok(())
    }

    /// Changes the viewport of the present page.
    ///
    /// # Errors
    /// When the browser refuses.
    pub async fn set_viewport(&self, viewport: Viewport) -> Result<()> {
        let scheme = if viewport.dark { "dark" } else { "light" };
        let features = [
            ("prefers-color-scheme", scheme),
            ("prefers-reduced-motion", "reduce"),
        ];
        let features = features.map(|(name, value)| json!({"name": name, "value": value}));
        self.devtools("Emulation.setEmulatedMedia", json!({"features": features}))
            .await?;
        let metrics = json!({
            "width": viewport.width, "height": viewport.height, "deviceScaleFactor": 1, "mobile": viewport.phone,
        });
        self.devtools("Emulation.setDeviceMetricsOverride", metrics)
            .await?;
        Ok(())
    }

    /// What this script returns.
    ///
    /// # Errors
    /// When it throws.
    pub async fn script(&self, code: &str) -> Result<Value> {
        let path = format!("{}/execute/sync", self.session);
        let call = json!({"script": code, "args": []});
        self.ask("POST", &path, &call).await
    }

    /// Presses and lets go a key, by its name in `KeyboardEvent.key`.
    ///
    /// # Errors
    /// When the browser refuses.
    pub async fn press(&self, key: &str) -> Result<()> {
        let code = match key {
            "Tab" => 9,
            "End" => 35,
            "Home" => 36,
            "ArrowLeft" => 37,
            "ArrowRight" => 39,
            other => return failed(format!("no key code for {other} here")),
        };
        for kind in ["keyDown", "keyUp"] {
            let event =
                json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code});
            self.devtools("Input.dispatchKeyEvent", event).await?;
        }
        Ok(())
    }

    /// What was written to the console since the last call, policy violations included.
    ///
    /// # Errors
    /// When the browser refuses.
    pub async fn console(&self) -> Result<Vec<String>> {
        let path = format!("{}/se/log", self.session);
        let entries = self.ask("POST", &path, &json!({"type": "browser"})).await?;
        let entries = entries.as_array().cloned().unwrap_or_default();
        let text = |entry: Value| entry["message"].as_str().unwrap_or_default().to_owned();
        Ok(entries.into_iter().map(text).collect())
    }

    /// The whole page as PNG, of at most `height_max` pixels.
    ///
    /// # Errors
    /// When the browser refuses.
    pub async fn picture(&self, viewport: Viewport, height_max: u32) -> Result<Vec<u8>> {
        let height = "return document.documentElement.scrollHeight";
        let height = self.script(height).await?.as_u64().unwrap_or(0);
        let height = u32::try_from(height).unwrap_or(height_max).min(height_max);
        self.set_viewport(Viewport { height, ..viewport }).await?;
        let shot = json!({"format": "png", "optimizeForSpeed": false});
        let shot = self.devtools("Page.captureScreenshot", shot).await?;
        let data = shot["data"].as_str().unwrap_or_default();
        base64::engine::general_purpose::STANDARD
            .decode(data)
            .context("decode the picture")
    }

    async fn devtools(&self, command: &str, parameters: Value) -> Result<Value> {
        let path = format!("{}/goog/cdp/execute", self.session);
        let call = json!({"cmd": command, "params": parameters});
        self.ask("POST", &path, &call).await
    }

    async fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let head = "Content-Type: application/json\r\n";
        let body = body.to_string();
        let answer = http_get::send(&self.url, (method, path), head, &body, TIMEOUT).await?;
        let mut parsed: Value = serde_json::from_str(&answer.body)
            .context(format!("{method} {path}: understand the driver"))?;
        let value = parsed["value"].take();
        match answer.status {
            200 => Ok(value),
            status => failed(format!("{method} {path}: {status}: {}", value["message"])),
        }
    }
}

/// Starts the driver on a free port, which it prints.
fn start_driver(guardian: &Guardian) -> Result<(Child, String)> {
    let folder = guardian.folder();
    let start = |program: &&str| {
        Command::new(program)
            .arg("--port=0")
            .env(guardian.mark().0, guardian.mark().1)
            .env("TMPDIR", folder)
            .env("HOME", folder)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .ok()
    };
    let child = DRIVERS.iter().find_map(start);
    let mut child = child.ok_or_else(|| {
        Error::Failed("chromedriver is missing (Debian: apt-get install chromium-driver)".into())
    })?;
    guardian.register(ProcessId::of(child.id())?)?;
    let output = child.stdout.take();
    let output = output.ok_or_else(|| Error::Failed("chromedriver has no output".into()))?;
    let (said, port) = mpsc::channel();
    std::thread::spawn(move || listen(output, &said));
    match port.recv_timeout(TIMEOUT) {
        Ok(port) => Ok((child, format!("http://127.0.0.1:{port}"))),
        Err(mpsc::RecvTimeoutError::Timeout) => {
            failed(format!("chromedriver does not listen after {TIMEOUT:?}"))
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            failed("chromedriver ended before it listened")
        }
    }
}

/// Sends the port, and keeps reading: a full pipe would stop the driver.
fn listen(output: ChildStdout, said: &mpsc::Sender<String>) {
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        if let Some((_, port)) = line.split_once("started successfully on port ") {
            let _given_up = said.send(port.trim_end_matches('.').trim().to_owned());
        }
    }
}
