//! How cost grows with the number of clusters: straight lines through the sizes that were measured.

use std::fmt::Write;

use super::results::{Benchmark, Results};
use super::side::Side;
use super::table::number;

/// What is fitted.
const ROWS: [Benchmark; 6] = [
    Benchmark::PeakMemory,
    Benchmark::AllMemory,
    Benchmark::RestCpu,
    Benchmark::CreateCpu,
    Benchmark::ChangeCpu,
    Benchmark::ChangeServerCpu,
];
/// Slopes are shown for so many clusters.
const PER: f64 = 1_000.0;

/// A straight line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) at_zero: f64,
    pub(crate) per_cluster: f64,
}

impl Line {
    /// The line with the least squares; none without two different numbers of clusters.
    pub(crate) fn fit(points: &[(f64, f64)]) -> Option<Self> {
        let count = f64::from(u32::try_from(points.len()).ok()?);
        let mean = |of: &dyn Fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
        let (x, y) = (mean(&|point| point.0), mean(&|point| point.1));
        let spread = points
            .iter()
            .map(|point| (point.0 - x).powi(2))
            .sum::<f64>();
        let product = points.iter().map(|point| (point.0 - x) * (point.1 - y));
        let per_cluster = product.sum::<f64>() / spread;
        (spread > 0.0).then_some(Self {
            at_zero: y - per_cluster * x,
            per_cluster,
        })
    }
}

/// The line of a benchmark through the medians of all sizes.
pub(crate) fn line(results: &Results, side: Side, benchmark: Benchmark) -> Option<Line> {
    let points = results.sizes.iter().filter_map(|size| {
        let clusters = u32::try_from(size.clusters).ok()?;
        Some((f64::from(clusters), size.median(side, benchmark)?))
    });
    Line::fit(&points.collect::<Vec<_>>())
}

/// A table of the lines; empty when there are none.
pub(crate) fn markdown(results: &Results) -> String {
    let mut rows = String::new();
    for benchmark in ROWS {
        let lines = Side::ALL.map(|side| line(results, side, benchmark));
        if lines.iter().all(Option::is_none) {
            continue;
        }
        let _infallible = write!(rows, "| {} |", benchmark.label());
        for line in lines {
            let cell = line.map_or_else(|| "-".to_owned(), Line::text);
            let _infallible = write!(rows, " {cell} |");
        }
        rows.push('\n');
    }
    if rows.is_empty() {
        return "Only one number of clusters was measured: there is no line to fit.\n".to_owned();
    }
    let sides = Side::ALL.map(Side::label).join(" | ");
    format!(
        "| at 0 clusters + for each 1,000 | {sides} |\n| --- |{}\n{rows}",
        " --- |".repeat(Side::ALL.len())
    )
}

impl Line {
    fn text(self) -> String {
        let slope = self.per_cluster * PER;
        let sign = if slope < 0.0 { "−" } else { "+" };
        let zero = match self.at_zero {
            zero if zero < 0.0 => format!("−{}", number(-zero)),
            zero => number(zero),
        };
        format!("{zero} {sign} {}", number(slope.abs()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::bench::results::tests::empty;

    #[test]
    fn a_line_goes_through_its_points_and_between_others() {
        let line = Line::fit(&[(0.0, 10.0), (1_000.0, 16.0), (2_000.0, 22.0)]).unwrap();
        assert!(
            (line.at_zero - 10.0).abs() < 1e-9 && (line.per_cluster - 0.006).abs() < 1e-12,
            "{line:?}"
        );
        let between = Line::fit(&[(0.0, 0.0), (0.0, 2.0), (10.0, 10.0), (10.0, 12.0)]).unwrap();
        assert!((between.at_zero - 1.0).abs() < 1e-9, "{between:?}");
        assert_eq!(Line::fit(&[(5.0, 1.0), (5.0, 2.0)]), None);
        assert_eq!(Line::fit(&[]), None);
    }

    #[test]
    fn only_sides_with_two_sizes_have_a_line() {
        let mut results = Results::default();
        for (clusters, memory) in [(1_000, 30.0), (3_000, 50.0)] {
            let mut size = empty(clusters);
            size.note(Side::Operator, Benchmark::PeakMemory, memory);
            results.replace(size);
        }
        let table = markdown(&results);
        assert!(
            table.contains("| peak memory of one process, MB | 20.0 + 10.0 | - |"),
            "{table}"
        );
        assert!(markdown(&Results::default()).starts_with("Only one"));
    }
}
