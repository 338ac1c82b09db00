//! The results as tables: for a terminal, and in Markdown.

use std::fmt::Write;

use super::goals::{compare, is_expected};
use super::results::{Benchmark, Loading, Size};
use super::side::Side;

/// A table for a terminal: medians and spread of every side, then the goals.
pub(crate) fn text(size: &Size) -> String {
    let mut text = format!("\n{}\n\n{:53}", heading(size), "median (least to most)");
    for side in sides(size) {
        let _infallible = write!(text, " {:>22}", side.label());
    }
    text.push('\n');
    for benchmark in rows(size) {
        let _infallible = write!(text, "{:53}", benchmark.label());
        for side in sides(size) {
            let _infallible = write!(text, " {:>22}", cell(size, side, benchmark));
        }
        text.push('\n');
    }
    let _infallible = writeln!(
        text,
        "\n{:53} {:20} {:>9} {:>9} {:>12} {:>14}",
        "goals", "side", "operator", "Go peer", "ratio", "goal"
    );
    for compared in compare(size) {
        let go = compared.go.map_or_else(|| "-".to_owned(), number);
        let _infallible = writeln!(
            text,
            "{:53} {:20} {:>9} {go:>9} {:>12} {:>14} {}",
            compared.goal.benchmark.label(),
            compared.goal.side.label(),
            number(compared.own),
            compared.ratio(),
            compared.goal.bound.text(),
            compared.verdict(),
        );
    }
    text
}

/// What was measured, in one line.
pub(crate) fn heading(size: &Size) -> String {
    let how = match size.loading {
        Loading::Created => String::new(),
        Loading::Copied => format!(", copied into etcd; {} changes", grouped(size.changes)),
    };
    let rounds = match size.rounds {
        1 => "1 round".to_owned(),
        rounds => format!("{rounds} rounds"),
    };
    format!(
        "{} DatabaseClusters, StatefulSets without Pods{how}; {rounds}, {} cores, {}, commit {}",
        grouped(size.clusters),
        size.cores,
        size.operator,
        size.commit
    )
}

/// The same as [`text`], in Markdown.
pub(crate) fn markdown(size: &Size) -> String {
    let mut text = format!("{}\n\n", heading(size));
    text.push_str(&row(
        "median (least to most)",
        sides(size).map(|side| side.label().to_owned()),
    ));
    text.push_str(&row("---", sides(size).map(|_| "---".to_owned())));
    for benchmark in rows(size) {
        text.push_str(&row(
            benchmark.label(),
            sides(size).map(|side| cell(size, side, benchmark)),
        ));
    }
    text.push_str("\n| goal | side | operator | Go peer | ratio | goal | |\n| --- | --- | --- | --- | --- | --- | --- |\n");
    for compared in compare(size) {
        let go = compared.go.map_or_else(|| "-".to_owned(), number);
        let own = number(compared.own);
        let cells = [
            compared.goal.side.label().to_owned(),
            own,
            go,
            compared.ratio(),
            compared.goal.bound.text(),
            compared.verdict().to_owned(),
        ];
        text.push_str(&row(compared.goal.benchmark.label(), cells.into_iter()));
    }
    text
}

/// The few rows that README.md shows.
pub(crate) fn headline(size: &Size) -> String {
    const ROWS: [Benchmark; 8] = [
        Benchmark::CreateSeconds,
        Benchmark::CreateCpu,
        Benchmark::CreateServerCpu,
        Benchmark::ChangeCpu,
        Benchmark::ChangeServerCpu,
        Benchmark::PeakMemory,
        Benchmark::RestCpu,
        Benchmark::TakeoverSeconds,
    ];
    let mut text = row(
        &format!("{} DatabaseClusters", grouped(size.clusters)),
        sides(size).map(|side| side.label().to_owned()),
    );
    text.push_str(&row("---", sides(size).map(|_| "---".to_owned())));
    for benchmark in ROWS {
        let cells = sides(size).map(|side| median(size, side, benchmark));
        text.push_str(&row(benchmark.label(), cells));
    }
    text
}

fn row(first: &str, cells: impl Iterator<Item = String>) -> String {
    let mut text = format!("| {first} |");
    for cell in cells {
        let _infallible = write!(text, " {cell} |");
    }
    text.push('\n');
    text
}

/// Sides that were measured.
fn sides(size: &Size) -> impl Iterator<Item = Side> {
    Side::ALL
        .into_iter()
        .filter(|side| size.sides.contains_key(side))
}

/// Benchmarks that a side may have a value of.
fn rows(size: &Size) -> impl Iterator<Item = Benchmark> {
    let expected =
        |benchmark: &Benchmark| sides(size).any(|side| is_expected(size, side, *benchmark));
    Benchmark::ALL.into_iter().filter(expected)
}

fn median(size: &Size, side: Side, benchmark: Benchmark) -> String {
    let median = size.median(side, benchmark);
    median.map_or_else(|| "-".to_owned(), number)
}

fn cell(size: &Size, side: Side, benchmark: Benchmark) -> String {
    let sorted = size.sorted(side, benchmark);
    match (sorted.percentile(50), sorted.percentile(0), sorted.max()) {
        (Some(median), Some(least), Some(most)) if sorted.count() > 1 => {
            format!("{} ({} to {})", number(median), number(least), number(most))
        }
        (Some(median), _, _) => number(median),
        _ => "-".to_owned(),
    }
}

/// Three digits, which is more than a run repeats.
pub(crate) fn number(value: f64) -> String {
    match value {
        value if value >= 999.5 => {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let whole = value.round() as usize;
            grouped(whole)
        }
        value if value >= 99.95 => format!("{value:.0}"),
        value if value >= 9.995 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// With commas between thousands.
pub(crate) fn grouped(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::bench::results::tests::{empty, size};

    #[test]
    fn table_shows_medians_spread_and_goals_of_measured_values_only() {
        let table = text(&size());
        let row = |text: &str| table.lines().find(|line| line.starts_with(text)).unwrap();
        let cpu = row("CPU for each created cluster");
        assert!(cpu.contains("2.00 (1.00 to 3.00)"), "{cpu}");
        assert!(cpu.contains("8.00 (4.00 to 9.00)"), "{cpu}");
        assert!(row("SIGKILL").trim_end().ends_with('-'));
        let goal = table.lines().next_back().unwrap();
        assert!(
            goal.contains("4.0 × less") && goal.ends_with("2.8 × less met"),
            "{goal}"
        );
        assert!(!table.contains("kube-rs"), "{table}");
    }

    #[test]
    fn copied_clusters_have_a_start_and_no_creation() {
        let mut copied = size();
        copied.loading = Loading::Copied;
        let table = text(&copied);
        assert!(
            table.contains("start on existing") && !table.contains("all created"),
            "{table}"
        );
        assert!(!text(&size()).contains("start on existing"));
    }

    #[test]
    fn numbers_have_three_digits_and_counts_have_commas() {
        let numbers = [0.123, 9.999, 12.34, 99.96, 1234.5].map(number);
        assert_eq!(numbers, ["0.12", "10.0", "12.3", "100", "1,235"]);
        assert_eq!(
            [7, 999, 1_000, 20_000, 1_000_000].map(grouped),
            ["7", "999", "1,000", "20,000", "1,000,000"]
        );
    }

    #[test]
    fn markdown_rows_have_as_many_cells_as_their_heading() {
        let mut two = size();
        two.note(Side::KubeRs, Benchmark::TakeoverSeconds, 16.0);
        for text in [markdown(&two), headline(&two), markdown(&empty(3))] {
            for table in text.split("\n\n").filter(|part| part.starts_with('|')) {
                let widths: Vec<_> = table
                    .lines()
                    .map(|line| line.matches('|').count())
                    .collect();
                assert!(widths.iter().all(|width| *width == widths[0]), "{table}");
            }
        }
    }
}
