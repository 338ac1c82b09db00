//! The Prometheus text format, read.

use std::collections::BTreeMap;

/// One sample.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The metric's name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// All samples of one scrape.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
}

impl Metrics {
    /// Reads the text format; lines that are no samples are passed over.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self {
            samples: lines.filter_map(sample).collect(),
        }
    }

    /// All samples.
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// The samples of one metric.
    pub fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples
            .iter()
            .filter(move |sample| sample.name == name)
    }

    /// The value of a metric summed over its labels; `None` when it is not there at all.
    #[must_use]
    pub fn sum(&self, name: &str) -> Option<f64> {
        self.of(name)
            .map(|sample| sample.value)
            .reduce(|a, b| a + b)
    }

    /// The values of a metric by one of its labels, summed over the others.
    #[must_use]
    pub fn by_label(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        let mut values = BTreeMap::new();
        for sample in self.of(name) {
            let key = sample.labels.get(label).cloned().unwrap_or_default();
            *values.entry(key).or_insert(0.0) += sample.value;
        }
        values
    }
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' ', '\t'])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => labels(inside)?,
        None => (BTreeMap::new(), rest),
    };
    let value = rest.split_whitespace().next()?;
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        number => number.parse().ok()?,
    };
    Some(Sample {
        name: name.to_owned(),
        labels,
        value,
    })
}

/// The labels up to the closing bracket, and what follows it.
fn labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (key, after) = rest.split_once("=\"")?;
        let (value, after) = quoted(after)?;
        labels.insert(key.trim().to_owned(), value);
        rest = after;
    }
}

/// The text up to the closing quote, without its escapes, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((value, text.get(index + 1..)?)),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    const TEXT: &str = "# HELP a b\n# TYPE a gauge\na{shard=\"0\",x=\"q\\\"}, \\n\"} 1\na{shard=\"1\"} 2.5\n\
        plain 7 1700000000\ninf +Inf\nbroken{shard=\"1 3\n";

    #[test]
    fn samples_are_parsed_with_labels_escapes_and_timestamps() {
        let metrics = Metrics::parse(TEXT);
        assert_eq!(metrics.sum("a"), Some(3.5));
        assert_eq!(
            metrics.by_label("a", "shard"),
            BTreeMap::from([("0".into(), 1.0), ("1".into(), 2.5)])
        );
        assert_eq!(metrics.samples()[0].labels["x"], "q\"}, \n");
        assert_eq!(
            (metrics.sum("plain"), metrics.sum("inf")),
            (Some(7.0), Some(f64::INFINITY))
        );
        assert_eq!((metrics.sum("broken"), metrics.sum("absent")), (None, None));
    }
}
