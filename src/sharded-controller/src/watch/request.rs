//! The requests of a list and watch, and the lines of their answers.

use std::pin::Pin;
use std::time::Duration;

use futures::{AsyncBufRead, AsyncBufReadExt};
use kube::Client;
use kube::api::{ListParams, WatchParams};
use kube::core::Status;

/// How long the API server may keep one watch open: chosen randomly for each, so that the watches
/// of a replica do not end in step.
const WATCH_SECONDS: std::ops::RangeInclusive<u32> = 240..=290;
/// Bookmarks arrive about once a minute: a watch that is silent for longer is dead.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(100);
/// Longest silence between two objects of a list.
const LIST_SILENCE_MAX: Duration = Duration::from_secs(30);
/// Far above the maximum size of an object in etcd.
const LINE_BYTES_MAX: usize = 16 << 20;
/// Size of a line's buffer that is kept for the next line.
const LINE_BYTES_KEPT: usize = 64 << 10;
const PAGE: u32 = 500;

/// Why a watch ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    /// The API server closed it, as it does every few minutes.
    #[error("the watch ended")]
    Closed,
    /// 410: what we would go on from is gone, so everything is listed again.
    #[error("the version to continue from is too old")]
    Expired,
    /// The request failed, or the API server reported an error in the watch.
    #[error(transparent)]
    Refused(#[from] kube::Error),
    /// No data arrived for too long.
    #[error("the API server was silent for too long")]
    Silent,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(#[from] std::io::Error),
    /// The answer cannot be decoded.
    #[error("the answer cannot be decoded: {0}")]
    Malformed(#[from] serde_json::Error),
    /// A line exceeds the maximum length.
    #[error("a line of the answer is longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
}

impl WatchError {
    /// Of an error event in a watch.
    #[must_use]
    pub(crate) fn by_status(status: Status) -> Self {
        match status.code {
            410 => Self::Expired,
            _ => Self::Refused(kube::Error::Api(Box::new(status))),
        }
    }

    fn by_error(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::by_status(*status),
            other => Self::Refused(other),
        }
    }

    /// The pause that the API server requests.
    #[must_use]
    pub(crate) fn retry_after(&self) -> Duration {
        let seconds = match self {
            Self::Refused(kube::Error::Api(status)) => status
                .details
                .as_ref()
                .map(|details| details.retry_after_seconds),
            Self::Expired
            | Self::Closed
            | Self::Refused(_)
            | Self::Silent
            | Self::Broken(_)
            | Self::Malformed(_)
            | Self::TooLong => None,
        };
        Duration::from_secs(seconds.unwrap_or_default().into())
    }

    /// The status code of the API server's answer, if there was one.
    #[must_use]
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Expired => Some(410),
            Self::Refused(kube::Error::Api(status)) => Some(status.code),
            Self::Closed
            | Self::Refused(_)
            | Self::Silent
            | Self::Broken(_)
            | Self::Malformed(_)
            | Self::TooLong => None,
        }
    }

    /// Whether the API server rejected this request permanently.
    #[must_use]
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Refused(kube::Error::Api(status)) => {
                matches!(status.code, 400..=499 | 504) && !matches!(status.code, 401 | 403 | 429)
            }
            Self::Expired
            | Self::Closed
            | Self::Refused(_)
            | Self::Silent
            | Self::Broken(_)
            | Self::Malformed(_)
            | Self::TooLong => false,
        }
    }
}

/// The parameters of a list or watch.
#[derive(Clone)]
pub(crate) struct ListWatchRequest {
    /// Sends the requests; adds the selector by shard where there is one.
    pub client: Client,
    /// The path of the collection.
    pub path: String,
    /// Label selector.
    pub labels: Option<String>,
    /// Whether only metadata is requested.
    pub metadata_only: bool,
}

impl ListWatchRequest {
    /// Everything that is there, then what changes, in one stream. No version is named, which asks
    /// for what is in etcd now: a cache that lags would show a new holder less than the old one saw.
    ///
    /// # Errors
    /// When the API server refuses or is away.
    pub(crate) async fn stream_list(&self) -> Result<Lines, WatchError> {
        let params = self.params().initial_events();
        Ok(self
            .watch(&params, "")
            .await?
            .with_patience(LIST_SILENCE_MAX))
    }

    /// The changes after a version.
    ///
    /// # Errors
    /// As above.
    pub(crate) async fn watch_from(&self, version: &str) -> Result<Lines, WatchError> {
        self.watch(&self.params(), version).await
    }

    /// One page of all existing objects: for API servers that do not stream lists.
    ///
    /// # Errors
    /// As above.
    pub(crate) async fn page(&self, next: &str) -> Result<String, WatchError> {
        let mut params = ListParams::default().limit(PAGE);
        params.label_selector.clone_from(&self.labels);
        if !next.is_empty() {
            params = params.continue_token(next);
        }
        let request = kube::core::Request::new(&self.path);
        let request = match self.metadata_only {
            true => request.list_metadata(&params),
            false => request.list(&params),
        };
        let request = request.map_err(kube::Error::BuildRequest)?;
        let answer = self.client.request_text(request);
        match tokio::time::timeout(LIST_SILENCE_MAX, answer).await {
            Ok(answer) => answer.map_err(WatchError::by_error),
            Err(_) => Err(WatchError::Silent),
        }
    }

    fn params(&self) -> WatchParams {
        WatchParams {
            label_selector: self.labels.clone(),
            timeout: Some(fastrand::u32(WATCH_SECONDS)),
            ..WatchParams::default()
        }
    }

    async fn watch(&self, params: &WatchParams, version: &str) -> Result<Lines, WatchError> {
        let request = kube::core::Request::new(&self.path);
        let request = match self.metadata_only {
            true => request.watch_metadata(params, version),
            false => request.watch(params, version),
        };
        let request = request.map_err(kube::Error::BuildRequest)?;
        let answer = self.client.request_stream(request);
        match tokio::time::timeout(LIST_SILENCE_MAX, answer).await {
            Ok(answer) => Ok(Lines::new(answer.map_err(WatchError::by_error)?)),
            Err(_) => Err(WatchError::Silent),
        }
    }
}

/// The lines of a watch, one after the other in one buffer.
pub(crate) struct Lines {
    from: Pin<Box<dyn AsyncBufRead + Send>>,
    line: Vec<u8>,
    patience: Duration,
}

impl Lines {
    fn new(from: impl AsyncBufRead + Send + 'static) -> Self {
        Self {
            from: Box::pin(from),
            line: Vec::new(),
            patience: SILENCE_MAX,
        }
    }

    fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Marks the list as complete: from now on it may be silent for longer.
    pub(crate) fn is_listed(&mut self) {
        self.patience = SILENCE_MAX;
    }

    /// The next line.
    ///
    /// # Errors
    /// When there is none any more, and why.
    pub(crate) async fn next(&mut self) -> Result<&[u8], WatchError> {
        self.line.clear();
        self.line.shrink_to(LINE_BYTES_KEPT);
        let patience = self.patience;
        match tokio::time::timeout(patience, self.fill()).await {
            Ok(filled) => filled?,
            Err(_) => return Err(WatchError::Silent),
        }
        Ok(&self.line)
    }

    async fn fill(&mut self) -> Result<(), WatchError> {
        loop {
            let piece = self.from.fill_buf().await?;
            if piece.is_empty() {
                // A line that was cut off comes again.
                return Err(WatchError::Closed);
            }
            let end = piece.iter().position(|byte| *byte == b'\n');
            let used = end.map_or(piece.len(), |end| end + 1);
            self.line
                .extend_from_slice(piece.get(..used).unwrap_or_default());
            self.from.as_mut().consume(used);
            if end.is_some() {
                return Ok(());
            }
            if self.line.len() > LINE_BYTES_MAX {
                return Err(WatchError::TooLong);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use futures::StreamExt;
    use futures::TryStreamExt;

    fn lines(pieces: &[&'static str]) -> Lines {
        let pieces: Vec<std::io::Result<&'static str>> = pieces.iter().map(|p| Ok(*p)).collect();
        let body = futures::stream::iter(pieces).chain(futures::stream::empty());
        Lines::new(body.into_async_read())
    }

    #[tokio::test]
    async fn lines_are_put_together_and_one_that_was_cut_off_is_not_given() {
        let mut lines = lines(&["{\"a\":", "1}\n{}\n{\"b\"", ":2}\n{\"cut"]);
        for expected in ["{\"a\":1}\n", "{}\n", "{\"b\":2}\n"] {
            assert_eq!(lines.next().await.unwrap(), expected.as_bytes());
        }
        assert!(matches!(lines.next().await, Err(WatchError::Closed)));
    }

    #[tokio::test(start_paused = true)]
    async fn silent_watch_is_aborted() {
        let body = futures::stream::pending::<std::io::Result<&'static str>>();
        let mut lines = Lines::new(body.into_async_read());
        let begun = tokio::time::Instant::now();
        assert!(matches!(lines.next().await, Err(WatchError::Silent)));
        assert_eq!(begun.elapsed(), SILENCE_MAX);
    }

    #[tokio::test]
    async fn overlong_line_is_aborted() {
        let piece = "x".repeat(1 << 20);
        let body = futures::stream::repeat_with(move || Ok::<_, std::io::Error>(piece.clone()));
        let mut lines = Lines::new(Box::pin(body).into_async_read());
        assert!(matches!(lines.next().await, Err(WatchError::TooLong)));
    }

    #[test]
    fn only_a_rejected_request_is_a_refusal() {
        let by = |code: u16| WatchError::by_status(Status::failure("m", "r").with_code(code));
        assert!(matches!(by(410), WatchError::Expired));
        for (code, refused) in [
            (400, true),
            (422, true),
            (504, true),
            (403, false),
            (429, false),
            (500, false),
        ] {
            assert_eq!(by(code).is_refusal(), refused, "{code}");
        }
        assert!(!WatchError::Silent.is_refusal());
    }
}
