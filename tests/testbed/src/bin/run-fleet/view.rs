//! A snapshot as lines of text that fit a width.

use crate::snapshot::{Row, Snapshot};

/// Least width of the bar's inside; below it the numbers replace the bar.
const MIN_BAR: usize = 10;
const MAX_BAR: usize = 50;
/// The last column: its address is the first to go where there is no room.
const PAGE: &str = "PAGE";

/// The table, the phases and the progress bar, no line wider than `width`.
pub(crate) fn lines(snapshot: &Snapshot, width: usize) -> Vec<String> {
    let mut lines = table(snapshot, width);
    lines.push(String::new());
    lines.push(format!("clusters  {}", phases(snapshot)));
    lines.push(progress(snapshot, width));
    lines.into_iter().map(|line| fit(&line, width)).collect()
}

/// The same in one line, for output that is no terminal.
pub(crate) fn one_line(snapshot: &Snapshot) -> String {
    let replica = |row: &Row| match &row.stats {
        Some(f) => format!(
            "{} shards={} objects={} queue={} cpu={:.0}% memory={}",
            row.name,
            f.shards,
            f.objects,
            f.queue,
            f.cpu_percent,
            megabytes(f.memory_bytes)
        ),
        None => format!("{} {}", row.name, state(row)),
    };
    let replicas: Vec<String> = snapshot.rows.iter().map(replica).collect();
    format!(
        "{:3} s  Ready {}/{}  ({})  {}",
        snapshot.elapsed_seconds,
        snapshot.ready(),
        snapshot.expected,
        phases(snapshot),
        replicas.join(" | ")
    )
}

fn table(snapshot: &Snapshot, width: usize) -> Vec<String> {
    let headers = [
        "REPLICA", "SHARDS", "OBJECTS", "QUEUE", "CPU", "MEMORY", PAGE,
    ];
    let mut cells = vec![headers.map(str::to_owned).to_vec()];
    cells.extend(snapshot.rows.iter().map(row_cells));
    let columns = headers.len();
    let widest = |column: usize| {
        cells
            .iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(widest).collect();
    // A narrow terminal loses columns from the right rather than the ends of all lines.
    let mut shown = columns;
    while shown > 1 && total(&widths[..shown]) > width {
        shown -= 1;
    }
    let line = |row: &Vec<String>| {
        let cell = |column: usize| match column {
            0 => format!("{:<1$}", row[0], widths[0]),
            _ if headers[column] == PAGE => row[column].clone(),
            _ => format!("{:>1$}", row[column], widths[column]),
        };
        (0..shown)
            .map(cell)
            .collect::<Vec<_>>()
            .join("  ")
            .trim_end()
            .to_owned()
    };
    cells.iter().map(line).collect()
}

fn total(widths: &[usize]) -> usize {
    widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1)
}

fn row_cells(row: &Row) -> Vec<String> {
    let name = row.name.clone();
    match &row.stats {
        Some(f) => vec![
            name,
            f.shards.to_string(),
            f.objects.to_string(),
            f.queue.to_string(),
            format!("{:.0} %", f.cpu_percent),
            megabytes(f.memory_bytes),
            row.page.clone(),
        ],
        None => vec![
            name,
            state(row).to_owned(),
            "-".into(),
            "-".into(),
            "-".into(),
            "-".into(),
            if row.runs {
                row.page.clone()
            } else {
                "-".into()
            },
        ],
    }
}

fn state(row: &Row) -> &'static str {
    if row.runs { "silent" } else { "ended" }
}

fn megabytes(bytes: f64) -> String {
    format!("{:.1} MB", bytes / 1e6)
}

fn phases(snapshot: &Snapshot) -> String {
    if snapshot.phases.is_empty() {
        return "none seen yet".into();
    }
    let phase = |(name, count): (&String, &u64)| format!("{name} {count}");
    snapshot
        .phases
        .iter()
        .map(phase)
        .collect::<Vec<_>>()
        .join("  ")
}

fn progress(snapshot: &Snapshot, width: usize) -> String {
    let (ready, expected) = (snapshot.ready().min(snapshot.expected), snapshot.expected);
    let numbers = format!("{ready}/{expected} Ready  {} s", snapshot.elapsed_seconds);
    let room = width
        .saturating_sub(numbers.chars().count() + 4)
        .min(MAX_BAR);
    if room < MIN_BAR {
        return numbers;
    }
    let filled = match expected {
        0 => room,
        _ => room * usize::try_from(ready).unwrap_or(0) / usize::try_from(expected).unwrap_or(1),
    };
    format!(
        "[{}{}]  {numbers}",
        "#".repeat(filled),
        ".".repeat(room - filled)
    )
}

/// At most `width` characters.
fn fit(line: &str, width: usize) -> String {
    line.chars().take(width).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::snapshot::Stats;
    use std::collections::BTreeMap;

    fn snapshot() -> Snapshot {
        let stats = Stats {
            shards: 11,
            objects: 20,
            queue: 3,
            cpu_percent: 12.4,
            memory_bytes: 21_340_000.0,
        };
        let row = |name: &str, stats| Row {
            name: name.into(),
            runs: true,
            stats,
            page: "http://127.0.0.1:45678/fleet".into(),
        };
        let mut gone = row("databasecluster-operator-2", None);
        gone.runs = false;
        Snapshot {
            rows: vec![
                row("databasecluster-operator-0", Some(stats)),
                row("databasecluster-operator-1", None),
                gone,
            ],
            phases: BTreeMap::from([("Ready".into(), 30), ("Scaling".into(), 30)]),
            expected: 60,
            elapsed_seconds: 7,
        }
    }

    #[test]
    fn a_wide_terminal_shows_everything() {
        let text = lines(&snapshot(), 120).join("\n");
        for part in [
            "SHARDS",
            "11",
            "12 %",
            "21.3 MB",
            "silent",
            "ended",
            "Ready 30  Scaling 30",
            "30/60 Ready  7 s",
            "21.3 MB  http://127.0.0.1:45678/fleet",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        let widest = text.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(100), "everything fits 100 columns: {text}");
        assert!(
            text.contains(&format!("[{}{}]", "#".repeat(25), ".".repeat(25))),
            "{text}"
        );
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for width in 1..130 {
            let all = lines(&snapshot(), width);
            assert!(
                all.iter().all(|line| line.chars().count() <= width),
                "{width}: {all:?}"
            );
        }
        let narrow = lines(&snapshot(), 40).join("\n");
        assert!(
            narrow.contains("SHARDS") && !narrow.contains("MEMORY"),
            "{narrow}"
        );
    }

    #[test]
    fn empty_workload_shows_a_full_bar() {
        let empty = Snapshot::default();
        assert!(lines(&empty, 80).join("\n").contains("[#"));
        assert!(one_line(&empty).contains("Ready 0/0"));
    }
}
