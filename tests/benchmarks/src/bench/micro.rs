//! The results of the micro-benchmarks (`benches/micro.rs`), as criterion leaves them, and as a table.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::table::{grouped, number};

/// One micro-benchmark.
#[derive(Clone, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
pub(crate) struct Micro {
    pub(crate) group: String,
    pub(crate) name: String,
    /// How many objects there were, or what else it was measured for; empty when that makes no difference.
    pub(crate) parameter: String,
    /// The median.
    pub(crate) nanoseconds: f64,
}

/// Numbers of objects that have a column.
const SIZES: [&str; 4] = ["1000", "10000", "100000", "1000000"];

/// Everything in criterion's folder.
pub(crate) fn collect(folder: &Path) -> Result<Vec<Micro>> {
    let mut folders = vec![folder.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        let what = || format!("read {}: run make bench-micro first", folder.display());
        for entry in std::fs::read_dir(&folder).with_context(what)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name == "new") {
                found.push(read(&path)?);
            } else if path.is_dir() {
                folders.push(path);
            }
        }
    }
    ensure!(
        !found.is_empty(),
        "{} has no results: run make bench-micro first",
        folder.display()
    );
    let size = |one: &Micro| one.parameter.parse::<u64>().unwrap_or(0);
    found.sort_by(|a, b| {
        (&a.group, &a.name, size(a), &a.parameter).cmp(&(&b.group, &b.name, size(b), &b.parameter))
    });
    Ok(found)
}

fn read(folder: &Path) -> Result<Micro> {
    let json = |name: &str| -> Result<Value> {
        let path: PathBuf = folder.join(name);
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))
    };
    let (benchmark, estimates) = (json("benchmark.json")?, json("estimates.json")?);
    let text = |name: &str| benchmark[name].as_str().unwrap_or_default().to_owned();
    let nanoseconds = estimates["median"]["point_estimate"].as_f64();
    Ok(Micro {
        group: text("group_id"),
        name: text("function_id"),
        parameter: text("value_str"),
        nanoseconds: nanoseconds
            .with_context(|| format!("{}: there is no median", folder.display()))?,
    })
}

/// A table with a column for each number of objects, and a list of those without one.
pub(crate) fn markdown(all: &[Micro]) -> String {
    if all.is_empty() {
        return "No results are committed.\n".to_owned();
    }
    let mut text = format!(
        "| median of one | {} |\n| --- |{}\n",
        SIZES
            .map(|size| grouped(size.parse().unwrap_or(0)))
            .join(" | "),
        " --- |".repeat(SIZES.len())
    );
    let mut rows: Vec<(&str, &str)> = Vec::new();
    for one in all
        .iter()
        .filter(|one| SIZES.contains(&one.parameter.as_str()))
    {
        if !rows.contains(&(&one.group, &one.name)) {
            rows.push((&one.group, &one.name));
        }
    }
    for (group, name) in rows {
        let _infallible = write!(text, "| {group}: {name} |");
        for size in SIZES {
            let of = |one: &&Micro| one.group == group && one.name == name && one.parameter == size;
            let cell = all.iter().find(of).map(|one| time(one.nanoseconds));
            let _infallible = write!(text, " {} |", cell.unwrap_or_else(|| "-".to_owned()));
        }
        text.push('\n');
    }
    text.push_str("\n| median of one | |\n| --- | --- |\n");
    for one in all
        .iter()
        .filter(|one| !SIZES.contains(&one.parameter.as_str()))
    {
        let parameter = match one.parameter.is_empty() {
            true => String::new(),
            false => format!(", {}", one.parameter),
        };
        let _infallible = writeln!(
            text,
            "| {}: {}{parameter} | {} |",
            one.group,
            one.name,
            time(one.nanoseconds)
        );
    }
    text
}

fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        ns if ns < 1e3 => format!("{} ns", number(ns)),
        ns if ns < 1e6 => format!("{} µs", number(ns / 1e3)),
        ns => format!("{} ms", number(ns / 1e6)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn results_of_criterion_become_rows() {
        let folder = std::env::temp_dir().join(format!("bench-micro-{}", std::process::id()));
        for (group, name, parameter, ns) in [
            ("queue", "pop", "1000", 150.0),
            ("queue", "pop", "1000000", 1_500.0),
            ("ring", "rank", "3 members", 2.5e6),
        ] {
            let new = folder.join(group).join(parameter).join("new");
            std::fs::create_dir_all(&new).unwrap();
            let benchmark =
                serde_json::json!({"group_id": group, "function_id": name, "value_str": parameter});
            let estimates = serde_json::json!({"median": {"point_estimate": ns}});
            std::fs::write(new.join("benchmark.json"), benchmark.to_string()).unwrap();
            std::fs::write(new.join("estimates.json"), estimates.to_string()).unwrap();
        }
        let all = collect(&folder);
        let _removed = std::fs::remove_dir_all(&folder);
        let table = markdown(&all.unwrap());
        assert!(
            table.contains("| queue: pop | 150 ns | - | - | 1.50 µs |"),
            "{table}"
        );
        assert!(
            table.contains("| ring: rank, 3 members | 2.50 ms |"),
            "{table}"
        );
    }
}
