//! One HTTP request on loopback, to a replica or a browser's driver.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::error::{Context, Error, Result, failed};

const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_BYTES: u64 = 16 << 20;

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body as text.
    pub body: String,
}

/// Asks for `url` + `path`, within 5 s; `accept` is the media type wanted.
///
/// # Errors
/// When there is no response or it cannot be parsed.
pub async fn get(url: &str, path: &str, accept: &str) -> Result<Answer> {
    let head = format!("Accept: {accept}\r\n");
    send(url, ("GET", path), &head, "", TIMEOUT).await
}

/// Sends one request with a body to `url` + `path`; `head` is more header lines, each with its end.
///
/// # Errors
/// When there is no response in time or it cannot be parsed.
pub async fn send(
    url: &str,
    (method, path): (&str, &str),
    head: &str,
    body: &str,
    timeout: Duration,
) -> Result<Answer> {
    let what = || format!("{method} {url}{path}");
    let host = url.strip_prefix("http://");
    let host = host.ok_or_else(|| Error::Failed(format!("{url} is no http:// address")))?;
    let host = host.trim_end_matches('/');
    let exchange = async {
        let mut stream = TcpStream::connect(host).await?;
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\n{head}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut bytes = Vec::new();
        let mut stream = stream.take(MAX_BYTES);
        // Not every server closes the connection on request.
        while stream.read_buf(&mut bytes).await? > 0 && !is_whole(&bytes) {}
        Ok::<_, std::io::Error>(bytes)
    };
    let bytes = tokio::time::timeout(timeout, exchange)
        .await
        .map_err(|_| Error::Failed(format!("{}: no answer within {timeout:?}", what())))?
        .context(what())?;
    parse(&String::from_utf8_lossy(&bytes))
        .map_or_else(|| failed(format!("{}: no HTTP answer", what())), Ok)
}

/// Whether the body is as long as the head announces.
fn is_whole(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, _)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head.to_ascii_lowercase();
    let length = length.split("content-length:").nth(1);
    let length = length.and_then(|rest| rest.lines().next()?.trim().parse::<usize>().ok());
    length.is_some_and(|length| bytes.len() >= head.len() + 4 + length)
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    let chunked = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    let body = if chunked {
        join_chunks(body)?
    } else {
        body.to_owned()
    };
    Some(Answer { status, body })
}

fn join_chunks(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.push_str(after.get(..size)?);
        rest = after.get(size..)?.strip_prefix("\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    #[test]
    fn plain_and_chunked_responses_are_parsed() {
        let plain = parse("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").unwrap();
        assert_eq!((plain.status, plain.body.as_str()), (200, "hi"));
        let chunked =
            "HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n3\r\n du\r\n0\r\n\r\n";
        let chunked = parse(chunked).unwrap();
        assert_eq!((chunked.status, chunked.body.as_str()), (503, "hi du"));
        assert!(parse("nonsense").is_none());
    }
}
