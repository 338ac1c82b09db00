//! The results as a picture: bars of each side beside the Go peer's.

use anyhow::{Context, Result};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::results::{Benchmark, Results, Size};
use super::side::Side;
use super::table::{grouped, number};

/// Lower is better in each.
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
/// Distinguishable with colour vision deficiency (after Okabe and Ito).
const COLOURS: [RGBColor; 5] = [
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
];
const COLUMN: i32 = 560;
const NAMES: i32 = 150;
const NUMBERS: i32 = 70;
const HEADING: i32 = 44;
const TITLE: i32 = 26;
const BAR: i32 = 16;
const GAP: i32 = 14;

/// An SVG with a column for each number of clusters.
pub(crate) fn draw(results: &Results) -> Result<String> {
    let bars = i32::try_from(Side::ALL.len())?;
    let block = TITLE + bars * BAR + GAP;
    let columns = i32::try_from(results.sizes.len().max(1))?;
    let height = HEADING + block * i32::try_from(ROWS.len())?;
    let mut text = String::new();
    {
        let pixels = (u32::try_from(columns * COLUMN)?, u32::try_from(height)?);
        let page = SVGBackend::with_string(&mut text, pixels).into_drawing_area();
        page.fill(&WHITE)?;
        for (size, left) in results
            .sizes
            .iter()
            .zip((0..).step_by(usize::try_from(COLUMN)?))
        {
            column(&page, size, left).context("draw a column")?;
        }
        page.present()?;
    }
    Ok(text)
}

type Page<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn column(page: &Page<'_>, size: &Size, left: i32) -> Result<()> {
    let heading = format!(
        "{} DatabaseClusters; shorter is better",
        grouped(size.clusters)
    );
    write(page, &heading, (left + 10, 12), 17)?;
    let mut top = HEADING;
    for benchmark in ROWS {
        write(page, benchmark.label(), (left + 10, top), 14)?;
        top += TITLE;
        let most = Side::ALL.into_iter();
        let most = most.filter_map(|side| size.sorted(side, benchmark).max());
        let most = most.fold(0.0, f64::max);
        for (side, colour) in Side::ALL.into_iter().zip(COLOURS) {
            bar(page, size, (side, benchmark, colour), most, (left, top))?;
            top += BAR;
        }
        top += GAP;
    }
    Ok(())
}

/// A bar as long as the median, and a line from the least to the most.
fn bar(
    page: &Page<'_>,
    size: &Size,
    (side, benchmark, colour): (Side, Benchmark, RGBColor),
    whole: f64,
    (left, top): (i32, i32),
) -> Result<()> {
    write(page, side.label(), (left + 10, top), 12)?;
    let start = left + 10 + NAMES;
    let sorted = size.sorted(side, benchmark);
    let (Some(median), Some(least), Some(most)) =
        (sorted.percentile(50), sorted.percentile(0), sorted.max())
    else {
        return write(page, "–", (start, top), 12);
    };
    let width = f64::from(COLUMN - NAMES - NUMBERS - 20);
    // No wider than the column: at most as long as the longest.
    #[allow(clippy::cast_possible_truncation)]
    let at = |value: f64| start + (width * value / whole.max(f64::MIN_POSITIVE)) as i32;
    let middle = top + BAR / 2 - 1;
    page.draw(&Rectangle::new(
        [(start, top + 1), (at(median), top + BAR - 3)],
        colour.filled(),
    ))?;
    page.draw(&PathElement::new(
        vec![(at(least), middle), (at(most), middle)],
        BLACK.stroke_width(1),
    ))?;
    write(page, &number(median), (at(most) + 6, top), 12)
}

fn write(page: &Page<'_>, text: &str, at: (i32, i32), size: i32) -> Result<()> {
    page.draw(&Text::new(
        text.to_owned(),
        at,
        ("sans-serif", size).into_font(),
    ))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::bench::results::tests::{empty, size};

    #[test]
    fn every_number_of_clusters_has_a_column_with_every_side() {
        let mut results = Results::default();
        results.replace(size());
        results.replace(empty(2_000));
        let picture = draw(&results).unwrap();
        for text in [
            "10 DatabaseClusters",
            "2,000 DatabaseClusters",
            "kube-rs peer",
            "8.00",
        ] {
            assert!(picture.contains(text), "{text}");
        }
        assert_eq!(picture, draw(&results).unwrap(), "not reproducible");
    }
}
