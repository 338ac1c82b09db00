//! Which major version of PostgreSQL an image is, as far as its tag says.

use super::lifecycle::{Why, reason};

/// Newest major version that a tag is believed to name: higher numbers are dates or builds.
const MAJOR_MAX: u32 = 99;
/// Oldest one that there are images of.
const MAJOR_MIN: u32 = 9;

/// The major version that the tag of an image begins with: 17 for `postgres:17.2-alpine`. None when
/// the tag does not say (`latest`, a digest alone, a tag of another scheme).
#[must_use]
pub fn major(image: &str) -> Option<u32> {
    let name = image.split('@').next()?;
    let last = name.rsplit('/').next()?;
    let (_, tag) = last.split_once(':')?;
    let end = tag.find(|c: char| !c.is_ascii_digit()).unwrap_or(tag.len());
    let number: u32 = tag.get(..end)?.parse().ok()?;
    (MAJOR_MIN..=MAJOR_MAX).contains(&number).then_some(number)
}

/// Why the image of a cluster that has data may not be changed like this; none when it may, or when
/// a tag does not say its version: then each Pod compares its image with its data before it starts.
#[must_use]
pub fn refuse_change(from: &str, to: &str) -> Option<Why> {
    let (old, new) = (major(from)?, major(to)?);
    (old != new).then(|| {
        Why::new(
            reason::MAJOR_VERSION,
            format!(
                "the data is of PostgreSQL {old} ({from}), and spec.image asks for PostgreSQL \
                 {new} ({to}), which can not read it: nothing is changed until spec.image is \
                 of PostgreSQL {old} again. To upgrade, make a new DatabaseCluster with {to} and \
                 copy the data with pg_dumpall"
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_tag_says_the_major_version_or_nothing() {
        for (image, expected) in [
            ("postgres:18", Some(18)),
            ("postgres:17.2-alpine3.20", Some(17)),
            ("registry.test:5000/x/postgres:16.1@sha256:abc", Some(16)),
            ("postgres:18beta1", Some(18)),
            ("registry.test:5000/x/postgres", None),
            ("postgres", None),
            ("postgres:latest", None),
            ("postgres:20260101", None),
            ("postgres:v17", None),
            ("postgres:1.2.3", None),
            ("postgres@sha256:abc", None),
            ("", None),
        ] {
            assert_eq!(major(image), expected, "{image}");
        }
    }

    #[test]
    fn only_a_known_change_of_the_major_version_is_refused_and_both_are_named() {
        assert_eq!(refuse_change("postgres:17.1", "postgres:17.2"), None);
        assert_eq!(refuse_change("postgres:17", "postgres:latest"), None);
        assert_eq!(refuse_change("postgres:latest", "postgres:17"), None);
        for (from, to) in [("postgres:17", "postgres:18"), ("a:18", "b:17-x")] {
            let why = refuse_change(from, to).unwrap();
            assert_eq!(why.reason, reason::MAJOR_VERSION);
            assert!(why.message.contains("PostgreSQL 17"), "{}", why.message);
            assert!(why.message.contains("PostgreSQL 18"), "{}", why.message);
        }
    }
}
