//! Sets up the log: one line per event, to standard error, as text or JSON.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::log_level::{Apply, LogLevel};

/// `kube_client::client::builder` logs every failed request as an error. The operator reports each
/// failure itself, once and with a remedy, so that module is silent by default; and so are the
/// warnings of the module above it, two for each watch of a missing kind.
const DEFAULT_FILTER: &str = "info,kube=warn,kube_client=warn,kube_runtime=warn,kube_client::client=error,\
     kube_client::client::tls=warn,kube_client::client::builder=off,hyper=warn,hyper_util=warn,rustls=warn,tower=warn,\
     h2=warn";

/// Format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Plain text for reading.
    #[default]
    Text,
    /// One JSON object per line, for log collectors.
    Json,
}

/// The log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `RUST_LOG` cannot be parsed.
    #[error("RUST_LOG is {value:?}: {source}; allowed are directives such as info,kube=debug")]
    Filter {
        /// Value of `RUST_LOG`.
        value: String,
        /// The parse error.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The log was set up before.
    #[error("the log is already set up in this process: {0}")]
    AlreadySet(#[from] tracing_subscriber::util::TryInitError),
}

/// Sets up the log of this process; `RUST_LOG` selects what is logged (default: info, libraries
/// warn).
/// Returns the handle that changes our own level later.
///
/// # Errors
/// When `RUST_LOG` cannot be parsed, or the log was set up before.
pub fn init(format: LogFormat) -> Result<Arc<LogLevel>, LogError> {
    use tracing_subscriber::util::SubscriberInitExt as _;
    let asked = std::env::var("RUST_LOG").unwrap_or_default();
    let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let (log, apply) = build(format, &asked, colours, || OneLine(io::stderr()))?;
    log.try_init()?;
    Ok(LogLevel::new(apply))
}

/// Directives of `value` come last, and of two directives for one target the last one counts.
fn filter(value: &str) -> Result<EnvFilter, LogError> {
    let directives = format!("{DEFAULT_FILTER},{value}");
    EnvFilter::builder()
        .parse(directives.trim_end_matches(','))
        .map_err(|source| LogError::Filter {
            value: value.to_owned(),
            source,
        })
}

type Log = Box<dyn tracing::Subscriber + Send + Sync>;

/// The log, and a function that adds directives to those of `asked`.
fn build<W>(
    format: LogFormat,
    asked: &str,
    colours: bool,
    writer: W,
) -> Result<(Log, Apply), LogError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filtered = tracing_subscriber::fmt()
        .with_env_filter(filter(asked)?)
        .with_writer(writer);
    let asked = asked.to_owned();
    let again = move |more: &str| filter(&format!("{asked},{more}")).map_err(|e| e.to_string());
    Ok(match format {
        LogFormat::Text => {
            let log = filtered.with_ansi(colours).with_filter_reloading();
            let handle = log.reload_handle();
            let apply = move |more: &str| handle.reload(again(more)?).map_err(|e| e.to_string());
            (Box::new(log.finish()), Box::new(apply))
        }
        LogFormat::Json => {
            // The innermost span is the reconcile: there is no other span.
            let log = filtered
                .json()
                .flatten_event(true)
                .with_span_list(false)
                .with_filter_reloading();
            let handle = log.reload_handle();
            let apply = move |more: &str| handle.reload(again(more)?).map_err(|e| e.to_string());
            (Box::new(log.finish()), Box::new(apply))
        }
    })
}

/// Writes an event with line breaks as one line, so that no external text can look like an event of
/// its own. Each event arrives in one call.
struct OneLine<W>(W);

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let body = event.strip_suffix(b"\n").unwrap_or(event);
        if body.iter().any(|byte| matches!(byte, b'\n' | b'\r')) {
            let mut line = Vec::with_capacity(event.len() + 16);
            for byte in body {
                match byte {
                    b'\n' => line.extend_from_slice(b"\\n"),
                    b'\r' => line.extend_from_slice(b"\\r"),
                    byte => line.push(*byte),
                }
            }
            line.push(b'\n');
            self.0.write_all(&line)?;
        } else {
            self.0.write_all(event)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::Arc;

    use parking_lot::Mutex;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(format: LogFormat, rust_log: &str, events: impl FnOnce(&Apply)) -> Vec<String> {
        let captured = Captured::default();
        let writer = {
            let captured = captured.clone();
            move || OneLine(captured.clone())
        };
        let (log, apply) = build(format, rust_log, false, writer).unwrap();
        tracing::subscriber::with_default(log, || events(&apply));
        let bytes = captured.0.lock().clone();
        let text = String::from_utf8(bytes).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn event_is_logged_on_one_line() {
        let events = |_: &Apply| tracing::info!(cause = %"a\nINFO forged\r\n", "first\nsecond");
        for format in [LogFormat::Text, LogFormat::Json] {
            let lines = lines(format, "", events);
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(lines[0].contains("first\\nsecond"), "{lines:?}");
            assert!(!lines[0].contains('\x1b'), "{lines:?}");
        }
    }

    #[test]
    fn json_lines_parse() {
        let lines = lines(LogFormat::Json, "", |_| tracing::warn!(shard = 7, "taken"));
        let event: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(event["message"], "taken");
        assert_eq!(event["shard"], 7);
        assert_eq!(event["level"], "WARN");
    }

    #[test]
    fn library_logs_are_reduced_by_default() {
        let events = |_: &Apply| {
            tracing::info!("ours");
            tracing::debug!("ours too");
            tracing::info!(target: "kube_client::client", "request");
            tracing::warn!(target: "kube_client::client", "404 page not found");
            tracing::error!(target: "kube_client::client::builder", "failed with error");
            tracing::warn!(target: "kube_runtime::watcher", "trouble");
        };
        assert_eq!(lines(LogFormat::Text, "", events).len(), 2);
        assert_eq!(lines(LogFormat::Text, "debug", events).len(), 3);
        let asked = lines(LogFormat::Text, "kube_client::client=debug", events);
        assert_eq!(asked.len(), 4);
        assert_eq!(lines(LogFormat::Text, "off", events).len(), 1);
    }

    #[test]
    fn reconcile_log_lines_carry_object_shard_epoch_and_attempt() {
        let events = |_: &Apply| {
            let span = tracing::info_span!(
                "reconcile", object = %"shop/db-0", shard = %7, epoch = 3, attempt = 1
            );
            span.in_scope(|| tracing::info!("applied"));
        };
        let json = lines(LogFormat::Json, "", events);
        let event: serde_json::Value = serde_json::from_str(&json[0]).unwrap();
        let expected = serde_json::json!({
            "name": "reconcile", "object": "shop/db-0", "shard": "7", "epoch": 3, "attempt": 1,
        });
        assert_eq!(event["span"], expected);
        let text = lines(LogFormat::Text, "", events);
        let expected = "reconcile{object=shop/db-0 shard=7 epoch=3 attempt=1}";
        assert!(text[0].contains(expected), "{text:?}");
    }

    #[test]
    fn the_level_changes_while_the_process_runs_and_libraries_stay_quiet() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let lines = lines(format, "info", |apply| {
                let both = || {
                    tracing::debug!("ours");
                    tracing::debug!(target: "kube_client::client", "theirs");
                };
                both();
                apply("databasecluster_operator=debug").unwrap();
                both();
                apply("").unwrap();
                both();
                assert!(apply("=what=").is_err());
            });
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(lines[0].contains("ours"), "{lines:?}");
        }
    }

    #[test]
    fn a_filter_that_does_not_parse_is_named() {
        let error = filter("info,=what=").unwrap_err().to_string();
        assert!(error.contains("RUST_LOG is \"info,=what=\""), "{error}");
    }
}
