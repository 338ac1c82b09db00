//! Draws panels of a dashboard from a Prometheus's data, for readers of the documentation without Grafana.

use std::path::Path;

use anyhow::{Result, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;

const PANEL: (u32, u32) = (620, 280);
/// Beside the panel: over it, it would hide data.
const LEGEND: u32 = 150;
const LEGEND_ROW: i32 = 18;
/// Of more lines, those that are 0 all the time are left out.
const LINES_MANY: usize = 6;
/// Marks that are nearer than this part of the width have their letters below each other.
const MARKS_NEAR: f64 = 0.03;
const COLUMNS: usize = 2;
const HEADING: u32 = 62;
/// Distinguishable with colour vision deficiency (after Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];
/// A line has a gap where points are further apart.
const GAP_SECONDS: f64 = 2.5;

/// One series of a panel.
#[derive(Debug)]
pub struct Line {
    /// Its name in the legend.
    pub name: String,
    /// Seconds since the start, and values.
    pub points: Vec<(f64, f64)>,
}

/// One panel.
#[derive(Debug)]
pub struct Panel {
    /// As in the dashboard.
    pub title: String,
    /// One of Grafana's.
    pub unit: String,
    /// What it shows.
    pub lines: Vec<Line>,
}

/// What was done to the fleet, marked in every panel by its letter.
#[derive(Debug)]
pub struct Event {
    /// When, in seconds since the start.
    pub second: f64,
    /// What.
    pub what: String,
}

/// Draws a picture of some panels, all of them over the same time.
///
/// # Errors
/// When a panel has no data, or the file cannot be written.
pub fn draw(path: &Path, heading: &str, panels: &[Panel], events: &[Event]) -> Result<()> {
    let rows = panels.len().div_ceil(COLUMNS);
    let size = (
        PANEL.0 * u32::try_from(COLUMNS)?,
        HEADING + PANEL.1 * u32::try_from(rows)?,
    );
    let page = SVGBackend::new(path, size).into_drawing_area();
    page.fill(&WHITE)?;
    let (top, rest) = page.split_vertically(HEADING);
    let heading_font = ("sans-serif", 19).into_font();
    top.draw(&Text::new(heading, (12, 10), heading_font))?;
    let marks = events.iter().enumerate();
    let marks: Vec<String> = marks
        .map(|(i, event)| format!("{}: {}", letter(i), event.what))
        .collect();
    let font = ("sans-serif", 15).into_font();
    top.draw(&Text::new(marks.join(", "), (12, 38), font))?;
    let points = panels.iter().flat_map(|panel| &panel.lines);
    let seconds = points.flat_map(|line| &line.points).map(|point| point.0);
    let end = seconds.fold(1.0, f64::max);
    for (panel, area) in panels.iter().zip(rest.split_evenly((rows, COLUMNS))) {
        ensure!(!panel.lines.is_empty(), "no data for {:?}", panel.title);
        let (chart, side) = area.split_horizontally(PANEL.0 - LEGEND);
        let lines = drawn(&panel.lines);
        one(&chart, panel, &lines, events, end)?;
        legend(&side, &lines, panel.lines.len() - lines.len())?;
    }
    page.present()?;
    Ok(())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Coloured<'a> = (&'a Line, RGBColor);

/// The lines that are drawn.
fn drawn(lines: &[Line]) -> Vec<Coloured<'_>> {
    let is_flat = |line: &Line| line.points.iter().all(|point| point.1 == 0.0);
    let are_many = lines.len() > LINES_MANY;
    let kept = lines.iter().filter(|line| !(are_many && is_flat(line)));
    kept.zip(COLOURS.into_iter().cycle()).collect()
}

fn legend(area: &Area<'_>, lines: &[Coloured<'_>], left_out: usize) -> Result<()> {
    let font = || ("sans-serif", 13).into_font();
    let mut y = 48;
    for (line, colour) in lines {
        let dash = vec![(0, y), (16, y)];
        area.draw(&PathElement::new(dash, colour.stroke_width(3)))?;
        area.draw(&Text::new(line.name.clone(), (22, y - 6), font()))?;
        y += LEGEND_ROW;
    }
    if left_out > 0 {
        let text = format!("{left_out} more: always 0");
        area.draw(&Text::new(text, (22, y - 6), font()))?;
    }
    Ok(())
}

fn letter(index: usize) -> char {
    ('a'..='z').nth(index).unwrap_or('?')
}

fn one(
    area: &Area<'_>,
    panel: &Panel,
    lines: &[Coloured<'_>],
    events: &[Event],
    end: f64,
) -> Result<()> {
    let values = lines.iter().flat_map(|(line, _)| &line.points);
    let most = values.map(|point| point.1).fold(0.0, f64::max);
    // Room for the letters.
    let high = if most > 0.0 { most * 1.25 } else { 1.0 };
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .caption(&panel.title, ("sans-serif", 17))
        .x_label_area_size(26)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..end, 0.0..high)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .label_style(("sans-serif", 13))
        .x_labels(7)
        .y_labels(6)
        .x_label_formatter(&|second| format!("{second:.0} s"))
        .y_label_formatter(&|value| with_unit(*value, &panel.unit))
        .draw()?;
    for ((i, event), row) in events.iter().enumerate().zip(letter_rows(events, end)) {
        let mark = vec![(event.second, 0.0), (event.second, high)];
        chart.draw_series([PathElement::new(mark, BLACK.mix(0.35))])?;
        let font = ("sans-serif", 13).into_font();
        let place = (event.second + end / 150.0, high * (1.0 - 0.08 * row));
        chart.draw_series([Text::new(letter(i).to_string(), place, font)])?;
    }
    for (line, colour) in lines {
        for part in parts(&line.points) {
            let part = part.iter().copied();
            chart.draw_series(LineSeries::new(part, colour.stroke_width(2)))?;
        }
    }
    Ok(())
}

/// The row of each event's letter, so that none covers that of the event before.
fn letter_rows(events: &[Event], end: f64) -> Vec<f64> {
    let mut rows: Vec<f64> = Vec::new();
    for (i, event) in events.iter().enumerate() {
        let before = i
            .checked_sub(1)
            .and_then(|i| events.get(i).zip(rows.get(i)));
        let near = before.filter(|(other, _)| event.second - other.second < end * MARKS_NEAR);
        rows.push(near.map_or(0.0, |(_, row)| row + 1.0));
    }
    rows
}

/// A line without its gaps.
fn parts(points: &[(f64, f64)]) -> Vec<&[(f64, f64)]> {
    points.chunk_by(|a, b| b.0 - a.0 <= GAP_SECONDS).collect()
}

fn with_unit(value: f64, unit: &str) -> String {
    let short = |value: f64| {
        let text = format!("{value:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match unit {
        "s" => format!("{} s", short(value)),
        "bytes" => format!("{:.0} MB", value / 1e6),
        "Bps" => format!("{} kB/s", short(value / 1e3)),
        "percentunit" => format!("{} %", short(value * 100.0)),
        "ops" | "reqps" => format!("{}/s", short(value)),
        _ => short(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_formatted_with_units() {
        for (value, unit, text) in [
            (0.25, "s", "0.25 s"),
            (31e6, "bytes", "31 MB"),
            (0.5, "percentunit", "50 %"),
            (12.0, "reqps", "12/s"),
            (100.0, "short", "100"),
        ] {
            assert_eq!(with_unit(value, unit), text);
        }
    }

    #[test]
    fn line_breaks_where_data_is_missing() {
        let points = [(0.0, 1.0), (1.0, 1.0), (9.0, 1.0)];
        assert_eq!(parts(&points), [&points[..2], &points[2..]]);
    }

    fn line(values: &[f64]) -> Line {
        let points = (0u8..).map(f64::from).zip(values.iter().copied());
        Line {
            name: String::new(),
            points: points.collect(),
        }
    }

    #[test]
    fn zero_lines_are_hidden_only_among_many() {
        let few = [line(&[0.0, 0.0]), line(&[0.0, 1.0])];
        assert_eq!(drawn(&few).len(), 2);
        let mut many: Vec<Line> = (0..LINES_MANY).map(|_| line(&[0.0])).collect();
        many.push(line(&[0.0, 1.0]));
        assert_eq!(drawn(&many).len(), 1);
    }

    #[test]
    fn labels_of_nearby_events_are_stacked() {
        let event = |second| Event {
            second,
            what: String::new(),
        };
        let rows = letter_rows(&[event(10.0), event(11.0), event(12.0), event(50.0)], 100.0);
        assert_eq!(rows, [0.0, 1.0, 2.0, 0.0]);
    }
}
