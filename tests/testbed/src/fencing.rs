//! Fencing tokens as an outside observer reads them: which term of a shard wrote an object, and for which cluster.
//!
//! This is the only place outside the operator that defines the format of a token.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use crate::names::OperatorNames;

/// The annotation that carries the token, of the DatabaseCluster operator.
pub const ANNOTATION: &str = "database.io/fencing-token";
/// A longer text is no token, whatever its source.
const LENGTH_MAX: usize = 400;

/// `<table uid>/<three digits of the shard>/<epoch>/<holder>/<cluster uid>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The uid of the shard table.
    pub table: String,
    /// The shard, with three digits, as in the keys of the table's entries.
    pub shard: String,
    /// The epoch of the shard.
    pub epoch: i64,
    /// The replica that wrote.
    pub holder: String,
    /// The uid of the DatabaseCluster for which it wrote.
    pub cluster: String,
}

/// A text that is no fencing token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no fencing token: <table uid>/<shard>/<epoch>/<holder>/<cluster uid>")]
pub struct NoToken(String);

impl Token {
    /// The token in the annotation of an object of the DatabaseCluster operator.
    #[must_use]
    pub fn of_annotation(object: &Value) -> Option<Self> {
        OperatorNames::DATABASE_CLUSTERS.token_of_annotation(object)
    }

    /// The token in the status of a DatabaseCluster.
    #[must_use]
    pub fn of_status(object: &Value) -> Option<Self> {
        OperatorNames::DATABASE_CLUSTERS.token_of_status(object)
    }
}

impl FromStr for Token {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Self, NoToken> {
        let no_token = || NoToken(text.to_owned());
        let parts: Vec<&str> = text.split('/').collect();
        let [table, shard, epoch, holder, cluster] = parts[..] else {
            return Err(no_token());
        };
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let numbers = shard.len() == 3 && digits(shard) && digits(epoch);
        let nothing_is_empty = ![table, holder, cluster].contains(&"");
        if text.len() > LENGTH_MAX || !numbers || !nothing_is_empty || epoch.starts_with('0') {
            return Err(no_token());
        }
        Ok(Self {
            table: table.to_owned(),
            shard: shard.to_owned(),
            epoch: epoch.parse().map_err(|_| no_token())?,
            holder: holder.to_owned(),
            cluster: cluster.to_owned(),
        })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            table,
            shard,
            epoch,
            holder,
            cluster,
        } = self;
        write!(f, "{table}/{shard}/{epoch}/{holder}/{cluster}")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use serde_json::json;

    const TEXT: &str = "3f2a/007/12/databasecluster-operator-6d4-x2x9k/9c1b";

    #[test]
    fn token_survives_a_round_trip() {
        let token: Token = TEXT.parse().unwrap();
        assert_eq!(token.to_string(), TEXT);
        assert_eq!((token.epoch, token.cluster.as_str()), (12, "9c1b"));
    }

    #[test]
    fn annotation_and_status_carry_the_same_token() {
        let object = json!({
            "metadata": {"annotations": {ANNOTATION: TEXT}},
            "status": {"shard": {
                "table": "3f2a", "lease": "databasecluster-shard-007", "epoch": 12, "bucket": 3,
                "holder": "databasecluster-operator-6d4-x2x9k", "uid": "9c1b",
            }},
        });
        let token = Token::of_annotation(&object);
        assert!(token.is_some());
        assert_eq!(token, Token::of_status(&object));
        let mut without_uid = object;
        without_uid["status"]["shard"]
            .as_object_mut()
            .unwrap()
            .remove("uid");
        assert_eq!(Token::of_status(&without_uid), None);
    }

    #[test]
    fn malformed_token_is_rejected() {
        for text in [
            "",
            "databasecluster-shard-007/12/a",
            "t/7/12/a/c",
            "t/007/x/a/c",
            "t/007/12//c",
            "t/007/12/a/",
            "t/007/12/a/c/d",
            "/007/12/a/c",
            "t/007/-1/a/c",
            "t/007/01/a/c",
            &format!("t/007/12/a/{}", "c".repeat(400)),
        ] {
            let error = Token::from_str(text).unwrap_err().to_string();
            assert!(error.contains("is no fencing token"), "{error}");
        }
    }
}
