//! Names of objects and the stamp that says who wrote them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Namespace and name of a `DatabaseCluster`; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Namespace of the object.
    pub namespace: Arc<str>,
    /// Name of the object.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// A key from its two parts.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Highest epoch that is believed when read from an object: anything within 2^20 of the 32-bit
/// limit of `leaseTransitions` is damage or an attack, and raising a Lease above it would use the
/// numbers up.
pub const EPOCH_BELIEVED_MAX: u32 = i32::MAX as u32 - (1 << 20);

/// Who wrote an object, and under which right: `<shard lease>/<epoch>/<holder>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Name of the shard Lease.
    pub lease: String,
    /// Epoch (`leaseTransitions`) of that Lease at the time of writing.
    pub epoch: u32,
    /// Identity of the holder.
    pub holder: String,
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.lease, self.epoch, self.holder)
    }
}

/// The text is no stamp, or its epoch is too high to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a stamp: expected <shard lease>/<epoch>/<holder> with an epoch of at most {EPOCH_BELIEVED_MAX}"
)]
pub struct BadStamp;

impl FromStr for Stamp {
    type Err = BadStamp;

    fn from_str(text: &str) -> Result<Self, BadStamp> {
        let mut parts = text.split('/');
        let (Some(lease), Some(epoch), Some(holder), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(BadStamp);
        };
        let plain_number = !epoch.is_empty() && epoch.bytes().all(|b| b.is_ascii_digit());
        let epoch: u32 = epoch.parse().map_err(|_| BadStamp)?;
        if lease.is_empty() || holder.is_empty() || !plain_number || epoch > EPOCH_BELIEVED_MAX {
            return Err(BadStamp);
        }
        Ok(Self {
            lease: lease.to_owned(),
            epoch,
            holder: holder.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_stamp_survives_its_text_form() {
        let stamp = Stamp {
            lease: "databasecluster-shard-003".into(),
            epoch: 17,
            holder: "operator-0".into(),
        };
        assert_eq!(stamp.to_string().parse::<Stamp>().unwrap(), stamp);
    }

    #[test]
    fn malformed_or_absurd_stamps_count_as_none() {
        for text in [
            "",
            "a",
            "a/1",
            "a//b",
            "/1/b",
            "a/1/",
            "a/1/b/c",
            "a/-1/b",
            "a/+1/b",
            "a/x/b",
            "a/2147483647/b",
            "a/99999999999/b",
        ] {
            assert_eq!(text.parse::<Stamp>(), Err(BadStamp), "{text:?}");
        }
        let highest = format!("a/{EPOCH_BELIEVED_MAX}/b");
        assert!(highest.parse::<Stamp>().is_ok());
    }
}
