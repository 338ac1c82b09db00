//! How results are printed: tables, JSON, YAML and names, once or after each change.

use std::fmt::Write as _;
use std::future::Future;
use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::time::Duration;

use serde::Serialize;

use super::args::{Format, Show};
use super::failure::{Exit, Failure};

/// Time between two readings of `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(2);

/// A result in every form.
pub(crate) trait Printable {
    /// The result as JSON and YAML have it.
    type Data: Serialize;

    fn data(&self) -> &Self::Data;

    /// The text; `wide`: with more columns.
    fn text(&self, wide: bool) -> String;

    /// Names of resources, as kubectl takes them.
    fn names(&self) -> Vec<String>;

    fn print(&self, format: Option<Format>) -> Result<String, Failure> {
        let text = match format {
            None => self.text(false),
            Some(Format::Wide) => self.text(true),
            Some(Format::Name) => lines(&self.names()),
            Some(Format::Json) => json(self.data())?,
            Some(Format::Yaml) => yaml(self.data())?,
        };
        Ok(text)
    }
}

pub(crate) fn lines(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

pub(crate) fn json(data: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string_pretty(data)
        .map(|text| text + "\n")
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot print JSON: {error}")))
}

pub(crate) fn yaml(data: &impl Serialize) -> Result<String, Failure> {
    serde_saphyr::to_string(data)
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot print YAML: {error}")))
}

/// Reads and prints, with `--watch` again after each change. Returns the last result.
pub(crate) async fn show<P: Printable, F: Future<Output = Result<P, Failure>>>(
    show: Show,
    read: impl Fn() -> F,
) -> Result<P, Failure> {
    let mut last = String::new();
    loop {
        let result = read().await?;
        let text = result.print(show.output)?;
        if text != last {
            let clear = show.watch && show.output.is_none() && std::io::stdout().is_terminal();
            let begin = match (clear, last.is_empty()) {
                (true, _) => "\x1b[H\x1b[2J",
                (false, false) if show.output.is_none() => "\n",
                (false, _) => "",
            };
            if !print(&format!("{begin}{text}"))? {
                return Ok(result);
            }
            last = text;
        }
        if !show.watch {
            return Ok(result);
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

/// Writes to standard output. Returns whether it still has a reader: a pager that was quit early is not an error.
pub(crate) fn print(text: &str) -> Result<bool, Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        result => Ok(result.map(|()| true)?),
    }
}

/// Rows under a head, aligned with spaces.
pub(crate) fn columns(text: &mut String, head: &[&str], rows: Vec<Vec<String>>) {
    let mut table = vec![head.iter().map(|&name| name.to_owned()).collect()];
    table.extend(rows);
    let mut widths = vec![0; head.len()];
    for row in &table {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    for row in &table {
        let mut line = String::new();
        for (cell, &width) in row.iter().zip(&widths) {
            let cell = if cell.is_empty() { "-" } else { cell };
            // Writing into a String cannot fail.
            let _ = write!(line, "{cell:width$}   ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

/// A time span in at most two units, as kubectl shows ages.
pub(crate) fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => format!("{minutes}m{}s", seconds % 60),
        600..7200 => format!("{minutes}m"),
        7200..172_800 => format!("{hours}h"),
        _ => format!("{days}d"),
    }
}

/// A number of bytes in the largest unit that leaves at least one digit before the point.
pub(crate) fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    match unit {
        "B" => format!("{bytes} B"),
        _ => format!("{value:.1} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes_are_short() {
        let spans = [5, 119, 185, 700, 8000, 200_000, -3].map(span);
        assert_eq!(spans, ["5s", "119s", "3m5s", "11m", "2h", "2d", "0s"]);
        let sizes = [0, 1023, 1024, 1536, 5 << 30].map(bytes);
        assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 GiB"]);
    }
}
