//! The major version of PostgreSQL in an image, as far as its name makes that certain.
//!
//! Only the tags of the official image have a known scheme. In another repository `41`, `12.1` or
//! `22.04-pg16` may be a build, or the version of an extension or of a distribution. What is not
//! certain is not checked here: each Pod compares its image with its data before it starts.

use super::lifecycle::{ConditionReason, reason};

/// Newest major version that a tag can name: higher numbers are dates or builds.
const MAJOR_MAX: u32 = 99;
/// Before it, two numbers formed a major version (9.6).
const MAJOR_MIN: u32 = 10;
/// Registry names of the official image; an image without a registry is the official one, too.
const HUB: [&str; 3] = ["docker.io/", "index.docker.io/", "registry-1.docker.io/"];
/// What can follow the major version in a tag of the official image.
const AFTER_MAJOR: [&str; 4] = [".", "-", "beta", "rc"];

/// The major version that the tag of the official image names: 17 for `postgres:17.2-alpine`. None
/// when the tag does not name one (`latest`, a digest alone), and for every other image.
#[must_use]
pub(crate) fn major(image: &str) -> Option<u32> {
    let name = image.split('@').next()?;
    let name = HUB
        .iter()
        .find_map(|hub| name.strip_prefix(hub))
        .unwrap_or(name);
    let name = name.strip_prefix("library/").unwrap_or(name);
    let tag = name.strip_prefix("postgres:")?;
    let end = tag.find(|c: char| !c.is_ascii_digit()).unwrap_or(tag.len());
    let (number, rest) = tag.split_at_checked(end)?;
    let is_known = rest.is_empty() || AFTER_MAJOR.iter().any(|next| rest.starts_with(next));
    let number: u32 = number.parse().ok().filter(|_| is_known)?;
    (MAJOR_MIN..=MAJOR_MAX).contains(&number).then_some(number)
}

/// Why the image of a cluster that has data must not be changed like this; none if it may, or if
/// that is not certain.
#[must_use]
pub(crate) fn refuse_change(from: &str, to: &str) -> Option<ConditionReason> {
    let (old, new) = (major(from)?, major(to)?);
    if old == new {
        return None;
    }
    let way = if new > old {
        format!(
            "To upgrade, create another DatabaseCluster with {to} and copy the data with pg_dumpall"
        )
    } else {
        format!(
            "PostgreSQL has no downgrade: to go back, create another DatabaseCluster with {to} and \
             load a dump, as far as PostgreSQL {new} understands what PostgreSQL {old} wrote"
        )
    };
    Some(ConditionReason::new(
        reason::MAJOR_VERSION,
        format!(
            "the data is of PostgreSQL {old} ({from}), and spec.image asks for PostgreSQL {new} \
             ({to}), which cannot read it: nothing is changed until spec.image is of PostgreSQL \
             {old} again. {way}"
        ),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_the_tag_of_the_official_image_names_a_major_version() {
        for (image, expected) in [
            ("postgres:18", Some(18)),
            ("postgres:17.2-alpine3.20", Some(17)),
            ("postgres:18beta1", Some(18)),
            ("postgres:17rc1-bookworm", Some(17)),
            ("library/postgres:17", Some(17)),
            ("docker.io/postgres:17", Some(17)),
            ("docker.io/library/postgres:16.1@sha256:abc", Some(16)),
            ("index.docker.io/library/postgres:16-alpine", Some(16)),
            ("postgres", None),
            ("postgres:latest", None),
            ("postgres:20260101", None),
            ("postgres:v17", None),
            ("postgres:17x", None),
            ("postgres:1.2.3", None),
            // 9.5 and 9.6 are two major versions.
            ("postgres:9.6", None),
            ("postgres@sha256:abc", None),
            ("postgres:99999999999999999999", None),
            ("", None),
            // Their publishers number these tags as they like.
            ("registry/pg:41", None),
            ("registry.test:5000/x/postgres:16.1", None),
            ("registry.test/library/postgres:41", None),
            ("citusdata/citus:12.1", None),
            ("timescale/timescaledb:2.17-pg16", None),
            ("pg:22.04-pg16", None),
        ] {
            assert_eq!(major(image), expected, "{image}");
        }
    }

    #[test]
    fn only_a_certain_change_of_the_major_version_is_refused_and_both_are_named() {
        for (from, to) in [
            ("postgres:17.1", "postgres:17.2"),
            ("postgres:17", "postgres:latest"),
            ("postgres:latest", "postgres:17"),
            ("postgres:17", "postgres@sha256:abc"),
            ("registry/pg:41", "registry/pg:42"),
            ("citusdata/citus:12.1", "citusdata/citus:13.0"),
            ("pg:22.04-pg16", "pg:24.04-pg16"),
            ("postgres:17", "registry.test/postgres:18"),
        ] {
            assert_eq!(refuse_change(from, to), None, "{from} to {to}");
        }
        for (from, to) in [
            ("postgres:17", "postgres:18"),
            ("docker.io/library/postgres:18", "postgres:17-alpine"),
        ] {
            let why = refuse_change(from, to).unwrap();
            assert_eq!(why.reason, reason::MAJOR_VERSION);
            for word in ["PostgreSQL 17", "PostgreSQL 18", from, to] {
                assert!(why.message.contains(word), "{word}: {}", why.message);
            }
        }
    }

    #[test]
    fn downgrade_message_does_not_recommend_an_upgrade() {
        let down = refuse_change("postgres:18", "postgres:17").unwrap().message;
        assert!(
            down.contains("no downgrade") && !down.contains("To upgrade"),
            "{down}"
        );
        let up = refuse_change("postgres:17", "postgres:18").unwrap().message;
        assert!(
            up.contains("To upgrade") && !up.contains("downgrade"),
            "{up}"
        );
    }
}
